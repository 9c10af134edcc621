//! Autograd: how an operation with up to thirteen inputs and two outputs joins a candle graph without copying anything.
//!
//! A candle operation has at most three inputs and one output. Here the work is done outside of the graph and the graph
//! only carries it: nodes whose values are tokens of a few numbers connect inputs to outputs.
//!
//! ```text
//! q ──► Link ─► Link ─► … ─► Start ─► Output (O)
//!        ▲       ▲             └────► Output (lse)
//!        k       v   …
//! ```
//!
//! In a backward pass each `Output` leaves its gradient on the tape and passes on a token that says so; `Start`, which
//! candle visits after all outputs, runs the backward of the operation; each `Link` then hands its input the gradient that is
//! ready for it. The tape is kept as long as the graph, so a second backward pass works, and passes of several threads keep
//! apart by the thread that makes them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::{ThreadId, current};

use candle_core::{CpuStorage, CustomOp1, CustomOp2, DType, Device, Layout, Result, Shape, Tensor, bail};

use crate::call::{Call, Results, SavedTensors};
use crate::storage::{Buffer, CONTEXT};

/// Outputs that gradients come from.
const OUTPUTS: usize = 2;
const MAIN: usize = 0;
const LSE: usize = 1;

/// A call and what its backward needs.
struct Tape {
    call: Call,
    /// Set once the outputs exist. They are detached: the tape must not own the nodes that own it.
    saved: OnceLock<SavedTensors>,
    /// The inputs that take part in a graph.
    tracked: Vec<bool>,
    passes: Mutex<HashMap<ThreadId, Pass>>,
}

/// What one backward pass has left on the tape.
#[derive(Default)]
struct Pass {
    upstream: [Option<Tensor>; OUTPUTS],
    gradients: Vec<Option<Tensor>>,
}

impl Tape {
    fn pass<R>(&self, f: impl FnOnce(&mut Pass) -> R) -> R {
        // A pass overwrites what it reads, so what a panicking thread left does no harm.
        let mut passes = self.passes.lock().unwrap_or_else(PoisonError::into_inner);
        f(passes.entry(current().id()).or_default())
    }
}

/// Puts the outputs of a call on the graph of its inputs. Returns the main output and lse.
pub(crate) fn record(call: Call, sources: &[&Tensor], results: Results) -> Result<(Tensor, Tensor)> {
    let tracked = sources.iter().map(|t| t.track_op()).collect();
    let tape = Tape { call, saved: OnceLock::new(), tracked, passes: Mutex::default() };
    connect(&Arc::new(tape), sources, results)
}

fn connect(tape: &Arc<Tape>, sources: &[&Tensor], results: Results) -> Result<(Tensor, Tensor)> {
    let Results { main, lse: Some(lse), attn } = results else {
        bail!("{CONTEXT}: the backward needs lse");
    };
    let mut token = Tensor::zeros(1, DType::F32, &Device::Cpu)?;
    for (index, source) in sources.iter().enumerate().filter(|(index, _)| tape.tracked[*index]) {
        token = source.apply_op2(&token, Link { tape: tape.clone(), index })?;
    }
    let start = token.apply_op1(Start { tape: tape.clone() })?;
    let output = |index: usize, buffer: Buffer| {
        let value = Mutex::new(Some(buffer));
        start.apply_op1(Output { tape: tape.clone(), index, value })
    };
    let (main, lse) = (output(MAIN, main)?, output(LSE, lse)?);
    let saved = SavedTensors { main: main.detach(), lse: lse.detach(), attn: attn.map(Buffer::into_tensor) };
    if tape.saved.set(saved).is_err() {
        bail!("{CONTEXT}: outputs recorded twice");
    }
    Ok((main, lse))
}

/// Connects one input: its gradient is what the tape holds for it.
struct Link {
    tape: Arc<Tape>,
    index: usize,
}

impl CustomOp2 for Link {
    fn name(&self) -> &'static str {
        "inducer-attention-input"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok((CpuStorage::F32(vec![0.0]), 1.into()))
    }

    fn bwd(
        &self,
        source: &Tensor,
        token: &Tensor,
        _: &Tensor,
        _: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let gradient = self.tape.pass(|pass| pass.gradients.get_mut(self.index).and_then(Option::take));
        let Some(gradient) = gradient else {
            bail!("{CONTEXT}: the gradient of input {} is not there", self.index);
        };
        let gradient = gradient.to_dtype(source.dtype())?;
        Ok((Some(gradient), if token.track_op() { Some(token.zeros_like()?) } else { None }))
    }
}

/// Runs the backward of the operation.
struct Start {
    tape: Arc<Tape>,
}

impl CustomOp1 for Start {
    fn name(&self) -> &'static str {
        "inducer-attention"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok((CpuStorage::F32(vec![0.0; OUTPUTS]), OUTPUTS.into()))
    }

    fn bwd(&self, token: &Tensor, _: &Tensor, arrived: &Tensor) -> Result<Option<Tensor>> {
        let tape = &*self.tape;
        let Some(saved) = tape.saved.get() else { bail!("{CONTEXT}: backward before forward") };
        let upstream = tape.pass(|pass| std::mem::take(&mut pass.upstream));
        // Only what this pass brought: a pass that failed midway may have left a gradient behind.
        let arrived = arrived.to_vec1::<f32>()?;
        let upstream = |index: usize| upstream[index].as_ref().filter(|_| arrived[index] != 0.0);
        let gradients = tape.call.backward(saved, upstream(MAIN), upstream(LSE), &tape.tracked)?;
        tape.pass(|pass| pass.gradients = gradients);
        Ok(Some(token.zeros_like()?))
    }
}

/// Holds an output's value and takes its gradient.
struct Output {
    tape: Arc<Tape>,
    index: usize,
    value: Mutex<Option<Buffer>>,
}

impl CustomOp1 for Output {
    fn name(&self) -> &'static str {
        "inducer-attention-output"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        match self.value.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(buffer) => Ok(buffer.into_parts()),
            None => bail!("{CONTEXT}: an output was taken twice"),
        }
    }

    fn bwd(&self, start: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        self.tape.pass(|pass| pass.upstream[self.index] = Some(gradient.clone()));
        let mut arrived = [0f32; OUTPUTS];
        arrived[self.index] = 1.0;
        Ok(Some(Tensor::new(&arrived, start.device())?))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Var;

    use super::*;
    use crate::call::sources;
    use crate::{AttentionOptions, VirtualTokens};

    #[test]
    fn dropping_the_outputs_drops_the_tape() -> Result<()> {
        let x = Var::rand(-1f32, 1.0, (1, 2, 5, 4), &Device::Cpu)?;
        let (tokens, options) = (
            VirtualTokens::default(),
            AttentionOptions { save_attention: true, ..AttentionOptions::causal() },
        );
        let call = Call::new(&x, &x, &x, &tokens, &options)?;
        let results = call.forward(true)?;
        let inputs: Vec<&Tensor> = sources(&x, &x, &x, &tokens).into_iter().map(|(_, t)| t).collect();
        let tape =
            Arc::new(Tape { call, saved: OnceLock::new(), tracked: vec![true; 3], passes: Mutex::default() });
        let outputs = connect(&tape, &inputs, results)?;
        outputs.0.sum_all()?.backward()?;
        let weak = Arc::downgrade(&tape);
        drop(tape);
        assert!(weak.upgrade().is_some());
        drop(outputs);
        assert!(weak.upgrade().is_none());
        Ok(())
    }
}
