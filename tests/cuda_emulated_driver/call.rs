//! A small problem with an inducer, forward and backward, on any memory: the device's through scopes, and this machine's for the
//! CPU engine.

use std::marker::PhantomData;
use std::sync::Arc;

use inducer_attention::cuda::cudarc::driver::{CudaSlice, CudaStream};
use inducer_attention::cuda::{DeviceLists, Engine, Scope, Workspace};
use inducer_attention::{
    Activation, Adapter, AdapterGradients, Attention, Backward, Forward, Gradients, Inducer, KeyGradients,
    Lengths, Outputs, Problem, Result, Saved, SavedOutput, TensorMut, TensorRef, Upstream, ValueGradients,
    VirtualKey, VirtualValue, cpu,
};

use crate::common::case::normal;

pub(crate) const BATCH: usize = 2;
pub(crate) const HEADS: usize = 2;
pub(crate) const KV_HEADS: usize = 1;
/// Rows and keys.
pub(crate) const N: usize = 70;
pub(crate) const HEAD_DIM: usize = 64;
const RANK: usize = 5;

/// Elements of Q, K, V, dO, and of the adapters of key and value.
const INPUTS: [usize; 12] = {
    let (q, kv) = (BATCH * HEADS * N * HEAD_DIM, BATCH * KV_HEADS * N * HEAD_DIM);
    let [a, b, c, d] = ADAPTER;
    [q, kv, kv, q, a, b, c, d, a, b, c, d]
};
/// Elements of O, lse, dQ, dK, dV, and of the adapters' gradients.
const OUTPUTS: [usize; 13] = {
    let [q, kv, _, _, a, b, c, d, ..] = INPUTS;
    [q, BATCH * HEADS * N, q, kv, kv, a, b, c, d, a, b, c, d]
};
const ADAPTER: [usize; 4] =
    [HEADS * HEAD_DIM * RANK, HEADS * RANK, HEADS * RANK * HEAD_DIM, HEADS * HEAD_DIM];
const Q: [usize; 4] = [BATCH, HEADS, N, HEAD_DIM];
const KV: [usize; 4] = [BATCH, KV_HEADS, N, HEAD_DIM];
const LSE: [usize; 3] = [BATCH, HEADS, N];

/// What turns slices of some memory into tensors.
trait Lender<'s> {
    type Slice: 's;
    fn read<const R: usize>(&self, slice: &'s Self::Slice, shape: [usize; R]) -> Result<TensorRef<'_, R>>;
    fn write<const R: usize>(
        &self,
        slice: &'s mut Self::Slice,
        shape: [usize; R],
    ) -> Result<TensorMut<'_, R>>;
}

impl<'s> Lender<'s> for Scope<'s> {
    type Slice = CudaSlice<f32>;
    fn read<const R: usize>(&self, slice: &'s Self::Slice, shape: [usize; R]) -> Result<TensorRef<'_, R>> {
        Scope::read(self, slice, shape)
    }
    fn write<const R: usize>(
        &self,
        slice: &'s mut Self::Slice,
        shape: [usize; R],
    ) -> Result<TensorMut<'_, R>> {
        Scope::write(self, slice, shape)
    }
}

/// This machine's memory.
struct Host<'s>(PhantomData<&'s ()>);

