//! Lists of a problem in device memory.

use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaSlice, CudaStream, DevicePtr, SyncOnDrop};

use super::driver::checked;
use super::lists::{RawList, RawLists};
use crate::attention::{Lengths, Problem};
use crate::error::{Error, Result};

/// Lists of a problem in device memory: a copy of the problem's own ([`upload`](Self::upload)), or made on the device.
///
/// A problem whose lists are made on the device is described with [`Lengths::Full`] and without positions and slopes; packed
/// sequences have a batch of 1. The processor never reads these lists, so nothing can check them: kernels clamp what they say to
/// what the tensors hold. [`RawLists`] has the fields' meanings.
#[derive(Debug, Default)]
#[allow(missing_docs, reason = "RawLists has the fields' meanings")]
pub struct DeviceLists {
    pub query_lengths: Option<CudaSlice<i32>>,
    pub key_lengths: Option<CudaSlice<i32>>,
    pub key_starts: Option<CudaSlice<i32>>,
    pub cu_seqlens_q: Option<CudaSlice<i32>>,
    pub cu_seqlens_k: Option<CudaSlice<i32>>,
    pub positions: Option<CudaSlice<i32>>,
    pub alibi_slopes: Option<CudaSlice<f32>>,
    pub max_rows: Option<usize>,
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
        let own = RawLists::of(problem);
        let slopes = attention.alibi_slopes.filter(|s| !s.is_empty());
        let slopes = slopes.map(|s| checked("cuMemcpyHtoDAsync", stream.clone_htod(s)));
        let mut lists = Self {
            positions: copy(attention.inducer.and_then(|i| i.positions))?,
            alibi_slopes: slopes.transpose()?,
            max_rows: own.max_rows,
            max_keys: own.max_keys,
            ..Self::default()
        };
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
        Ok(lists)
    }

    /// The lists' addresses, for raw launches on `stream`, which is made to wait for what other streams still write to them. They
    /// must live until the launches are done.
    ///
    /// # Errors
    /// [`Error::Unexpected`] if a list belongs to another context than the stream.
    pub fn raw(&self, stream: &CudaStream) -> Result<RawLists> {
        self.lend(stream, &mut Vec::new())
    }

    /// As [`raw`](Self::raw); while the guards live, other streams' writes are not told to wait.
    pub(super) fn lend<'s>(
        &'s self,
        stream: &'s CudaStream,
        guards: &mut Vec<SyncOnDrop<'s>>,
    ) -> Result<RawLists> {
        let mut integers =
            |argument, list: &'s Option<CudaSlice<i32>>| place(argument, list.as_ref(), stream, guards);
        let lists = RawLists {
            query_lengths: integers("query_lengths", &self.query_lengths)?,
            key_lengths: integers("key_lengths", &self.key_lengths)?,
            key_starts: integers("key_starts", &self.key_starts)?,
            cu_seqlens_q: integers("cu_seqlens_q", &self.cu_seqlens_q)?,
            cu_seqlens_k: integers("cu_seqlens_k", &self.cu_seqlens_k)?,
            positions: integers("positions", &self.positions)?,
            alibi_slopes: None,
            max_rows: self.max_rows,
            max_keys: self.max_keys,
        };
        let alibi_slopes = place("alibi_slopes", self.alibi_slopes.as_ref(), stream, guards)?;
        Ok(RawLists { alibi_slopes, ..lists })
    }
}

fn place<'s, T>(
    argument: &'static str,
    list: Option<&'s CudaSlice<T>>,
    stream: &'s CudaStream,
    guards: &mut Vec<SyncOnDrop<'s>>,
) -> Result<Option<RawList>> {
    let Some(list) = list else { return Ok(None) };
    let context: &CudaContext = stream.context();
    if **list.context() != *context {
        return Err(Error::Unexpected { argument, reason: "it belongs to another context than the stream" });
    }
    let (address, guard) = list.device_ptr(stream);
    guards.push(guard);
    Ok(Some(RawList { address, len: list.len() }))
}
