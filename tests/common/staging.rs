//! Copies of a call's tensors for backends with memory of their own: each tensor in an allocation of its own, with canaries in
//! all that it does not cover, in the caller's strides where the kernels take them.

use inducer_attention::{
    Adapter, AdapterGradients, Attention, Backward, DType, DownProjection, DownProjectionGradients, Error,
    Forward, Gradients, KeyGradients, Memory, Outputs, PrefixGradients, Problem, Saved, SavedOutput,
    TensorMut, TensorRef, Upstream, ValueGradients, VirtualKey, VirtualValue,
};

/// A NaN as bf16, f16 and, twice, f32.
const CANARY: u64 = 0x7fdd_7fdd_7fdd_7fdd;

/// Rows that are copied in chunks begin at multiples of this many bytes.
const CHUNK: usize = 16;

/// Memory that a backend's kernels reach.
pub trait Device {
    /// What views of it say.
    fn memory(&self) -> Memory;

    /// Takes over the contents of `piece`, of which the tensor covers bytes `first..first + bytes`, and returns the address of
    /// its first byte for the kernels.
    fn hold(&mut self, piece: &[u64], first: usize, bytes: usize, writable: bool) -> u64;

    /// Brings back the piece at an address that [`hold`](Self::hold) returned.
    fn fetch(&mut self, address: u64, piece: &mut [u64]);
}

/// One tensor's copy.
struct Piece {
    words: Box<[u64]>,
    address: u64,
    /// Byte of the first element.
    first: usize,
    dtype: DType,
    shape: Vec<usize>,
    strides: Vec<usize>,
    /// The caller's tensor.
    own: *mut u8,
    own_strides: Vec<usize>,
}

impl Piece {
    fn new<const R: usize>(t: &TensorRef<'_, R>, own: *mut u8, aligned: bool) -> Self {
        let (shape, own_strides) = (t.shape().to_vec(), t.strides().to_vec());
        let size = t.dtype().size();
        let strides = if aligned { aligned_strides(&shape, &own_strides, size) } else { own_strides.clone() };
        // Kept apart from the start by what the caller's tensor is: kernels see different alignments.
        let align = if aligned { CHUNK } else { size };
        let first = 64 + (own as usize % 64).next_multiple_of(align);
        let extent: usize = if t.is_empty() {
            0
        } else {
            1 + shape.iter().zip(&strides).map(|(n, s)| (n - 1) * s).sum::<usize>()
        };
        let words = vec![CANARY; (first + extent * size).div_ceil(8) + 8].into_boxed_slice();
        let mut piece = Self { words, address: 0, first, dtype: t.dtype(), shape, strides, own, own_strides };
        for (own, copy) in piece.places() {
            // SAFETY: `own` is an element of the caller's tensor.
            let element = unsafe { std::slice::from_raw_parts(piece.own.add(own), size) };
            bytemuck::cast_slice_mut::<_, u8>(&mut piece.words)[copy..copy + size].copy_from_slice(element);
        }
        piece
    }

    /// Bytes that the tensor covers, gaps included.
    fn bytes(&self) -> usize {
        self.places().into_iter().map(|(_, copy)| copy + self.dtype.size() - self.first).max().unwrap_or(0)
    }

    /// Byte offsets of every element in the caller's tensor and in the copy.
    fn places(&self) -> Vec<(usize, usize)> {
        let mut places = vec![(0, 0)];
        for ((&n, &own), &copy) in self.shape.iter().zip(&self.own_strides).zip(&self.strides) {
            places =
                places.iter().flat_map(|&(o, c)| (0..n).map(move |i| (o + i * own, c + i * copy))).collect();
        }
        let size = self.dtype.size();
        places.into_iter().map(|(o, c)| (o * size, self.first + c * size)).collect()
    }

    /// Copies results to the caller's tensor.
    ///
    /// # Panics
    /// If something beside them was written to.
    fn give_back(&self, name: &str) {
        let bytes = bytemuck::cast_slice::<_, u8>(&self.words);
        let size = self.dtype.size();
        let mut covered = vec![false; bytes.len()];
        for (own, copy) in self.places() {
            covered[copy..copy + size].fill(true);
            // SAFETY: `own` is an element of the caller's tensor, which is borrowed exclusively.
            unsafe { std::ptr::copy_nonoverlapping(bytes[copy..].as_ptr(), self.own.add(own), size) };
        }
        let canary = CANARY.to_ne_bytes();
        let spoilt = (0..bytes.len()).find(|&i| !covered[i] && bytes[i] != canary[i % 8]);
        assert_eq!(spoilt, None, "a byte that {name} does not cover was written to");
    }
}

