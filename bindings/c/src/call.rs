//! The structs of the header, and what the crate makes of them.

use inducer_attention::{
    Activation, Adapter, AdapterGradients, Attention, DownProjection, DownProjectionGradients, Dropout,
    Gradients, Inducer, KeyGradients, Lengths, Memory, Outputs, Prefix, PrefixGradients, Problem, Saved,
    SavedOutput, TensorMut, TensorRef, Upstream, ValueGradients, VirtualKey, VirtualValue,
};

#[cfg(feature = "cuda")]
use inducer_attention::cuda::{Lists, RawLists};

use crate::error::{Error, Result};
use crate::tensor::{DLTensor, Named};

type Tensor = *const DLTensor;

/// `ia_adapter`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs, reason = "the header says what they are")]
pub struct AdapterTensors {
    pub down_weight: Tensor,
    pub down_bias: Tensor,
    pub up_weight: Tensor,
    pub up_bias: Tensor,
}

/// `ia_attention`.
#[repr(C)]
#[derive(Debug)]
#[allow(missing_docs, reason = "the header says what they are")]
pub struct AttentionCall {
    pub struct_size: usize,
    pub q: Tensor,
    pub k: Tensor,
    pub v: Tensor,
    pub prefix_k: Tensor,
    pub prefix_v: Tensor,
    pub query_lengths: Tensor,
    pub key_lengths: Tensor,
    pub key_starts: Tensor,
    pub cu_seqlens_q: Tensor,
    pub cu_seqlens_k: Tensor,
    pub alibi_slopes: Tensor,
    pub options: u32,
    pub softmax_scale: f32,
    pub window_left: i64,
    pub window_right: i64,
    pub softcap: f32,
    pub dropout_p: f32,
    pub dropout_seed: u64,
    pub key: u32,
    pub value: u32,
    pub key_activation: u32,
    pub value_activation: u32,
    pub key_adapter: AdapterTensors,
    pub value_adapter: AdapterTensors,
    pub logit: Tensor,
    pub positions: Tensor,
    pub max_seqlen_q: i64,
    pub max_seqlen_k: i64,
}

/// `ia_outputs`.
#[repr(C)]
#[derive(Debug)]
#[allow(missing_docs, reason = "the header says what they are")]
pub struct OutputTensors {
    pub struct_size: usize,
    pub o: Tensor,
    pub lse: Tensor,
    pub u: Tensor,
    pub attn: Tensor,
}

/// `ia_gradients`.
#[repr(C)]
#[derive(Debug)]
#[allow(missing_docs, reason = "the header says what they are")]
pub struct GradientTensors {
    pub struct_size: usize,
    pub o: Tensor,
    pub attn: Tensor,
    pub lse: Tensor,
    pub d_o: Tensor,
    pub d_lse: Tensor,
    pub d_u: Tensor,
    pub d_q: Tensor,
    pub d_k: Tensor,
    pub d_v: Tensor,
    pub d_prefix_k: Tensor,
    pub d_prefix_v: Tensor,
    pub d_key_adapter: AdapterTensors,
    pub d_value_adapter: AdapterTensors,
    pub d_logit: Tensor,
}

mod option {
    pub(super) const CAUSAL: u32 = 1;
    pub(super) const SOFTMAX_SCALE: u32 = 2;
    pub(super) const WINDOW_LEFT: u32 = 4;
    pub(super) const WINDOW_RIGHT: u32 = 8;
    pub(super) const SOFTCAP: u32 = 16;
    pub(super) const DROPOUT: u32 = 32;
    pub(super) const ADAPTIVE_LENGTH: u32 = 64;
    pub(super) const ALL: u32 = 127;
}

/// A struct of the header that says how large its caller takes it to be.
///
/// # Safety
/// `repr(C)`, and its first field is that size, a `usize`.
pub(crate) unsafe trait Versioned {
    const NAME: &'static str;
}

// SAFETY: as their definitions show, here and below.
unsafe impl Versioned for AttentionCall {
    const NAME: &'static str = "attention";
}
// SAFETY: as above.
unsafe impl Versioned for OutputTensors {
    const NAME: &'static str = "outputs";
}
// SAFETY: as above.
unsafe impl Versioned for GradientTensors {
    const NAME: &'static str = "gradients";
}

