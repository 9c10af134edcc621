//! The forward's plan: one launch, a block for every tile of queries in every head.

use super::{ForwardPlan, Plan, Settings, find, launch};
use crate::call::Forward;
use crate::cuda::convert::{self, Access};
use crate::cuda::kernels::Pass;
use crate::cuda::lists::Lists;
use crate::cuda::params::ForwardParams;
use crate::error::Result;

/// Plans a forward; of the settings it needs the device's shared memory.
///
/// # Errors
/// As [`check`](super::check), for the outputs as well; [`Error::TooManyBlocks`](crate::Error::TooManyBlocks).
pub fn forward(call: &Forward<'_, '_, '_>, lists: &Lists, settings: &Settings) -> Result<ForwardPlan> {
    let problem = call.problem;
    let outputs = &call.outputs;
    let mut params = ForwardParams {
        problem: convert::problem(problem, lists)?,
        o: convert::tensor("o", &outputs.o.as_ref(), Access::Pairs)?,
        ..ForwardParams::default()
    };
    if let Some(lse) = &outputs.lse {
        params.lse = convert::strided("lse", &lse.as_ref())?;
    }
    if let Some(u) = &outputs.u {
        params.u = convert::tensor("u", &u.as_ref(), Access::Elements)?;
    }
    if let Some(attn) = &outputs.attn {
        params.attn = convert::tensor("attn", &attn.as_ref(), Access::Pairs)?;
    }
    let kernel = find(Pass::Forward, problem, settings.shared_bytes);
    let row_tiles = lists.max_rows.div_ceil(kernel.rows as usize).max(1);
    params.row_tiles = row_tiles as i32;
    let launch = if outputs.o.is_empty() {
        None
    } else {
        launch(kernel, [row_tiles, problem.query_heads(), lists.parts()])?
    };
    Ok(Plan { params, launches: [launch, None, None] })
}