impl<'s> Lender<'s> for Host<'s> {
    type Slice = Vec<f32>;
    fn read<const R: usize>(&self, slice: &'s Vec<f32>, shape: [usize; R]) -> Result<TensorRef<'_, R>> {
        TensorRef::new(slice, shape)
    }
    fn write<const R: usize>(&self, slice: &'s mut Vec<f32>, shape: [usize; R]) -> Result<TensorMut<'_, R>> {
        TensorMut::new(slice, shape)
    }
}

fn adapter<'x, 's, L: Lender<'s>>(lender: &'x L, slices: &'s [L::Slice]) -> Result<Adapter<'x>> {
    Ok(Adapter {
        down_weight: lender.read(&slices[0], [HEADS, HEAD_DIM, RANK])?,
        down_bias: lender.read(&slices[1], [HEADS, RANK])?,
        up_weight: lender.read(&slices[2], [HEADS, RANK, HEAD_DIM])?,
        up_bias: lender.read(&slices[3], [HEADS, HEAD_DIM])?,
        activation: Activation::Tanh,
    })
}

fn attention<'x, 's, L: Lender<'s>>(lender: &'x L, inputs: &'s [L::Slice]) -> Result<Attention<'x>> {
    let [q, k, v] = [(0, Q), (1, KV), (2, KV)].map(|(i, shape)| lender.read(&inputs[i], shape));
    let mut attention = Attention::new(q?, k?, v?);
    attention.config.causal = true;
    let (key, value) = (adapter(lender, &inputs[4..8])?, adapter(lender, &inputs[8..12])?);
    attention.inducer = Some(Inducer::new(VirtualKey::Residual(key), VirtualValue::Residual(value)));
    Ok(attention)
}

fn forward<'s, L: Lender<'s>>(
    lender: &L,
    (inputs, outputs): (&'s [L::Slice], &'s mut [L::Slice]),
    lengths: Lengths<'_>,
    run: impl FnOnce(&Problem<'_>, Forward<'_, '_, '_>) -> Result<()>,
) -> Result<()> {
    let mut attention = attention(lender, inputs)?;
    attention.lengths = lengths;
    let [o, lse, ..] = outputs else { unreachable!("there are 13 outputs") };
    let problem = attention.validate()?;
    run(&problem, problem.forward(Outputs::with_lse(lender.write(o, Q)?, lender.write(lse, LSE)?))?)
}

fn backward<'s, L: Lender<'s>>(
    lender: &L,
    (inputs, outputs): (&'s [L::Slice], &'s mut [L::Slice]),
    lengths: Lengths<'_>,
    run: impl FnOnce(&Problem<'_>, Backward<'_, '_, '_>) -> Result<()>,
) -> Result<()> {
    let mut attention = attention(lender, inputs)?;
    attention.lengths = lengths;
    let (done, gradients) = outputs.split_at_mut(2);
    let output = SavedOutput::Output(lender.read(&done[0], Q)?);
    let saved = Saved { output, lse: lender.read(&done[1], LSE)? };
    let [d_q, d_k, d_v, adapters @ ..] = gradients else { unreachable!("there are 11 gradients") };
    let mut all = Gradients::new(lender.write(d_q, Q)?, lender.write(d_k, KV)?, lender.write(d_v, KV)?);
    let (key, value) = adapters.split_at_mut(4);
    let adapter = |slices: &'s mut [L::Slice]| {
        let [a, b, c, d] = slices else { unreachable!("an adapter has four tensors") };
        Ok(AdapterGradients {
            down_weight: lender.write(a, [HEADS, HEAD_DIM, RANK])?,
            down_bias: lender.write(b, [HEADS, RANK])?,
            up_weight: lender.write(c, [HEADS, RANK, HEAD_DIM])?,
            up_bias: lender.write(d, [HEADS, HEAD_DIM])?,
        })
    };
    all.key = KeyGradients::Residual(adapter(key)?);
    all.value = ValueGradients::Adapter(adapter(value)?);
    let d_o = lender.read(&inputs[3], Q)?;
    let problem = attention.validate()?;
    run(&problem, problem.backward(saved, Upstream::new(d_o), all)?)
}

/// Values of all inputs.
pub(crate) fn values(seed: u64) -> Vec<Vec<f32>> {
    let value = |tensor: usize, i: usize| normal(seed + tensor as u64, "call", i as u64) as f32;
    let scale = |tensor: usize| if tensor < 4 { 1.0 } else { 0.2 };
    INPUTS.iter().enumerate().map(|(t, &n)| (0..n).map(|i| scale(t) * value(t, i)).collect()).collect()
}

