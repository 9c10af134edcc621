//! Lists of a problem in device memory.

use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaSlice, CudaStream, DevicePtr, SyncOnDrop};

use super::driver::checked;
use super::lists::Lists;
use crate::attention::{Lengths, Problem};
use crate::error::{Error, Result};

/// Lists of a problem in device memory: a copy of the problem's own ([`upload`](Self::upload)), or made on the device.
///
/// A problem whose lists are made on the device is described with [`Lengths::Full`] and without positions and slopes; packed
/// sequences have a batch of 1. The processor never reads these lists, so nothing can check them: kernels clamp what they say to
/// what the tensors hold.
#[derive(Debug, Default)]
pub struct DeviceLists {
    /// `[B]`; see [`Lengths::Padded`], likewise for the next two.
    pub query_lengths: Option<CudaSlice<i32>>,
    /// `[B]`.
    pub key_lengths: Option<CudaSlice<i32>>,
    /// `[B]`.
    pub key_starts: Option<CudaSlice<i32>>,
    /// `[sequences + 1]`; see [`Lengths::Packed`]. Both or none.
    pub cu_seqlens_q: Option<CudaSlice<i32>>,
    /// `[sequences + 1]`.
    pub cu_seqlens_k: Option<CudaSlice<i32>>,
    /// `[B·N]`; see [`Inducer::positions`](crate::Inducer::positions).
    pub positions: Option<CudaSlice<i32>>,
    /// `[Hq]` or `[sequences, Hq]`; see [`Attention::alibi_slopes`](crate::Attention::alibi_slopes).
    pub alibi_slopes: Option<CudaSlice<f32>>,
    /// No packed sequence has more rows; N if none. Saves blocks that find nothing to do. Rows of longer sequences are not
    /// computed.
    pub max_rows: Option<usize>,
    /// No packed sequence has more keys; M if none. As `max_rows`, for the keys' gradients.
    pub max_keys: Option<usize>,
}

impl DeviceLists {
    /// Copies the problem's own lists to the device. Allocates; not for the launch path.
    ///
    /// # Errors
    /// [`Error::Driver`].
    pub fn upload(problem: &Problem<'_>, stream: &Arc<CudaStream>) -> Result<Self> {
        let copy = |list: Option<&[i32]>| {
            // Nothing reads an empty list.
            let list = list.filter(|l| !l.is_empty());
            list.map(|l| checked("cuMemcpyHtoDAsync", stream.clone_htod(l))).transpose()
        };
        let attention = problem.attention();
        let host = Lists::of(problem);
        let mut lists =
            Self { max_rows: Some(host.max_rows), max_keys: Some(host.max_keys), ..Self::default() };
        match attention.lengths {
            Lengths::Full => {}
            Lengths::Padded { query_lengths, key_lengths, key_starts } => {
                lists.query_lengths = copy(query_lengths)?;
                lists.key_lengths = copy(key_lengths)?;
                lists.key_starts = copy(key_starts)?;
            }
            Lengths::Packed { cu_seqlens_q, cu_seqlens_k } => {
                lists.cu_seqlens_q = copy(Some(cu_seqlens_q))?;
                lists.cu_seqlens_k = copy(Some(cu_seqlens_k))?;
            }
        }
        lists.positions = copy(attention.inducer.and_then(|i| i.positions))?;
        let slopes = attention.alibi_slopes.filter(|s| !s.is_empty());
        lists.alibi_slopes =
            slopes.map(|s| checked("cuMemcpyHtoDAsync", stream.clone_htod(s))).transpose()?;
        Ok(lists)
    }

    /// Checks that the lists fit the problem, and lends them to a stream.
    pub(super) fn lend<'s>(
        &'s self,
        problem: &Problem<'_>,
        context: &CudaContext,
        stream: &'s CudaStream,
        guards: &mut Vec<SyncOnDrop<'s>>,
    ) -> Result<Lists> {
        let (batch, rows, heads) = (problem.batch(), problem.rows(), problem.query_heads());
        let sequences = match &self.cu_seqlens_q {
            None => batch,
            Some(list) => {
                if batch != 1 {
                    return Err(Error::Shape {
                        argument: "q",
                        got: problem.attention().q.shape().to_vec(),
                        expected: "[1, Hq, total_q, d] for packed sequences".into(),
                    });
                }
                list.len().saturating_sub(1)
            }
        };
        // The problem's own lists are missing where another problem's were uploaded.
        let own = Lists::of(problem);
        let mut list = |argument, slice: &'s Option<CudaSlice<i32>>, own: u64, count: usize| {
            place(argument, slice.as_ref(), own != 0 && count > 0, &[count], context, stream, guards)
        };
        let mut lists = Lists {
            query_lengths: list("query_lengths", &self.query_lengths, own.query_lengths, batch)?,
            key_lengths: list("key_lengths", &self.key_lengths, own.key_lengths, batch)?,
            key_starts: list("key_starts", &self.key_starts, own.key_starts, batch)?,
            cu_seqlens_q: list("cu_seqlens_q", &self.cu_seqlens_q, own.cu_seqlens_q, sequences + 1)?,
            cu_seqlens_k: list(
                "cu_seqlens_k",
                &self.cu_seqlens_k,
                own.cu_seqlens_k.max(u64::from(self.cu_seqlens_q.is_some())),
                sequences + 1,
            )?,
            positions: list("positions", &self.positions, own.positions, batch * rows)?,
            sequences,
            max_rows: self.max_rows.unwrap_or(rows).min(rows),
            max_keys: self.max_keys.unwrap_or(problem.keys()).min(problem.keys()),
            ..Lists::default()
        };
        if self.cu_seqlens_k.is_some() && self.cu_seqlens_q.is_none() {
            return Err(Error::Missing { argument: "cu_seqlens_q", reason: "cu_seqlens_k is given" });
        }
        let counts = [heads, sequences * heads];
        let slopes = self.alibi_slopes.as_ref();
        let needed = own.alibi_slopes != 0;
        lists.alibi_slopes = place("alibi_slopes", slopes, needed, &counts, context, stream, guards)?;
        lists.alibi_per_sequence = slopes.is_some_and(|s| s.len() != heads);
        Ok(lists)
    }
}

/// The address of a list, 0 if there is none.
fn place<'s, T>(
    argument: &'static str,
    list: Option<&'s CudaSlice<T>>,
    needed: bool,
    counts: &[usize],
    context: &CudaContext,
    stream: &'s CudaStream,
    guards: &mut Vec<SyncOnDrop<'s>>,
) -> Result<u64> {
    let Some(list) = list else {
        let reason = "the problem has such a list, DeviceLists does not";
        return if needed { Err(Error::Missing { argument, reason }) } else { Ok(0) };
    };
    if **list.context() != *context {
        return Err(Error::Unexpected { argument, reason: "it belongs to another context than the engine" });
    }
    if !counts.contains(&list.len()) {
        return Err(Error::Count { argument, got: list.len(), expected: format!("{counts:?}") });
    }
    let (address, guard) = list.device_ptr(stream);
    guards.push(guard);
    Ok(address)
}