/// The caller's strides if they are multiples of a chunk, else nearly so: the same order of dimensions, rows padded.
fn aligned_strides(shape: &[usize], own: &[usize], size: usize) -> Vec<usize> {
    let chunk = CHUNK / size;
    let last = shape.len() - 1;
    if (0..last).all(|i| shape[i] <= 1 || own[i].is_multiple_of(chunk)) {
        return own.to_vec();
    }
    let mut order: Vec<usize> = (0..last).collect();
    order.sort_by_key(|&i| own[i]);
    let mut strides = own.to_vec();
    let mut next = shape[last].next_multiple_of(chunk) + chunk;
    for i in order {
        if own[i] > 0 {
            strides[i] = next;
            next *= shape[i].max(1);
        }
    }
    strides
}

/// The copies of one call.
pub struct Staging<'d, D> {
    device: &'d mut D,
    inputs: Vec<Piece>,
    outputs: Vec<(&'static str, Piece)>,
}

impl<'d, D: Device> Staging<'d, D> {
    pub fn new(device: &'d mut D) -> Self {
        Self { device, inputs: Vec::new(), outputs: Vec::new() }
    }

    /// A copy of an input. The view must not be used any more when the staging is gone.
    fn input<'a, const R: usize>(&mut self, t: &TensorRef<'a, R>, aligned: bool) -> TensorRef<'a, R> {
        let mut piece = Piece::new(t, t.as_ptr().cast_mut(), aligned);
        piece.address = self.device.hold(&piece.words, piece.first, piece.bytes(), false);
        let address = piece.address + piece.first as u64;
        let strides = piece.strides.as_slice().try_into().expect("R strides");
        self.inputs.push(piece);
        // SAFETY: the copy holds what shape and strides reach, and nothing writes to it.
        unsafe {
            match self.device.memory() {
                Memory::Host => TensorRef::from_raw_parts(
                    std::ptr::with_exposed_provenance(address as usize),
                    t.dtype(),
                    t.shape(),
                    strides,
                ),
                Memory::Cuda { device } => {
                    TensorRef::from_device_parts(address, device, t.dtype(), t.shape(), strides)
                }
            }
        }
        .expect("as well formed as the caller's")
    }

    /// Room for an output, as [`input`](Self::input).
    fn output<'a, const R: usize>(
        &mut self,
        name: &'static str,
        t: &mut TensorMut<'a, R>,
        aligned: bool,
    ) -> TensorMut<'a, R> {
        let own = t.as_mut_ptr();
        let mut piece = Piece::new(&t.as_ref(), own, aligned);
        piece.address = self.device.hold(&piece.words, piece.first, piece.bytes(), true);
        let address = piece.address + piece.first as u64;
        let strides = piece.strides.as_slice().try_into().expect("R strides");
        self.outputs.push((name, piece));
        // SAFETY: the room holds what shape and strides reach, for this view alone.
        unsafe {
            match self.device.memory() {
                Memory::Host => TensorMut::from_raw_parts(
                    std::ptr::with_exposed_provenance_mut(address as usize),
                    t.dtype(),
                    t.shape(),
                    strides,
                ),
                Memory::Cuda { device } => {
                    TensorMut::from_device_parts(address, device, t.dtype(), t.shape(), strides)
                }
            }
        }
        .expect("as well formed as the caller's")
    }

    fn down<'a>(&mut self, t: &DownProjection<'a>) -> DownProjection<'a> {
        DownProjection {
            down_weight: self.input(&t.down_weight, false),
            down_bias: self.input(&t.down_bias, false),
            activation: t.activation,
        }
    }

    fn adapter<'a>(&mut self, t: &Adapter<'a>) -> Adapter<'a> {
        Adapter {
            down_weight: self.input(&t.down_weight, false),
            down_bias: self.input(&t.down_bias, false),
            up_weight: self.input(&t.up_weight, false),
            up_bias: self.input(&t.up_bias, false),
            activation: t.activation,
        }
    }

    /// The problem with copies of its tensors.
    pub fn problem<'a>(&mut self, problem: &Problem<'a>) -> Problem<'a> {
        let mut attention: Attention<'a> = *problem.attention();
        attention.q = self.input(&attention.q, true);
        attention.k = self.input(&attention.k, true);
        attention.v = self.input(&attention.v, true);
        if let Some(prefix) = &mut attention.prefix {
            prefix.k = self.input(&prefix.k, true);
            prefix.v = self.input(&prefix.v, true);
        }
        if let Some(inducer) = &mut attention.inducer {
            inducer.key = match &inducer.key {
                VirtualKey::Query => VirtualKey::Query,
                VirtualKey::Residual(t) => VirtualKey::Residual(self.adapter(t)),
                VirtualKey::LogitPerHead(t) => VirtualKey::LogitPerHead(self.input(t, false)),
                VirtualKey::LogitPerToken(t) => VirtualKey::LogitPerToken(self.input(t, false)),
            };
            inducer.value = match &inducer.value {
                VirtualValue::Zero => VirtualValue::Zero,
                VirtualValue::Residual(t) => VirtualValue::Residual(self.adapter(t)),
                VirtualValue::Direct(t) => VirtualValue::Direct(self.adapter(t)),
                VirtualValue::Extended(t) => VirtualValue::Extended(self.down(t)),
            };
        }
        attention.validate().expect("copies are as valid as the caller's")
    }

    /// Room for the forward's results.
    pub fn outputs<'o>(&mut self, outputs: &mut Outputs<'o>) -> Outputs<'o> {
        Outputs {
            o: self.output("o", &mut outputs.o, true),
            lse: outputs.lse.as_mut().map(|t| self.output("lse", t, false)),
            u: outputs.u.as_mut().map(|t| self.output("u", t, false)),
            attn: outputs.attn.as_mut().map(|t| self.output("attn", t, true)),
        }
    }

    /// Copies of what the backward keeps of the forward.
    pub fn saved<'a>(&mut self, saved: &Saved<'a>) -> Saved<'a> {
        Saved {
            output: match &saved.output {
                SavedOutput::Output(t) => SavedOutput::Output(self.input(t, true)),
                SavedOutput::Attention(t) => SavedOutput::Attention(self.input(t, true)),
            },
            lse: self.input(&saved.lse, false),
        }
    }

    /// Copies of the gradients that come in.
    pub fn upstream<'a>(&mut self, upstream: &Upstream<'a>) -> Upstream<'a> {
        Upstream {
            d_o: self.input(&upstream.d_o, true),
            d_lse: upstream.d_lse.as_ref().map(|t| self.input(t, false)),
            d_u: upstream.d_u.as_ref().map(|t| self.input(t, false)),
        }
    }

    /// Room for the gradients that go out.
    pub fn gradients<'o>(&mut self, gradients: &mut Gradients<'o>) -> Gradients<'o> {
        Gradients {
            d_q: self.output("d_q", &mut gradients.d_q, true),
            d_k: self.output("d_k", &mut gradients.d_k, true),
            d_v: self.output("d_v", &mut gradients.d_v, true),
            prefix: gradients.prefix.as_mut().map(|t| PrefixGradients {
                k: self.output("d_prefix.k", &mut t.k, false),
                v: self.output("d_prefix.v", &mut t.v, false),
            }),
            key: match &mut gradients.key {
                KeyGradients::None => KeyGradients::None,
                KeyGradients::Residual(t) => KeyGradients::Residual(self.adapter_gradients(t)),
                KeyGradients::LogitPerHead(t) => {
                    KeyGradients::LogitPerHead(self.output("d_key.logit", t, false))
                }
                KeyGradients::LogitPerToken(t) => {
                    KeyGradients::LogitPerToken(self.output("d_key.logit", t, false))
                }
            },
            value: match &mut gradients.value {
                ValueGradients::None => ValueGradients::None,
                ValueGradients::Adapter(t) => ValueGradients::Adapter(self.adapter_gradients(t)),
                ValueGradients::Extended(t) => ValueGradients::Extended(DownProjectionGradients {
                    down_weight: self.output("d_down_weight", &mut t.down_weight, false),
                    down_bias: self.output("d_down_bias", &mut t.down_bias, false),
                }),
            },
        }
    }

    fn adapter_gradients<'o>(&mut self, t: &mut AdapterGradients<'o>) -> AdapterGradients<'o> {
        AdapterGradients {
            down_weight: self.output("d_down_weight", &mut t.down_weight, false),
            down_bias: self.output("d_down_bias", &mut t.down_bias, false),
            up_weight: self.output("d_up_weight", &mut t.up_weight, false),
            up_bias: self.output("d_up_bias", &mut t.up_bias, false),
        }
    }

    /// Brings the results back and copies them to where the caller wants them.
    pub fn finish(mut self) {
        for (name, piece) in &mut self.outputs {
            self.device.fetch(piece.address, &mut piece.words);
            piece.give_back(name);
        }
    }
}

