//! The forward's plan: one launch, a block for every tile of queries in every head, or blocks that take one tile after the other.

use super::{ForwardPlan, Plan, Settings, find, launch};
use crate::attention::Problem;
use crate::call::Forward;
use crate::cuda::convert::{self, Access};
use crate::cuda::kernels::{Pass, Tier};
use crate::cuda::lists::Lists;
use crate::cuda::params::ForwardParams;
use crate::error::Result;

/// Keys and values that are worked on at a time, in bytes: a third of what a Hopper's second-level cache holds, as each of its halves
/// keeps a copy of what both read.
const KEPT_BYTES: usize = 16 << 20;

/// Plans a forward; of the settings it needs what the device has.
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
    let kernel = find(Pass::Forward, problem, settings.device);
    let row_tiles = lists.max_rows.div_ceil(kernel.rows as usize).max(1);
    params.row_tiles = row_tiles as i32;
    let heads = problem.query_heads();
    let mut launch =
        if outputs.o.is_empty() { None } else { launch(kernel, [row_tiles, heads, lists.parts()])? };
    if let Some(launch) = &mut launch {
        params.pairs = (launch.blocks / row_tiles as u32) as i32;
        params.group = group(problem, lists).clamp(1, params.pairs as usize) as i32;
        if kernel.tier == Tier::Hopper {
            let resident = settings.device.multiprocessors.max(1) * kernel.blocks;
            params.folded =
                i32::from(is_folded(problem, lists, row_tiles, params.pairs as usize, resident as usize));
            // Elsewhere the device deals tiles out: as fast as a block is done, it starts the next one.
            if params.folded != 0 || tiles_are_alike(problem, lists) {
                launch.blocks = launch.blocks.min(resident);
            }
        }
        params.blocks = launch.blocks as i32;
    }
    Ok(Plan { params, launches: [launch, None, None] })
}

/// Whether all tiles of queries look at as many keys.
fn tiles_are_alike(problem: &Problem<'_>, lists: &Lists) -> bool {
    let config = &problem.attention().config;
    let masked = config.causal || config.window_left.is_some() || config.window_right.is_some();
    !masked && !lists.has_lengths()
}

/// Whether blocks take tiles by twos, one from either end of a sequence: under a causal mask these look at about as many keys as any
/// other two. Blocks that stay begin with the next tile while they end one, which a new block cannot; but the device no longer evens
/// out what is left over. So only where all tiles have a counterpart, and few blocks have one turn less than the others: at most a
/// sixteenth of all turns is missing.
fn is_folded(problem: &Problem<'_>, lists: &Lists, row_tiles: usize, pairs: usize, resident: usize) -> bool {
    let config = &problem.attention().config;
    let causal = config.causal && config.window_left.is_none() && !lists.has_lengths();
    let twos = row_tiles / 2 * pairs;
    let missing = twos.next_multiple_of(resident) - twos;
    causal && row_tiles.is_multiple_of(2) && missing <= twos / 16
}

/// Pairs of sequence and query head whose keys and values the second-level cache holds.
fn group(problem: &Problem<'_>, lists: &Lists) -> usize {
    let row = problem.head_dim() * problem.dtype().size();
    // Query heads that share keys count for one.
    let shared = problem.query_heads() / problem.kv_heads().max(1);
    KEPT_BYTES.saturating_mul(shared) / (2 * lists.max_keys).saturating_mul(row).max(1)
}