/// # Safety
/// `ptr` is null or points to a struct that begins with its size and is that large, which nobody writes for `'a`.
pub(crate) unsafe fn checked<'a, T: Versioned>(ptr: *const T) -> Result<&'a T> {
    if ptr.is_null() {
        return Err(Error::Null { argument: T::NAME });
    }
    // SAFETY: not null; the caller promises at least the size.
    let got = unsafe { ptr.cast::<usize>().read() };
    if got != size_of::<T>() {
        return Err(Error::StructSize { argument: T::NAME, got, expected: size_of::<T>() });
    }
    // SAFETY: the size shows that the caller means this very struct.
    Ok(unsafe { &*ptr })
}

fn activation(argument: &'static str, got: u32) -> Result<Activation> {
    match got {
        0 => Ok(Activation::Tanh),
        1 => Ok(Activation::Identity),
        _ => Err(Error::Number { argument, got, expected: "IA_TANH (0) or IA_IDENTITY (1)" }),
    }
}

/// Names of an adapter's tensors.
struct Names {
    down_weight: &'static str,
    down_bias: &'static str,
    up_weight: &'static str,
    up_bias: &'static str,
}

macro_rules! names {
    ($adapter:literal) => {
        Names {
            down_weight: concat!($adapter, ".down_weight"),
            down_bias: concat!($adapter, ".down_bias"),
            up_weight: concat!($adapter, ".up_weight"),
            up_bias: concat!($adapter, ".up_bias"),
        }
    };
}

const KEY: Names = names!("key_adapter");
const VALUE: Names = names!("value_adapter");
const D_KEY: Names = names!("d_key_adapter");
const D_VALUE: Names = names!("d_value_adapter");

// Every function below that takes a struct of tensors asks that each is null or as `Named` says; what `view` and `view_mut`
// ask is what the entry points ask of their callers.
impl AdapterTensors {
    fn all(&self) -> [Tensor; 4] {
        [self.down_weight, self.down_bias, self.up_weight, self.up_bias]
    }

    fn is_absent(&self) -> bool {
        self.all().iter().all(|t| t.is_null())
    }

    unsafe fn adapter<'a>(&self, at: Memory, names: &Names, activation: Activation) -> Result<Adapter<'a>> {
        // SAFETY: see above.
        unsafe {
            Ok(Adapter {
                down_weight: read(at, names.down_weight, self.down_weight)?,
                down_bias: read(at, names.down_bias, self.down_bias)?,
                up_weight: read(at, names.up_weight, self.up_weight)?,
                up_bias: read(at, names.up_bias, self.up_bias)?,
                activation,
            })
        }
    }

    fn expect_no_up_projection(&self, names: &Names) -> Result<()> {
        let up = [(names.up_weight, !self.up_weight.is_null()), (names.up_bias, !self.up_bias.is_null())];
        expect_absent(&up, "the extended value's up projection is the caller's")
    }

    unsafe fn down<'a>(
        &self,
        at: Memory,
        names: &Names,
        activation: Activation,
    ) -> Result<DownProjection<'a>> {
        self.expect_no_up_projection(names)?;
        // SAFETY: see above.
        unsafe {
            Ok(DownProjection {
                down_weight: read(at, names.down_weight, self.down_weight)?,
                down_bias: read(at, names.down_bias, self.down_bias)?,
                activation,
            })
        }
    }

    unsafe fn gradients<'a>(&self, at: Memory, names: &Names) -> Result<AdapterGradients<'a>> {
        // SAFETY: see above.
        unsafe {
            Ok(AdapterGradients {
                down_weight: write(at, names.down_weight, self.down_weight)?,
                down_bias: write(at, names.down_bias, self.down_bias)?,
                up_weight: write(at, names.up_weight, self.up_weight)?,
                up_bias: write(at, names.up_bias, self.up_bias)?,
            })
        }
    }

    unsafe fn down_gradients<'a>(&self, at: Memory, names: &Names) -> Result<DownProjectionGradients<'a>> {
        self.expect_no_up_projection(names)?;
        // SAFETY: see above.
        unsafe {
            Ok(DownProjectionGradients {
                down_weight: write(at, names.down_weight, self.down_weight)?,
                down_bias: write(at, names.down_bias, self.down_bias)?,
            })
        }
    }
}