/// What the CPU engine computes; `lengths` are those of the keys.
pub(crate) fn on_cpu(inputs: &[Vec<f32>], lengths: [i32; BATCH]) -> Vec<Vec<f32>> {
    let lengths = Lengths::Padded { query_lengths: None, key_lengths: Some(&lengths), key_starts: None };
    let mut outputs: Vec<Vec<f32>> = OUTPUTS.iter().map(|&n| vec![f32::NAN; n]).collect();
    let engine = cpu::Engine::detect();
    let mut workspace = cpu::Workspace::new();
    forward(&Host(PhantomData), (inputs, &mut outputs), lengths, |problem, call| {
        workspace.reserve(engine.forward_workspace(problem));
        engine.forward(call, &mut workspace)
    })
    .expect("a forward");
    backward(&Host(PhantomData), (inputs, &mut outputs), lengths, |problem, call| {
        workspace.reserve(engine.backward_workspace(problem));
        engine.backward(call, &mut workspace)
    })
    .expect("a backward");
    outputs
}

/// Bytes of workspace, more than a backward needs.
const WORKSPACE: usize = 1 << 21;

/// The problem on the device. Lengths of the keys are known to the device alone.
pub(crate) struct Call {
    pub(crate) inputs: Vec<CudaSlice<f32>>,
    pub(crate) outputs: Vec<CudaSlice<f32>>,
    pub(crate) lists: DeviceLists,
    pub(crate) workspace: Workspace,
}

impl Call {
    /// Memory that belongs to `stream`, with values.
    pub(crate) fn new(stream: &Arc<CudaStream>, inputs: &[Vec<f32>], lengths: [i32; BATCH]) -> Self {
        let copy = |values: &Vec<f32>| stream.clone_htod(values).expect("memory of the device");
        let lengths = stream.clone_htod(&lengths).expect("memory of the device");
        Self {
            inputs: inputs.iter().map(copy).collect(),
            outputs: OUTPUTS.map(|n| copy(&vec![f32::NAN; n])).into(),
            lists: DeviceLists { key_lengths: Some(lengths), ..DeviceLists::default() },
            workspace: Workspace::new(stream, WORKSPACE).expect("memory of the device"),
        }
    }

    pub(crate) fn forward(&mut self, engine: &Engine, stream: &Arc<CudaStream>) -> Result<()> {
        let Self { inputs, outputs, lists, .. } = self;
        let scope = Scope::new(engine, stream)?;
        forward(&scope, (inputs, outputs), Lengths::Full, |_, call| scope.forward(call, lists))
    }

    pub(crate) fn backward(&mut self, engine: &Engine, stream: &Arc<CudaStream>) -> Result<()> {
        let Self { inputs, outputs, lists, workspace } = self;
        let scope = Scope::new(engine, stream)?;
        backward(&scope, (inputs, outputs), Lengths::Full, |_, call| scope.backward(call, lists, workspace))
    }

    /// Enqueues forward and backward.
    pub(crate) fn run(&mut self, engine: &Engine, stream: &Arc<CudaStream>) {
        self.forward(engine, stream).expect("a forward");
        self.backward(engine, stream).expect("a backward");
    }

    /// Overwrites the inputs.
    pub(crate) fn set_inputs(&mut self, stream: &Arc<CudaStream>, inputs: &[Vec<f32>]) {
        for (slice, values) in self.inputs.iter_mut().zip(inputs) {
            stream.memcpy_htod(values, slice).expect("a copy to the device");
        }
    }

    /// O, lse and all gradients, fetched on `stream`.
    pub(crate) fn results(&self, stream: &Arc<CudaStream>) -> Vec<Vec<f32>> {
        let fetch = |slice| stream.clone_dtoh(slice).expect("the device has computed");
        self.outputs.iter().map(fetch).collect()
    }
}

/// Fails where results differ by more than f32 sums in another order do.
pub(crate) fn assert_close(got: &[Vec<f32>], expected: &[Vec<f32>]) {
    for (tensor, (got, expected)) in got.iter().zip(expected).enumerate() {
        let scale = expected.iter().filter(|x| x.is_finite()).fold(1f32, |m, x| m.max(x.abs()));
        for (i, (a, b)) in got.iter().zip(expected).enumerate() {
            let close = a.to_bits() == b.to_bits() || (a - b).abs() <= 2e-5 * scale;
            assert!(close, "element {i} of result {tensor}: {a:e}, not {b:e}");
        }
    }
}

/// Results as bits, to be compared exactly.
pub(crate) fn bits(results: &[Vec<f32>]) -> Vec<Vec<u32>> {
    results.iter().map(|t| t.iter().map(|x| x.to_bits()).collect()).collect()
}
