//! A problem in the card's memory, several times over, and the calls that are timed.

use std::error::Error;
use std::sync::Arc;

use inducer_attention::cuda::cudarc::driver::result::{self, DriverError};
use inducer_attention::cuda::cudarc::driver::{CudaSlice, CudaStream, DevicePtr};
use inducer_attention::cuda::{Engine, Lists};
use inducer_attention::{
    Activation, Adapter, AdapterGradients, Attention, DType, Gradients, Inducer, KeyGradients, Outputs,
    Result as AttentionResult, Saved, SavedOutput, TensorMut, TensorRef, Upstream, ValueGradients,
    VirtualKey, VirtualValue, bf16, f16,
};

use crate::device::Device;
use crate::grid;
use crate::support::shapes::{Case, Pass};
use crate::support::tensors::random;

/// Sets of tensors that calls rotate through hold together this many times the second-level cache, so that a call finds nothing
/// of its last turn there.
const CACHES: usize = 3;

/// Most sets.
const MAX_SETS: usize = 32;

/// Random numbers that all tensors are filled from.
const POOL: usize = 1 << 22;

/// How far apart in the pool neighbouring tensors begin, in bytes: no whole number of rows.
const STEP: usize = 4097 * 16;

/// Addresses of the tensors of one call.
#[derive(Clone, Copy, Debug, Default)]
struct Set {
    q: u64,
    k: u64,
    v: u64,
    o: u64,
    lse: u64,
    d_o: u64,
    d_q: u64,
    d_k: u64,
    d_v: u64,
}

/// Addresses of an adapter's tensors.
#[derive(Clone, Copy, Debug, Default)]
struct Weights {
    down_weight: u64,
    down_bias: u64,
    up_weight: u64,
    up_bias: u64,
}

/// A case in the card's memory.
pub(crate) struct Problem<'d> {
    device: &'d Device,
    engine: &'d Engine,
    case: Case,
    /// What addresses point into: one allocation each, so that a memory checker sees a step over a tensor's end.
    #[allow(dead_code, reason = "kept until the calls are done with it")]
    memory: Vec<CudaSlice<u8>>,
    sets: Vec<Set>,
    key: Weights,
    value: Weights,
    d_key: Weights,
    d_value: Weights,
    /// Address and size.
    workspace: (u64, usize),
}

/// Allocates; what it hands out is not initialised.
struct Allocator<'d> {
    stream: &'d Arc<CudaStream>,
    memory: Vec<CudaSlice<u8>>,
}

impl Allocator<'_> {
    fn take(&mut self, bytes: usize) -> Result<u64, DriverError> {
        // SAFETY: inputs are filled before the first call, and calls fill outputs.
        let slice = unsafe { self.stream.alloc::<u8>(bytes) }?;
        let address = slice.device_ptr(self.stream).0;
        self.memory.push(slice);
        Ok(address)
    }

    fn set(&mut self, case: &Case) -> Result<Set, DriverError> {
        let rows = case.batch * case.heads * case.n;
        let tensor = rows * case.head_dim * case.dtype.size();
        Ok(Set {
            q: self.take(tensor)?,
            k: self.take(tensor)?,
            v: self.take(tensor)?,
            o: self.take(tensor)?,
            lse: self.take(rows * 4)?,
            d_o: self.take(tensor)?,
            d_q: self.take(tensor)?,
            d_k: self.take(tensor)?,
            d_v: self.take(tensor)?,
        })
    }

    fn weights(&mut self, case: &Case) -> Result<Weights, DriverError> {
        let matrix = case.heads * case.head_dim * case.rank * 4;
        Ok(Weights {
            down_weight: self.take(matrix)?,
            down_bias: self.take(case.heads * case.rank * 4)?,
            up_weight: self.take(matrix)?,
            up_bias: self.take(case.heads * case.head_dim * 4)?,
        })
    }
}