/// Runs a forward on copies: `launch` runs it to its end.
pub fn forward<D: Device>(
    device: &mut D,
    problem: &Problem<'_>,
    mut outputs: Outputs<'_>,
    launch: impl FnOnce(&mut D, &Problem<'_>, Forward<'_, '_, '_>) -> Result<(), Error>,
) -> Result<(), Error> {
    let mut staging = Staging::new(device);
    let copy = staging.problem(problem);
    let call = copy.forward(staging.outputs(&mut outputs))?;
    launch(staging.device, &copy, call)?;
    staging.finish();
    Ok(())
}

/// Runs a backward on copies: `launch` runs it to its end.
pub fn backward<'a, D: Device>(
    device: &mut D,
    problem: &Problem<'a>,
    (saved, upstream): (&Saved<'a>, &Upstream<'a>),
    mut gradients: Gradients<'_>,
    launch: impl FnOnce(&mut D, &Problem<'_>, Backward<'_, '_, '_>) -> Result<(), Error>,
) -> Result<(), Error> {
    let mut staging = Staging::new(device);
    let copy = staging.problem(problem);
    let (saved, upstream) = (staging.saved(saved), staging.upstream(upstream));
    let call = copy.backward(saved, upstream, staging.gradients(&mut gradients))?;
    launch(staging.device, &copy, call)?;
    staging.finish();
    Ok(())
}