unsafe fn read<'a, const R: usize>(
    at: Memory,
    argument: &'static str,
    tensor: Tensor,
) -> Result<TensorRef<'a, R>> {
    // SAFETY: see above.
    unsafe { Named::required(at, argument, tensor)?.view() }
}

unsafe fn read_if<'a, const R: usize>(
    at: Memory,
    argument: &'static str,
    tensor: Tensor,
) -> Result<Option<TensorRef<'a, R>>> {
    // SAFETY: see above.
    unsafe { Named::optional(at, argument, tensor).map(|t| t.view()).transpose() }
}

unsafe fn write<'a, const R: usize>(
    at: Memory,
    argument: &'static str,
    tensor: Tensor,
) -> Result<TensorMut<'a, R>> {
    // SAFETY: see above.
    unsafe { Named::required(at, argument, tensor)?.view_mut() }
}

unsafe fn write_if<'a, const R: usize>(
    at: Memory,
    argument: &'static str,
    tensor: Tensor,
) -> Result<Option<TensorMut<'a, R>>> {
    // SAFETY: see above.
    unsafe { Named::optional(at, argument, tensor).map(|t| t.view_mut()).transpose() }
}

/// In host memory.
unsafe fn integers<'a>(argument: &'static str, tensor: Tensor) -> Result<Option<&'a [i32]>> {
    // SAFETY: see above.
    unsafe { Named::optional(Memory::Host, argument, tensor).map(|t| t.integers()).transpose() }
}