impl<'d> Problem<'d> {
    /// Allocates and fills the memory: as many sets as the rotation needs, or one.
    ///
    /// # Errors
    /// The driver's, such as too little memory.
    pub(crate) fn new(
        device: &'d Device,
        engine: &'d Engine,
        case: Case,
        rotate: bool,
    ) -> Result<Self, Box<dyn Error>> {
        let set_bytes = grid::bytes(&case, Pass::Backward, false) as usize;
        let (free, _) = device.context.mem_get_info()?;
        let fit = free / 4 * 3 / set_bytes.max(1);
        let wanted = (CACHES * device.card.l2_bytes).div_ceil(set_bytes.max(1)) + 1;
        let count = if rotate { wanted.min(MAX_SETS).min(fit).max(1) } else { 1 };

        let mut allocator = Allocator { stream: &device.stream, memory: Vec::new() };
        let sets = (0..count).map(|_| allocator.set(&case)).collect::<Result<_, _>>()?;
        let [key, value, d_key, d_value] = [(); 4].map(|()| allocator.weights(&case));
        let (key, value, d_key, d_value) = (key?, value?, d_key?, d_value?);
        let workspace = (0, 0);
        let mut problem =
            Self { device, engine, case, memory: Vec::new(), sets, key, value, d_key, d_value, workspace };
        let bytes = problem.workspace_bytes()?;
        problem.workspace = (allocator.take(bytes.max(1))?, bytes);
        problem.memory = allocator.memory;
        match case.dtype {
            DType::F32 => problem.fill(&random::<f32>(1, POOL, 1.0))?,
            DType::F16 => problem.fill(&random::<f16>(1, POOL, 1.0))?,
            DType::BF16 => problem.fill(&random::<bf16>(1, POOL, 1.0))?,
        }
        Ok(problem)
    }

    /// Random inputs, scores of order 1: the tensors from one pool, each from another place of it.
    fn fill<T: bytemuck::Pod>(&self, pool: &[T]) -> Result<(), Box<dyn Error>> {
        let bytes: &[u8] = bytemuck::cast_slice(pool);
        let stream = &self.device.stream;
        let on_device = stream.clone_htod(bytes)?;
        let from = on_device.device_ptr(stream).0;
        let tensor = self.case.batch * self.case.heads * self.case.n * self.case.head_dim * size_of::<T>();
        let mut offset = 0;
        for set in &self.sets {
            for to in [set.q, set.k, set.v, set.d_o] {
                let mut done = 0;
                while done < tensor {
                    let part = (tensor - done).min(bytes.len() - offset);
                    let (to, from) = (to + done as u64, from + offset as u64);
                    // SAFETY: both ranges lie in memory of this stream that lives until the copy has been enqueued, and is
                    // freed on the same stream.
                    unsafe { result::memcpy_dtod_async(to, from, part, stream.cu_stream()) }?;
                    done += part;
                    offset = (offset + part) % bytes.len();
                }
                offset = (offset + STEP) % bytes.len();
            }
        }
        let Case { heads, head_dim, rank, .. } = self.case;
        let matrix = heads * head_dim * rank;
        for (seed, w) in [(10, self.key), (20, self.value)] {
            for (i, (to, count)) in [
                (w.down_weight, matrix),
                (w.down_bias, heads * rank),
                (w.up_weight, matrix),
                (w.up_bias, heads * head_dim),
            ]
            .into_iter()
            .enumerate()
            {
                let numbers = random::<f32>(seed + i as u64, count, 0.1);
                // SAFETY: the memory holds as many numbers; the driver copies pageable memory before it returns.
                unsafe { result::memcpy_htod_async(to, &numbers, stream.cu_stream()) }?;
            }
        }
        stream.synchronize()?;
        Ok(())
    }

    /// The case.
    pub(crate) fn case(&self) -> Case {
        self.case
    }

