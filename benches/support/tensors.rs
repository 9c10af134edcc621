//! The memory of a problem, and the calls that are timed.

use inducer_attention::cpu::{Engine, Workspace};
use inducer_attention::{
    Activation, Adapter, AdapterGradients, Attention, Element, Gradients, Inducer, KeyGradients, Outputs,
    Problem, Result, Saved, SavedOutput, TensorMut, TensorRef, Upstream, ValueGradients, VirtualKey,
    VirtualValue, bf16, f16,
};

use super::shapes::{Case, Layout};

/// Element types that random numbers can be rounded to.
pub(crate) trait Rounded: Element {
    /// The nearest value of the type.
    fn rounded(x: f32) -> Self;
}

impl Rounded for f32 {
    fn rounded(x: f32) -> Self {
        x
    }
}
impl Rounded for f16 {
    fn rounded(x: f32) -> Self {
        Self::from_f32(x)
    }
}
impl Rounded for bf16 {
    fn rounded(x: f32) -> Self {
        Self::from_f32(x)
    }
}

/// Uniform numbers of mean 0 and variance 1 (SplitMix64, so that runs are alike).
pub(crate) fn random<T: Rounded>(seed: u64, len: usize, scale: f32) -> Vec<T> {
    let mut state = seed.wrapping_mul(0xA076_1D64_78BD_642F);
    let mut next = || {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) >> 40) as f32 / (1u32 << 24) as f32
    };
    (0..len).map(|_| T::rounded((next() - 0.5) * 12f32.sqrt() * scale)).collect()
}

/// Weights of an adapter, or room for their gradients.
struct AdapterMemory {
    shape: [usize; 3],
    down_weight: Vec<f32>,
    down_bias: Vec<f32>,
    up_weight: Vec<f32>,
    up_bias: Vec<f32>,
}

impl AdapterMemory {
    fn new(seed: u64, heads: usize, head_dim: usize, rank: usize) -> Self {
        Self {
            shape: [heads, head_dim, rank],
            down_weight: random(seed, heads * head_dim * rank, 0.1),
            down_bias: random(seed + 1, heads * rank, 0.1),
            up_weight: random(seed + 2, heads * head_dim * rank, 0.1),
            up_bias: random(seed + 3, heads * head_dim, 0.1),
        }
    }

    fn adapter(&self) -> Result<Adapter<'_>> {
        let [h, d, r] = self.shape;
        Ok(Adapter {
            down_weight: TensorRef::new(&self.down_weight, [h, d, r])?,
            down_bias: TensorRef::new(&self.down_bias, [h, r])?,
            up_weight: TensorRef::new(&self.up_weight, [h, r, d])?,
            up_bias: TensorRef::new(&self.up_bias, [h, d])?,
            activation: Activation::Tanh,
        })
    }

    fn gradients(&mut self) -> Result<AdapterGradients<'_>> {
        let [h, d, r] = self.shape;
        Ok(AdapterGradients {
            down_weight: TensorMut::new(&mut self.down_weight, [h, d, r])?,
            down_bias: TensorMut::new(&mut self.down_bias, [h, r])?,
            up_weight: TensorMut::new(&mut self.up_weight, [h, r, d])?,
            up_bias: TensorMut::new(&mut self.up_bias, [h, d])?,
        })
    }
}

impl Case {
    /// Tensors with a row of head_dim elements per query, or key, and head.
    fn view<'a, T: Element>(&self, data: &'a [T]) -> Result<TensorRef<'a, 4>> {
        match self.layout {
            Layout::Bhnd => TensorRef::new(data, [self.batch, self.heads, self.n, self.head_dim]),
            Layout::Bnhd => TensorRef::bnhd(data, [self.batch, self.n, self.heads, self.head_dim]),
        }
    }

    fn view_mut<'a, T: Element>(&self, data: &'a mut [T]) -> Result<TensorMut<'a, 4>> {
        match self.layout {
            Layout::Bhnd => TensorMut::new(data, [self.batch, self.heads, self.n, self.head_dim]),
            Layout::Bnhd => TensorMut::bnhd(data, [self.batch, self.n, self.heads, self.head_dim]),
        }
    }

    fn lse_shape(&self) -> [usize; 3] {
        [self.batch, self.heads, self.n]
    }
}

