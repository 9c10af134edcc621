//! What is under test: everything that executes the operation.

use inducer_attention::cpu::{Engine, InstructionSet, Workspace};
use inducer_attention::{Error, Gradients, Outputs, Problem, Saved, Upstream};

/// An implementation of the operation over memory of this machine.
pub trait Backend: Send + Sync {
    /// Its name in reports.
    fn name(&self) -> String;

    /// Whether it implements this problem.
    fn supports(&self, _problem: &Problem<'_>) -> bool {
        true
    }

    /// Runs the forward.
    fn forward(&self, problem: &Problem<'_>, outputs: Outputs<'_>) -> Result<(), Error>;

    /// Runs the backward.
    fn backward<'a>(
        &self,
        problem: &Problem<'a>,
        saved: Saved<'a>,
        upstream: Upstream<'a>,
        gradients: Gradients<'_>,
    ) -> Result<(), Error>;
}

/// The CPU engine with one instruction set.
pub struct Cpu {
    pub set: InstructionSet,
    pub engine: Engine,
}

impl Cpu {
    /// Every instruction set that this CPU has.
    pub fn all() -> impl Iterator<Item = Self> {
        InstructionSet::available()
            .into_iter()
            .map(|set| Self { set, engine: Engine::with(set).expect("an available instruction set") })
    }
}

impl Backend for Cpu {
    fn name(&self) -> String {
        format!("cpu {:?}", self.set)
    }

    fn forward(&self, problem: &Problem<'_>, outputs: Outputs<'_>) -> Result<(), Error> {
        let mut workspace = Workspace::new();
        workspace.reserve(self.engine.forward_workspace(problem));
        self.engine.forward(problem.forward(outputs)?, &mut workspace)
    }

    fn backward<'a>(
        &self,
        problem: &Problem<'a>,
        saved: Saved<'a>,
        upstream: Upstream<'a>,
        gradients: Gradients<'_>,
    ) -> Result<(), Error> {
        let mut workspace = Workspace::new();
        workspace.reserve(self.engine.backward_workspace(problem));
        self.engine.backward(problem.backward(saved, upstream, gradients)?, &mut workspace)
    }
}

/// Set it to a part of a name to run only those backends: a machine with a GPU may have no time for the others.
const CHOICE: &str = "INDUCER_ATTENTION_TEST_BACKENDS";

/// All backends that run on this machine. A further one joins by one line.
pub fn backends() -> Vec<Box<dyn Backend>> {
    let mut all: Vec<Box<dyn Backend>> = Vec::new();
    all.extend(Cpu::all().map(|cpu| -> Box<dyn Backend> { Box::new(cpu) }));
    #[cfg(feature = "emulator")]
    all.extend(
        [super::emulated::Emulated::default(), super::emulated::Emulated::hopper()]
            .map(|emulated| -> Box<dyn Backend> { Box::new(emulated) }),
    );
    #[cfg(feature = "cuda")]
    all.extend(super::gpu::Gpu::all().into_iter().map(|gpu| -> Box<dyn Backend> { Box::new(gpu) }));
    if let Ok(part) = std::env::var(CHOICE) {
        all.retain(|backend| backend.name().contains(&part));
        assert!(!all.is_empty(), "no {part}: no backend here is called what {CHOICE} says");
    }
    all
}