    /// The card.
    pub(crate) fn device(&self) -> &'d Device {
        self.device
    }

    /// The kernels.
    pub(crate) fn engine(&self) -> &'d Engine {
        self.engine
    }

    /// How many sets there are to rotate through.
    pub(crate) fn sets(&self) -> usize {
        self.sets.len()
    }

    /// Enqueues one pass over one set, with the residual key and value of inducer-tuning or as plain attention. The backward
    /// takes what a forward has left in the set.
    ///
    /// # Errors
    /// The driver's.
    pub(crate) fn enqueue(&self, pass: Pass, set: usize, inducer: bool) -> AttentionResult<()> {
        let set = self.sets[set];
        let attention = self.attention(&set, inducer)?;
        let problem = attention.validate()?;
        let lists = Lists::of(&problem);
        let stream = &self.device.stream;
        match pass {
            Pass::Forward => {
                let outputs = Outputs::with_lse(self.tensor_mut(set.o)?, self.f32_mut(set.lse, self.rows())?);
                // SAFETY: the memory lives as long as this problem, which frees it on this stream; there are no lists.
                unsafe { self.engine.forward(problem.forward(outputs)?, &lists, stream) }
            }
            Pass::Backward => {
                let output = SavedOutput::Output(self.tensor(set.o)?);
                let saved = Saved { output, lse: self.f32(set.lse, self.rows())? };
                let (d_q, d_k) = (self.tensor_mut(set.d_q)?, self.tensor_mut(set.d_k)?);
                let mut gradients = Gradients::new(d_q, d_k, self.tensor_mut(set.d_v)?);
                if inducer {
                    gradients.key = KeyGradients::Residual(self.adapter_gradients(&self.d_key)?);
                    gradients.value = ValueGradients::Adapter(self.adapter_gradients(&self.d_value)?);
                }
                let upstream = Upstream::new(self.tensor(set.d_o)?);
                let call = problem.backward(saved, upstream, gradients)?;
                let (workspace, bytes) = self.workspace;
                // SAFETY: as above; calls on one stream may share the workspace.
                unsafe { self.engine.backward(call, &lists, workspace, bytes, stream) }
            }
        }
    }

    /// Bytes of scratch memory of a backward.
    fn workspace_bytes(&self) -> AttentionResult<usize> {
        let attention = self.attention(&self.sets[0], true)?;
        let problem = attention.validate()?;
        Ok(self.engine.backward_workspace(&problem, &Lists::of(&problem)))
    }

    fn attention(&self, set: &Set, inducer: bool) -> AttentionResult<Attention<'_>> {
        let mut attention = Attention::new(self.tensor(set.q)?, self.tensor(set.k)?, self.tensor(set.v)?);
        attention.config = self.case.mask.config();
        if inducer {
            attention.inducer = Some(Inducer::new(
                VirtualKey::Residual(self.adapter(&self.key)?),
                VirtualValue::Residual(self.adapter(&self.value)?),
            ));
        }
        Ok(attention)
    }

    fn adapter(&self, w: &Weights) -> AttentionResult<Adapter<'_>> {
        let Case { heads: h, head_dim: d, rank: r, .. } = self.case;
        Ok(Adapter {
            down_weight: self.f32(w.down_weight, [h, d, r])?,
            down_bias: self.f32(w.down_bias, [h, r])?,
            up_weight: self.f32(w.up_weight, [h, r, d])?,
            up_bias: self.f32(w.up_bias, [h, d])?,
            activation: Activation::Tanh,
        })
    }

    fn adapter_gradients(&self, w: &Weights) -> AttentionResult<AdapterGradients<'_>> {
        let Case { heads: h, head_dim: d, rank: r, .. } = self.case;
        Ok(AdapterGradients {
            down_weight: self.f32_mut(w.down_weight, [h, d, r])?,
            down_bias: self.f32_mut(w.down_bias, [h, r])?,
            up_weight: self.f32_mut(w.up_weight, [h, r, d])?,
            up_bias: self.f32_mut(w.up_bias, [h, d])?,
        })
    }

    /// Of lse.
    fn rows(&self) -> [usize; 3] {
        [self.case.batch, self.case.heads, self.case.n]
    }

    /// Of Q.
    fn shape(&self) -> [usize; 4] {
        [self.case.batch, self.case.heads, self.case.n, self.case.head_dim]
    }

    fn ordinal(&self) -> u16 {
        self.device.context.ordinal() as u16
    }

    fn tensor(&self, address: u64) -> AttentionResult<TensorRef<'_, 4>> {
        let shape = self.shape();
        // SAFETY: this and the next three: what `Allocator` took for the tensor has room for the shape, lives as long as this
        // problem, and is read and written by calls on one stream alone.
        unsafe {
            TensorRef::from_device_parts(address, self.ordinal(), self.case.dtype, shape, strides(shape))
        }
    }

    fn tensor_mut(&self, address: u64) -> AttentionResult<TensorMut<'_, 4>> {
        let shape = self.shape();
        // SAFETY: as above.
        unsafe {
            TensorMut::from_device_parts(address, self.ordinal(), self.case.dtype, shape, strides(shape))
        }
    }

    fn f32<const R: usize>(&self, address: u64, shape: [usize; R]) -> AttentionResult<TensorRef<'_, R>> {
        // SAFETY: as above.
        unsafe { TensorRef::from_device_parts(address, self.ordinal(), DType::F32, shape, strides(shape)) }
    }

    fn f32_mut<const R: usize>(&self, address: u64, shape: [usize; R]) -> AttentionResult<TensorMut<'_, R>> {
        // SAFETY: as above.
        unsafe { TensorMut::from_device_parts(address, self.ordinal(), DType::F32, shape, strides(shape)) }
    }
}

/// Row-major.
fn strides<const R: usize>(shape: [usize; R]) -> [usize; R] {
    let mut strides = [1; R];
    for i in (1..R).rev() {
        strides[i - 1] = strides[i] * shape[i];
    }
    strides
}