/// An error for the first of the tensors that is there.
fn expect_absent(tensors: &[(&'static str, bool)], reason: &'static str) -> Result<()> {
    match tensors.iter().find(|(_, there)| *there) {
        Some((argument, _)) => Err(Error::Unexpected { argument, reason }),
        None => Ok(()),
    }
}

impl AttentionCall {
    fn given(&self, option: u32) -> bool {
        self.options & option != 0
    }

    /// Where the problem's tensors are: where Q is.
    ///
    /// # Safety
    /// The tensors are as the header says.
    #[cfg(feature = "cuda")]
    pub(crate) unsafe fn device(&self) -> Result<u16> {
        // SAFETY: the caller's promise.
        let got = unsafe { self.q.as_ref() }.ok_or(Error::Null { argument: "q" })?.device;
        match got.memory() {
            Some(Memory::Cuda { device }) => Ok(device),
            _ => Err(Error::NotCuda { argument: "q", got }),
        }
    }

    /// The problem, proven.
    ///
    /// # Safety
    /// The tensors are as the header says, for `'a`.
    pub(crate) unsafe fn problem<'a>(&self, at: Memory) -> Result<Problem<'a>> {
        let unknown = self.options & !option::ALL;
        if unknown != 0 {
            return Err(Error::Number {
                argument: "options",
                got: self.options,
                expected: "bits of IA_ALL_OPTIONS",
            });
        }
        // SAFETY: the caller's promise, here and below.
        let mut attention =
            unsafe { Attention::new(read(at, "q", self.q)?, read(at, "k", self.k)?, read(at, "v", self.v)?) };
        let config = &mut attention.config;
        config.causal = self.given(option::CAUSAL);
        config.softmax_scale = self.given(option::SOFTMAX_SCALE).then_some(self.softmax_scale);
        config.window_left = self.given(option::WINDOW_LEFT).then_some(self.window_left);
        config.window_right = self.given(option::WINDOW_RIGHT).then_some(self.window_right);
        config.softcap = self.given(option::SOFTCAP).then_some(self.softcap);
        config.dropout =
            self.given(option::DROPOUT).then_some(Dropout { p: self.dropout_p, seed: self.dropout_seed });
        // SAFETY: as above.
        unsafe {
            if !self.prefix_k.is_null() || !self.prefix_v.is_null() {
                let (k, v) = (read(at, "prefix_k", self.prefix_k)?, read(at, "prefix_v", self.prefix_v)?);
                attention.prefix = Some(Prefix { k, v });
            }
            let [batch, heads, rows, _] = attention.q.shape();
            let mut positions = None;
            // Those in a device's memory are the launch's business: the processor cannot read them.
            if at == Memory::Host {
                attention.lengths = self.lengths()?;
                let sequences = match attention.lengths {
                    Lengths::Packed { cu_seqlens_q, .. } => cu_seqlens_q.len().saturating_sub(1),
                    _ => batch,
                };
                attention.alibi_slopes = Named::optional(at, "alibi_slopes", self.alibi_slopes)
                    .map(|t| t.floats_of([sequences, heads]))
                    .transpose()?;
                positions = Named::optional(at, "positions", self.positions)
                    .map(|t| t.integers_of([batch, rows]))
                    .transpose()?;
            }
            attention.inducer = self.inducer(at, positions)?;
        }
        Ok(attention.validate()?)
    }

    /// Lists in host memory.
    unsafe fn lengths<'a>(&self) -> Result<Lengths<'a>> {
        self.expect_packed_or_padded()?;
        // SAFETY: the caller's promise.
        let [query_lengths, key_lengths, key_starts, cu_seqlens_q, cu_seqlens_k] = unsafe {
            [
                integers("query_lengths", self.query_lengths)?,
                integers("key_lengths", self.key_lengths)?,
                integers("key_starts", self.key_starts)?,
                integers("cu_seqlens_q", self.cu_seqlens_q)?,
                integers("cu_seqlens_k", self.cu_seqlens_k)?,
            ]
        };
        if cu_seqlens_q.is_some() || cu_seqlens_k.is_some() {
            return Ok(Lengths::Packed {
                cu_seqlens_q: cu_seqlens_q.ok_or(Error::Null { argument: "cu_seqlens_q" })?,
                cu_seqlens_k: cu_seqlens_k.ok_or(Error::Null { argument: "cu_seqlens_k" })?,
            });
        }
        if query_lengths.is_none() && key_lengths.is_none() && key_starts.is_none() {
            return Ok(Lengths::Full);
        }
        Ok(Lengths::Padded { query_lengths, key_lengths, key_starts })
    }

    fn expect_packed_or_padded(&self) -> Result<()> {
        if self.cu_seqlens_q.is_null() && self.cu_seqlens_k.is_null() {
            return Ok(());
        }
        let padded = [
            ("query_lengths", !self.query_lengths.is_null()),
            ("key_lengths", !self.key_lengths.is_null()),
            ("key_starts", !self.key_starts.is_null()),
        ];
        expect_absent(&padded, "packed sequences have cu_seqlens instead")
    }

    /// Lists in the device's memory, where the problem's tensors are.
    ///
    /// # Safety
    /// The tensors are as the header says.
    #[cfg(feature = "cuda")]
    pub(crate) unsafe fn device_lists(&self, problem: &Problem<'_>) -> Result<Lists> {
        self.expect_packed_or_padded()?;
        let at = problem.memory();
        let integers = |argument, tensor| {
            // SAFETY: the caller's promise.
            unsafe { Named::optional(at, argument, tensor).map(|t| t.raw_integers()).transpose() }
        };
        let longest = |argument, length: i64| match usize::try_from(length) {
            Ok(0) => Ok(None),
            Ok(length) => Ok(Some(length)),
            Err(_) => Err(Error::Length { argument, got: length }),
        };
        let [batch, heads, rows, _] = problem.attention().q.shape();
        let cu_seqlens_q = integers("cu_seqlens_q", self.cu_seqlens_q)?;
        let sequences = cu_seqlens_q.map_or(batch, |list| list.len.saturating_sub(1));
        // SAFETY: the caller's promise.
        let (positions, alibi_slopes) = unsafe {
            (
                Named::optional(at, "positions", self.positions)
                    .map(|t| t.raw_integers_of([batch, rows]))
                    .transpose()?,
                Named::optional(at, "alibi_slopes", self.alibi_slopes)
                    .map(|t| t.raw_floats_of([sequences, heads]))
                    .transpose()?,
            )
        };
        if positions.is_some() && !self.given(option::ADAPTIVE_LENGTH) {
            let reason = "only IA_ADAPTIVE_LENGTH has a use for it";
            return Err(Error::Unexpected { argument: "positions", reason });
        }
        let lists = RawLists {
            query_lengths: integers("query_lengths", self.query_lengths)?,
            key_lengths: integers("key_lengths", self.key_lengths)?,
            key_starts: integers("key_starts", self.key_starts)?,
            cu_seqlens_q,
            cu_seqlens_k: integers("cu_seqlens_k", self.cu_seqlens_k)?,
            positions,
            alibi_slopes,
            max_rows: longest("max_seqlen_q", self.max_seqlen_q)?,
            max_keys: longest("max_seqlen_k", self.max_seqlen_k)?,
        };
        Ok(Lists::new(problem, &lists)?)
    }

    unsafe fn inducer<'a>(&self, at: Memory, positions: Option<&'a [i32]>) -> Result<Option<Inducer<'a>>> {
        if self.key > 4 {
            return Err(Error::Number { argument: "key", got: self.key, expected: "IA_KEY_..., 0 to 4" });
        }
        if self.value > 3 {
            return Err(Error::Number {
                argument: "value",
                got: self.value,
                expected: "IA_VALUE_..., 0 to 3",
            });
        }
        let (residual, logit) = (self.key == 2, self.key == 3 || self.key == 4);
        let not = |wanted: bool, there: bool| !wanted && there;
        expect_absent(
            &[
                ("key_adapter", not(residual, !self.key_adapter.is_absent())),
                ("logit", not(logit, !self.logit.is_null())),
            ],
            "the key of this kind has none",
        )?;
        let has_adapter = self.key != 0 && self.value != 0;
        expect_absent(
            &[("value_adapter", not(has_adapter, !self.value_adapter.is_absent()))],
            "there is no virtual value with an adapter",
        )?;
        let adaptive_length = self.given(option::ADAPTIVE_LENGTH);
        if self.key == 0 {
            let extras = [
                ("value", self.value != 0),
                ("IA_ADAPTIVE_LENGTH", adaptive_length),
                ("positions", !self.positions.is_null()),
            ];
            expect_absent(&extras, "key is IA_KEY_NONE: there is no virtual token")?;
            return Ok(None);
        }
        let key_activation = activation("key_activation", self.key_activation)?;
        let value_activation = activation("value_activation", self.value_activation)?;
        // SAFETY: the caller's promise.
        let (key, value) = unsafe {
            let key = match self.key {
                1 => VirtualKey::Query,
                2 => VirtualKey::Residual(self.key_adapter.adapter(at, &KEY, key_activation)?),
                3 => VirtualKey::LogitPerHead(read(at, "logit", self.logit)?),
                _ => VirtualKey::LogitPerToken(read(at, "logit", self.logit)?),
            };
            let adapter = || self.value_adapter.adapter(at, &VALUE, value_activation);
            let value = match self.value {
                0 => VirtualValue::Zero,
                1 => VirtualValue::Residual(adapter()?),
                2 => VirtualValue::Direct(adapter()?),
                3 => VirtualValue::Extended(self.value_adapter.down(at, &VALUE, value_activation)?),
                got => {
                    return Err(Error::Number { argument: "value", got, expected: "IA_VALUE_..., 0 to 3" });
                }
            };
            (key, value)
        };
        Ok(Some(Inducer { key, value, adaptive_length, positions }))
    }
}