/// What a problem reads.
pub(crate) struct Inputs<T> {
    case: Case,
    q: Vec<T>,
    k: Vec<T>,
    v: Vec<T>,
    d_o: Vec<T>,
    key: AdapterMemory,
    value: AdapterMemory,
}

impl<T: Rounded> Inputs<T> {
    /// Random tensors, scores of order 1.
    pub(crate) fn new(case: Case) -> Self {
        let Case { head_dim, n, heads, batch, rank, .. } = case;
        let len = batch * heads * n * head_dim;
        Self {
            case,
            q: random(1, len, 1.0),
            k: random(2, len, 1.0),
            v: random(3, len, 1.0),
            d_o: random(4, len, 1.0),
            key: AdapterMemory::new(10, heads, head_dim, rank),
            value: AdapterMemory::new(20, heads, head_dim, rank),
        }
    }

    /// The problem, with the residual key and value of inducer-tuning or as plain attention.
    ///
    /// # Errors
    /// None, for cases of valid sizes.
    pub(crate) fn problem(&self, inducer: bool) -> Result<Problem<'_>> {
        let case = &self.case;
        let mut attention = Attention::new(case.view(&self.q)?, case.view(&self.k)?, case.view(&self.v)?);
        attention.config = case.mask.config();
        if inducer {
            attention.inducer = Some(Inducer::new(
                VirtualKey::Residual(self.key.adapter()?),
                VirtualValue::Residual(self.value.adapter()?),
            ));
        }
        attention.validate()
    }
}

/// One contestant: its problem, with or without the inducer, and what it writes.
pub(crate) struct Contestant<T> {
    inducer: bool,
    o: Vec<T>,
    lse: Vec<f32>,
    d_q: Vec<T>,
    d_k: Vec<T>,
    d_v: Vec<T>,
    d_key: AdapterMemory,
    d_value: AdapterMemory,
    workspace: Workspace,
}

impl<T: Rounded> Contestant<T> {
    /// Reserves all that its calls write; to be called in the rayon pool that will make them.
    ///
    /// # Errors
    /// None, for cases of valid sizes.
    pub(crate) fn new(engine: Engine, inputs: &Inputs<T>, inducer: bool) -> Result<Self> {
        let Case { head_dim, n, heads, batch, rank, .. } = inputs.case;
        let zeros = || vec![T::rounded(0.0); batch * heads * n * head_dim];
        let problem = inputs.problem(inducer)?;
        let bytes = engine.forward_workspace(&problem).max(engine.backward_workspace(&problem));
        Ok(Self {
            inducer,
            o: zeros(),
            lse: vec![0.0; batch * heads * n],
            d_q: zeros(),
            d_k: zeros(),
            d_v: zeros(),
            d_key: AdapterMemory::new(0, heads, head_dim, rank),
            d_value: AdapterMemory::new(0, heads, head_dim, rank),
            workspace: Workspace::with_bytes(bytes),
        })
    }

    /// O and lse.
    ///
    /// # Errors
    /// None, for cases of valid sizes.
    pub(crate) fn forward(&mut self, engine: Engine, inputs: &Inputs<T>) -> Result<()> {
        let case = &inputs.case;
        let problem = inputs.problem(self.inducer)?;
        let o = case.view_mut(&mut self.o)?;
        let lse = TensorMut::new(&mut self.lse, case.lse_shape())?;
        engine.forward(problem.forward(Outputs::with_lse(o, lse))?, &mut self.workspace)
    }

    /// All gradients, from what [`forward`](Self::forward) has left.
    ///
    /// # Errors
    /// None, for cases of valid sizes.
    pub(crate) fn backward(&mut self, engine: Engine, inputs: &Inputs<T>) -> Result<()> {
        let case = &inputs.case;
        let problem = inputs.problem(self.inducer)?;
        let saved = Saved {
            output: SavedOutput::Output(case.view(&self.o)?),
            lse: TensorRef::new(&self.lse, case.lse_shape())?,
        };
        let upstream = Upstream::new(case.view(&inputs.d_o)?);
        let mut gradients = Gradients::new(
            case.view_mut(&mut self.d_q)?,
            case.view_mut(&mut self.d_k)?,
            case.view_mut(&mut self.d_v)?,
        );
        if self.inducer {
            gradients.key = KeyGradients::Residual(self.d_key.gradients()?);
            gradients.value = ValueGradients::Adapter(self.d_value.gradients()?);
        }
        engine.backward(problem.backward(saved, upstream, gradients)?, &mut self.workspace)
    }
}
