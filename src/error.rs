//! One error per mistake a caller can make.
//!
//! Every variant names the argument, what it was and what it must be. Errors are raised while a problem is
//! validated, before any work starts and before anything is written. Those of the CUDA backend come before a launch, too, but for
//! what the driver alone can tell.

use crate::tensor::{DType, Memory};

/// The result of everything in this crate that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A mistake in the description of an attention problem, or in the memory handed over for it.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A buffer is smaller than the view that was asked of it.
    #[error(
        "{argument}: shape {shape:?} with strides {strides:?} needs {needed} elements, the buffer holds {len}"
    )]
    BufferTooSmall {
        /// Name of the argument.
        argument: &'static str,
        /// Shape asked for.
        shape: Vec<usize>,
        /// Strides asked for, in elements.
        strides: Vec<usize>,
        /// Elements that the view reaches over.
        needed: usize,
        /// Elements in the buffer.
        len: usize,
    },
    /// The number of elements or bytes does not fit the machine's address type, or an index does not fit 31 bits.
    #[error("{argument}: sizes {sizes:?} overflow; {expected}")]
    SizeOverflow {
        /// Name of the argument.
        argument: &'static str,
        /// The sizes that were to be multiplied.
        sizes: Vec<usize>,
        /// What must hold.
        expected: &'static str,
    },
    /// Elements of the last dimension are not next to each other.
    #[error("{argument}: the last dimension has stride {stride}, it must be contiguous (stride 1)")]
    LastDimensionStrided {
        /// Name of the argument.
        argument: &'static str,
        /// Stride of the last dimension, in elements.
        stride: usize,
    },
    /// A shape disagrees with the rest of the problem.
    #[error("{argument}: shape {got:?}, expected {expected}")]
    Shape {
        /// Name of the argument.
        argument: &'static str,
        /// The shape it has.
        got: Vec<usize>,
        /// The shape it must have, with the names of the dimensions.
        expected: String,
    },
    /// An index or a slice reaches past a dimension.
    #[error("{argument}: range {start}..{end} of dimension {dimension}, which has {size} entries")]
    OutOfRange {
        /// Name of the argument.
        argument: &'static str,
        /// Dimension that is sliced.
        dimension: usize,
        /// First index asked for.
        start: usize,
        /// One past the last index asked for.
        end: usize,
        /// Entries in that dimension.
        size: usize,
    },
    /// A tensor has the wrong element type.
    #[error("{argument}: dtype {got}, expected {expected}")]
    DType {
        /// Name of the argument.
        argument: &'static str,
        /// The type it has.
        got: DType,
        /// What it must be.
        expected: String,
    },
    /// A dimension that must not be zero is zero.
    #[error("{argument}: {dimension} is 0, it must be at least 1")]
    ZeroDimension {
        /// Name of the argument.
        argument: &'static str,
        /// Which dimension.
        dimension: &'static str,
    },
    /// `head_dim` is over what the crate supports.
    #[error("head_dim: {got}, expected 1 to {max}")]
    HeadDim {
        /// The head dimension.
        got: usize,
        /// The largest supported.
        max: usize,
    },
    /// An adapter's rank is outside what the crate supports.
    #[error("{argument}: rank {got}, expected 1 to {max}")]
    Rank {
        /// Name of the argument.
        argument: &'static str,
        /// The rank.
        got: usize,
        /// The largest supported.
        max: usize,
    },
    /// Query heads cannot be shared out evenly among the key/value heads.
    #[error("q: {query_heads} heads, expected a multiple of the {kv_heads} key/value heads")]
    GroupedHeads {
        /// Heads of Q.
        query_heads: usize,
        /// Heads of K and V.
        kv_heads: usize,
    },
    /// Two elements of one mutable view share memory.
    #[error("{argument}: shape {shape:?} with strides {strides:?} maps two elements to one place")]
    SelfOverlap {
        /// Name of the argument.
        argument: &'static str,
        /// Its shape.
        shape: Vec<usize>,
        /// Its strides, in elements.
        strides: Vec<usize>,
    },
    /// A mutable view shares memory with another view, or cannot be shown not to.
    #[error("{argument}: overlaps {other}; an output must share no element with another view")]
    Overlap {
        /// The mutable argument.
        argument: &'static str,
        /// The one that it overlaps.
        other: &'static str,
    },
    /// Cumulative sequence lengths are not what they must be.
    #[error("{argument}[{index}]: {value}, expected {expected}")]
    CuSeqlens {
        /// `cu_seqlens_q` or `cu_seqlens_k`.
        argument: &'static str,
        /// Index of the first bad entry.
        index: usize,
        /// Its value.
        value: i64,
        /// What must hold there.
        expected: String,
    },
    /// A per-entry length, start or position is out of range.
    #[error("{argument}[{index}]: {value}, expected {expected}")]
    Length {
        /// Name of the argument.
        argument: &'static str,
        /// Index of the first bad entry.
        index: usize,
        /// Its value.
        value: i64,
        /// What must hold there.
        expected: String,
    },
    /// A list has the wrong number of entries.
    #[error("{argument}: {got} entries, expected {expected}")]
    Count {
        /// Name of the argument.
        argument: &'static str,
        /// Entries it has.
        got: usize,
        /// Entries it must have.
        expected: String,
    },
    /// A window reaches a negative number of positions.
    #[error("{argument}: {value}, expected 0 or more, or none for no limit")]
    NegativeWindow {
        /// `window_left` or `window_right`.
        argument: &'static str,
        /// Its value.
        value: i64,
    },
    /// A dropout probability outside [0, 1).
    #[error("dropout.p: {p}, expected 0 <= p < 1")]
    Dropout {
        /// The probability.
        p: f32,
    },
    /// A setting that must be a finite number is not, or a softcap is not positive.
    #[error("{argument}: {value}, expected {expected}")]
    Setting {
        /// Name of the setting.
        argument: &'static str,
        /// Its value.
        value: f32,
        /// What must hold.
        expected: &'static str,
    },
    /// An argument that this problem needs is missing.
    #[error("{argument}: missing; {reason}")]
    Missing {
        /// Name of the argument.
        argument: &'static str,
        /// Why it is needed.
        reason: &'static str,
    },
    /// An argument was given that this problem has no use for.
    #[error("{argument}: given, but {reason}")]
    Unexpected {
        /// Name of the argument.
        argument: &'static str,
        /// Why there is no use for it.
        reason: &'static str,
    },
    /// A tensor is not where the others are, or not where the engine can reach it.
    #[error("{argument}: in the {got}, expected in the {expected}")]
    Memory {
        /// Name of the argument.
        argument: &'static str,
        /// Where it is.
        got: Memory,
        /// Where it must be.
        expected: Memory,
    },
    /// A tensor that has elements is at address 0.
    #[error("{argument}: null pointer, expected the address of its {elements} elements")]
    NullPointer {
        /// Name of the argument.
        argument: &'static str,
        /// Elements of the tensor.
        elements: usize,
    },
    /// Rows of a tensor do not begin where the CUDA kernels can read or write them.
    #[error(
        "{argument}: address {address:#x} with strides {strides:?} of {dtype}; the CUDA kernels need every row to begin at a \
         multiple of {alignment} bytes"
    )]
    Misaligned {
        /// Name of the argument.
        argument: &'static str,
        /// Address of its first element.
        address: usize,
        /// Its strides, in elements.
        strides: Vec<usize>,
        /// Its element type.
        dtype: DType,
        /// What addresses of rows must be multiples of, in bytes.
        alignment: usize,
    },
    /// The CUDA kernels do not take this head dimension.
    #[error("head_dim: {got}, the CUDA kernels take multiples of {multiple} up to {max}")]
    DeviceHeadDim {
        /// The head dimension.
        got: usize,
        /// What it must be a multiple of.
        multiple: usize,
        /// The largest supported.
        max: usize,
    },
    /// A pass has more blocks than one launch can have.
    #[error("{pass}: {blocks} blocks, a launch takes at most {max}; split the batch")]
    TooManyBlocks {
        /// The kernel.
        pass: &'static str,
        /// Blocks that the problem needs.
        blocks: u128,
        /// The most that a launch can have.
        max: u32,
    },
    /// There is no CUDA driver.
    #[error("no CUDA driver: libcuda could not be loaded; install the NVIDIA driver")]
    NoDriver,
    /// There is no CUDA device of this number.
    #[error("no CUDA device {ordinal}: the driver sees {count}")]
    NoDevice {
        /// The number asked for.
        ordinal: usize,
        /// How many there are.
        count: usize,
    },
    /// The device is older than what the kernels are written for.
    #[error("CUDA device {ordinal} has compute capability {major}.{minor}, the kernels need 8.0 or newer")]
    DeviceTooOld {
        /// The device's number.
        ordinal: usize,
        /// Its compute capability.
        major: i32,
        /// Its compute capability.
        minor: i32,
    },
    /// The driver is too old for the kernels that this build holds.
    #[error("the CUDA driver supports CUDA {}.{}, these kernels need a newer one; update the driver", version / 1000, version % 1000 / 10)]
    DriverTooOld {
        /// What the driver supports: 1000 · major + 10 · minor.
        version: i32,
    },
    /// This build holds no CUDA kernels.
    #[error(
        "no CUDA kernels in this build: no nvcc was found when it was built. Install the CUDA toolkit (or point NVCC or CUDA_HOME \
         to it), or set INDUCER_ATTENTION_CUDA_FATBINS to a folder of prebuilt ones, and build again"
    )]
    NoKernels,
    /// This build holds no kernels for the device.
    #[error(
        "no kernels for CUDA device {ordinal} (compute capability {major}.{minor}); build with it in INDUCER_ATTENTION_CUDA_ARCHS"
    )]
    NoKernelImage {
        /// The device's number.
        ordinal: usize,
        /// Its compute capability.
        major: i32,
        /// Its compute capability.
        minor: i32,
    },
    /// The CUDA driver refused a call.
    #[error("{call}: {message}")]
    Driver {
        /// The call.
        call: &'static str,
        /// What the driver says.
        message: String,
    },
    /// The workspace could not be made as large as asked.
    #[error("workspace: no memory for {bytes} bytes")]
    OutOfMemory {
        /// Bytes asked for.
        bytes: usize,
    },
    /// The workspace holds fewer bytes than the call needs.
    #[error("workspace: {got} bytes, expected at least {needed}")]
    WorkspaceTooSmall {
        /// Bytes it has.
        got: usize,
        /// Bytes the call needs.
        needed: usize,
    },
}
