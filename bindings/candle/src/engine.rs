//! The engine, and workspaces that calls lend each other.

use std::sync::{Mutex, OnceLock, PoisonError};

use inducer_attention::cpu::{Engine, Workspace};
use inducer_attention::{Gradients, Outputs, Problem, Result, Saved, Upstream};

/// Workspaces at rest. As many come about as calls have run at the same time.
static WORKSPACES: Mutex<Vec<Workspace>> = Mutex::new(Vec::new());

/// Calls at the same time that keep their workspaces; those of further ones are freed.
const KEPT: usize = 16;

fn engine() -> Engine {
    static ENGINE: OnceLock<Engine> = OnceLock::new();
    *ENGINE.get_or_init(Engine::detect)
}

/// Lends a workspace of at least `bytes` bytes: a training step allocates none after the first.
fn with_workspace<R>(bytes: usize, f: impl FnOnce(&mut Workspace) -> R) -> R {
    let at_rest = || WORKSPACES.lock().unwrap_or_else(PoisonError::into_inner);
    let mut workspace = at_rest().pop().unwrap_or_default();
    workspace.reserve(bytes);
    let result = f(&mut workspace);
    let mut at_rest = at_rest();
    if at_rest.len() < KEPT {
        at_rest.push(workspace);
    }
    result
}

/// Frees the scratch memory that calls keep for the next ones, and returns how many bytes that was.
pub fn release_workspaces() -> usize {
    let freed = std::mem::take(&mut *WORKSPACES.lock().unwrap_or_else(PoisonError::into_inner));
    freed.iter().map(Workspace::bytes).sum()
}

pub(crate) fn forward(problem: &Problem<'_>, outputs: Outputs<'_>) -> Result<()> {
    let (engine, call) = (engine(), problem.forward(outputs)?);
    with_workspace(engine.forward_workspace(problem), |workspace| engine.forward(call, workspace))
}

pub(crate) fn backward<'a>(
    problem: &Problem<'a>,
    saved: Saved<'a>,
    upstream: Upstream<'a>,
    gradients: Gradients<'_>,
) -> Result<()> {
    let (engine, call) = (engine(), problem.backward(saved, upstream, gradients)?);
    with_workspace(engine.backward_workspace(problem), |workspace| engine.backward(call, workspace))
}
