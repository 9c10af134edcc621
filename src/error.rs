//! One error per mistake a caller can make.
//!
//! Every variant names the argument, what it was and what it must be. Errors are raised while a problem is
//! validated, before any work starts and before anything is written.

use crate::tensor::DType;

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
    /// The workspace holds fewer bytes than the call needs.
    #[error("workspace: {got} bytes, expected at least {needed}")]
    WorkspaceTooSmall {
        /// Bytes it has.
        got: usize,
        /// Bytes the call needs.
        needed: usize,
    },
}