impl OutputTensors {
    /// # Safety
    /// The tensors are as the header says, for `'a`.
    pub(crate) unsafe fn outputs<'a>(&self, at: Memory) -> Result<Outputs<'a>> {
        // SAFETY: the caller's promise.
        unsafe {
            Ok(Outputs {
                o: write(at, "o", self.o)?,
                lse: write_if(at, "lse", self.lse)?,
                u: write_if(at, "u", self.u)?,
                attn: write_if(at, "attn", self.attn)?,
            })
        }
    }
}

impl GradientTensors {
    /// # Safety
    /// The tensors are as the header says, for `'a` (read) and `'o` (written).
    pub(crate) unsafe fn parts<'a, 'o>(
        &self,
        at: Memory,
        problem: &Problem<'_>,
    ) -> Result<(Saved<'a>, Upstream<'a>, Gradients<'o>)> {
        // SAFETY: the caller's promise.
        unsafe {
            let output = match (read_if(at, "o", self.o)?, read_if(at, "attn", self.attn)?) {
                (Some(o), None) => SavedOutput::Output(o),
                (None, Some(attn)) => SavedOutput::Attention(attn),
                (None, None) => return Err(Error::Null { argument: "o" }),
                (Some(_), Some(_)) => {
                    let reason = "one of o and attn is enough, and decides how D' is formed";
                    return Err(Error::Unexpected { argument: "attn", reason });
                }
            };
            let saved = Saved { output, lse: read(at, "lse", self.lse)? };
            let upstream = Upstream {
                d_o: read(at, "d_o", self.d_o)?,
                d_lse: read_if(at, "d_lse", self.d_lse)?,
                d_u: read_if(at, "d_u", self.d_u)?,
            };
            let mut gradients = Gradients::new(
                write(at, "d_q", self.d_q)?,
                write(at, "d_k", self.d_k)?,
                write(at, "d_v", self.d_v)?,
            );
            if !self.d_prefix_k.is_null() || !self.d_prefix_v.is_null() {
                let (k, v) =
                    (write(at, "d_prefix_k", self.d_prefix_k)?, write(at, "d_prefix_v", self.d_prefix_v)?);
                gradients.prefix = Some(PrefixGradients { k, v });
            }
            gradients.key = self.key_gradients(at, problem)?;
            gradients.value = self.value_gradients(at, problem)?;
            Ok((saved, upstream, gradients))
        }
    }

