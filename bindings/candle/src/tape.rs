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
//!
//! Tokens lie on the device of the inputs, as candle wants it, and on a GPU none is read back: nothing waits for the device.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::{ThreadId, current};

use candle_core::backend::{BackendDevice, BackendStorage};
use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, CustomOp2, DType, Layout, Result, Shape, Storage, Tensor, bail,
};

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
    let Some(device) = sources.first().map(|t| t.device()) else { bail!("{CONTEXT}: no inputs") };
    let mut token = Tensor::zeros(1, DType::F32, device)?;
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

    fn cuda_fwd(
        &self,
        source: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        zeros_like_token(source, 1)
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

    fn cuda_fwd(&self, token: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        zeros_like_token(token, OUTPUTS)
    }

    fn bwd(&self, token: &Tensor, _: &Tensor, arrived: &Tensor) -> Result<Option<Tensor>> {
        let tape = &*self.tape;
        let Some(saved) = tape.saved.get() else { bail!("{CONTEXT}: backward before forward") };
        let upstream = tape.pass(|pass| std::mem::take(&mut pass.upstream));
        let [main, lse] = of_this_pass(upstream, arrived)?;
        let gradients = tape.call.backward(saved, main.as_ref(), lse.as_ref(), &tape.tracked)?;
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
            Some(buffer) => match buffer.into_parts() {
                (Storage::Cpu(storage), shape) => Ok((storage, shape)),
                _ => bail!("{CONTEXT}: an output is not on the device of the inputs"),
            },
            None => bail!("{CONTEXT}: an output was taken twice"),
        }
    }

    fn cuda_fwd(&self, _: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        match self.value.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(buffer) => match buffer.into_parts() {
                (Storage::Cuda(storage), shape) => Ok((storage, shape)),
                _ => bail!("{CONTEXT}: an output is not on the device of the inputs"),
            },
            None => bail!("{CONTEXT}: an output was taken twice"),
        }
    }

    fn bwd(&self, start: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        self.tape.pass(|pass| pass.upstream[self.index] = Some(gradient.clone()));
        // Made on the device: a copy from the host might wait.
        let one = Tensor::ones(1, DType::F32, start.device())?;
        Ok(Some(one.pad_with_zeros(0, self.index, OUTPUTS - 1 - self.index)?))
    }
}

/// A token of zeros in CUDA memory.
fn zeros_like_token(near: &CudaStorage, n: usize) -> Result<(CudaStorage, Shape)> {
    let shape = Shape::from(n);
    Ok((near.device().zeros_impl(&shape, DType::F32)?, shape))
}

/// The upstream gradients that this pass brought; a pass that failed midway may have left the other one behind. `arrived` has a 1 for
/// each that this pass brought, and there is at least one.
fn of_this_pass(upstream: [Option<Tensor>; OUTPUTS], arrived: &Tensor) -> Result<[Option<Tensor>; OUTPUTS]> {
    let [Some(main), Some(lse)] = upstream else { return Ok(upstream) };
    if arrived.device().is_cpu() {
        let arrived = arrived.to_vec1::<f32>()?;
        return Ok([Some(main).filter(|_| arrived[MAIN] != 0.0), Some(lse).filter(|_| arrived[LSE] != 0.0)]);
    }
    Ok([Some(or_zeros(&main, arrived, MAIN)?), Some(or_zeros(&lse, arrived, LSE)?)])
}

/// The gradient if the flag at `index` is 1, zeros if it is 0, without reading the flag on the host.
fn or_zeros(gradient: &Tensor, flags: &Tensor, index: usize) -> Result<Tensor> {
    let flag = flags.narrow(0, index, 1)?.to_dtype(DType::U8)?;
    let flag = flag.reshape(vec![1; gradient.rank()])?.broadcast_as(gradient.shape())?;
    flag.where_cond(gradient, &gradient.zeros_like()?)
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

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

    #[test]
    fn flags_choose_between_a_gradient_and_zeros() -> Result<()> {
        let gradient = Tensor::new(&[[1f32, f32::NAN, 3.0]], &Device::Cpu)?;
        let flags = Tensor::new(&[0f32, 1.0], &Device::Cpu)?;
        assert_eq!(or_zeros(&gradient, &flags, 0)?.to_vec2::<f32>()?, [[0.0; 3]]);
        let kept = or_zeros(&gradient, &flags, 1)?.to_vec2::<f32>()?;
        assert!(kept[0][1].is_nan());
        assert!(kept[0][0] > 0.9 && kept[0][2] > 2.9);
        // One gradient alone is of this pass; of two, what the flags say.
        let one = of_this_pass([None, Some(gradient.clone())], &flags)?;
        assert!(one[MAIN].is_none() && one[LSE].is_some());
        let both = of_this_pass([Some(gradient.clone()), Some(gradient)], &flags)?;
        assert!(both[MAIN].is_none() && both[LSE].is_some());
        Ok(())
    }
}