    unsafe fn key_gradients<'o>(&self, at: Memory, problem: &Problem<'_>) -> Result<KeyGradients<'o>> {
        let key = problem.attention().inducer.map(|inducer| inducer.key);
        let logit = matches!(key, Some(VirtualKey::LogitPerHead(_) | VirtualKey::LogitPerToken(_)));
        let residual = matches!(key, Some(VirtualKey::Residual(_)));
        let (d_logit, d_adapter) = (!self.d_logit.is_null(), !self.d_key_adapter.is_absent());
        let surplus = [("d_logit", d_logit && !logit), ("d_key_adapter", d_adapter && !residual)];
        expect_absent(&surplus, "the key of this kind has none")?;
        // SAFETY: the caller's promise.
        unsafe {
            Ok(match key {
                Some(VirtualKey::LogitPerHead(_)) if d_logit => {
                    KeyGradients::LogitPerHead(write(at, "d_logit", self.d_logit)?)
                }
                Some(VirtualKey::LogitPerToken(_)) if d_logit => {
                    KeyGradients::LogitPerToken(write(at, "d_logit", self.d_logit)?)
                }
                Some(VirtualKey::Residual(_)) if d_adapter => {
                    KeyGradients::Residual(self.d_key_adapter.gradients(at, &D_KEY)?)
                }
                _ => KeyGradients::None,
            })
        }
    }

    unsafe fn value_gradients<'o>(&self, at: Memory, problem: &Problem<'_>) -> Result<ValueGradients<'o>> {
        let value = problem.attention().inducer.map(|inducer| inducer.value);
        if self.d_value_adapter.is_absent() {
            return Ok(ValueGradients::None);
        }
        // SAFETY: the caller's promise.
        unsafe {
            match value {
                Some(VirtualValue::Residual(_) | VirtualValue::Direct(_)) => {
                    Ok(ValueGradients::Adapter(self.d_value_adapter.gradients(at, &D_VALUE)?))
                }
                Some(VirtualValue::Extended(_)) => {
                    Ok(ValueGradients::Extended(self.d_value_adapter.down_gradients(at, &D_VALUE)?))
                }
                Some(VirtualValue::Zero) | None => Err(Error::Unexpected {
                    argument: "d_value_adapter",
                    reason: "there is no virtual value with an adapter",
                }),
            }
        }
    }
}
