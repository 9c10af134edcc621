//! The backward's plan: prepare, main pass, finish, and the workspace between them.
//!
//! ```text
//! prepare   Hq · chunks blocks          D′, w, the inducer's part of dQ, partial sums of adapter gradients; zeroes the counters
//! main      Hkv · (groups · prefix      a tile of keys each: dK, dV, and dQ in turn
//!           tiles + parts · key
//!           tiles) blocks
//! finish    as many as fill a GPU       rounds dQ, adds up partial sums
//! ```

use super::{BackwardPlan, Plan, find, launch};
use crate::attention::Problem;
use crate::call::{Backward, D_KEY, D_VALUE, SavedOutput};
use crate::cuda::convert::{self, Access};
use crate::cuda::kernels::{Abilities, Pass};
use crate::cuda::lists::Lists;
use crate::cuda::params::{self, BackwardParams, flags};
use crate::error::{Error, Result};
use crate::inducer::{AdapterGradients, KeyGradients, ValueGradients};

/// Pieces of the workspace begin at multiples of this many bytes.
const ALIGN: usize = 256;

/// Rows of a block of f32 dQ; `kernels/core/query_gradient.cuh` has its layout.
const GRADIENT_ROWS: usize = 16;

/// Blocks that keep the largest GPU busy where work is dealt out freely; the order of sums depends on it, so it is the same
/// everywhere.
const BLOCKS: usize = 512;

/// Multiprocessors of that GPU, about.
const MULTIPROCESSORS: usize = 128;

/// In which order the backward sums dQ over tiles of keys.
///
/// Whatever it is, all other gradients are the same from run to run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SumOrder {
    /// A fixed one: dQ is the same from run to run, bit by bit. Tiles of keys wait for their turn.
    #[default]
    Fixed,
    /// As tiles come: nobody waits, and the last bits of dQ differ from run to run.
    Any,
}

/// What calls may do and have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// In which order dQ is summed.
    pub order: SumOrder,
    /// What the device has: decides which kernels run.
    pub device: Abilities,
}

impl Default for Settings {
    /// Sums in a fixed order, tiles for every GPU.
    fn default() -> Self {
        Self { order: SumOrder::Fixed, device: Abilities::COMMON }
    }
}

/// Tiles and pieces of the workspace, from the problem's sizes alone.
struct Sizes {
    row_tiles: usize,
    turn_tiles: usize,
    prepare_tiles: usize,
    key_tiles: usize,
    prefix_tiles: usize,
    prefix_groups: usize,
    chunks: usize,
    partial_size: usize,
    gradient_blocks: usize,
    sequence_blocks: usize,
    /// Bytes of f32 dQ, w, D′, partial sums of adapters and of the prefix, turns, ticket.
    pieces: [usize; 7],
}

impl Sizes {
    fn of(problem: &Problem<'_>, lists: &Lists, device: Abilities) -> Self {
        let (heads, d) = (problem.query_heads(), problem.head_dim());
        let rows = problem.batch() * heads * problem.rows();
        let [prepare, main] = [Pass::BackwardPrepare, Pass::Backward].map(|pass| find(pass, problem, device));
        // Padding behind the sequences is the last tile's.
        let tiles = |n: usize, tile: u32| n.div_ceil(tile as usize).max(1);
        let row_tiles = tiles(lists.max_rows, main.rows);
        let prepare_tiles = tiles(lists.max_rows, prepare.rows);
        let tasks = lists.parts() * prepare_tiles;
        // As many blocks as that GPU runs at once, or a multiple: none begins when most of the others are done.
        let at_once = MULTIPROCESSORS * prepare.blocks as usize;
        let chunks = (BLOCKS / at_once * at_once / heads).min(tasks).max(1);
        let partial_size = partial_size(problem);
        let prefix_tiles = problem.prefix_len().div_ceil(main.keys as usize);
        // As many groups of sequences as keep a GPU busy, so that their partial sums stay small.
        let prefix_groups =
            BLOCKS.div_ceil((problem.kv_heads() * prefix_tiles).max(1)).min(lists.sequences).max(1);
        let prefix_size = problem.kv_heads() * problem.prefix_len() * d;
        let sets = if lists.packed() { 1 } else { lists.sequences };
        let turn_tiles = if lists.packed() {
            problem.rows() / main.rows as usize + lists.sequences + 1
        } else {
            row_tiles
        };
        let sequence_blocks = prepare_tiles * (prepare.rows as usize / GRADIENT_ROWS);
        let gradient_blocks = if lists.packed() {
            problem.rows() / GRADIENT_ROWS + lists.sequences + 1
        } else {
            sequence_blocks.min(problem.rows().div_ceil(GRADIENT_ROWS))
        };
        let floats = |n: usize| n.saturating_mul(size_of::<f32>());
        Self {
            row_tiles,
            turn_tiles,
            prepare_tiles,
            key_tiles: tiles(lists.max_keys, main.keys),
            prefix_tiles,
            prefix_groups,
            chunks,
            partial_size,
            gradient_blocks,
            sequence_blocks,
            pieces: [
                floats((sets * heads * gradient_blocks).saturating_mul(GRADIENT_ROWS * d)),
                floats(rows),
                floats(rows),
                floats((chunks * heads).saturating_mul(partial_size)),
                floats((2 * prefix_groups).saturating_mul(prefix_size)),
                floats((sets * heads).saturating_mul(turn_tiles)),
                floats(1),
            ],
        }
    }

    fn bytes(&self) -> usize {
        // One that overflows is larger than any memory.
        self.pieces
            .iter()
            .try_fold(0usize, |sum, n| sum.checked_add(n.checked_next_multiple_of(ALIGN)?))
            .unwrap_or(usize::MAX)
    }
}

/// Floats from one partial sum to the next, which keeps them aligned; `kernels/core/partials.cuh` has their layout.
fn partial_size(problem: &Problem<'_>) -> usize {
    let (key, value) = (problem.key_rank(), problem.value_rank());
    let adapter_rows = |rank: usize| if rank > 0 { 2 * rank + 1 } else { 0 };
    let value_rows = if problem.is_extended() { value } else { adapter_rows(value) };
    ((adapter_rows(key) + value_rows) * problem.head_dim() + key + value + 1).next_multiple_of(4)
}

/// Bytes of workspace that a backward needs.
pub fn backward_workspace(problem: &Problem<'_>, lists: &Lists, settings: &Settings) -> usize {
    Sizes::of(problem, lists, settings.device).bytes()
}

/// Plans a backward whose workspace of `bytes` bytes begins at `workspace`.
///
/// # Errors
/// As [`check`](super::check), for what the backward reads and writes as well; [`Error::WorkspaceTooSmall`],
/// [`Error::TooManyBlocks`].
pub fn backward(
    call: &Backward<'_, '_, '_>,
    lists: &Lists,
    workspace: u64,
    bytes: usize,
    settings: &Settings,
) -> Result<BackwardPlan> {
    let problem = call.problem;
    let mut params =
        BackwardParams { problem: convert::problem(problem, lists)?, ..BackwardParams::default() };
    inputs(call, &mut params)?;
    outputs(call, &mut params)?;
    if settings.order == SumOrder::Any {
        params.problem.flags |= flags::UNORDERED;
    }

    let sizes = Sizes::of(problem, lists, settings.device);
    if bytes < sizes.bytes() {
        return Err(Error::WorkspaceTooSmall { got: bytes, needed: sizes.bytes() });
    }
    if !workspace.is_multiple_of(ALIGN as u64) {
        return Err(Error::Misaligned {
            argument: "workspace",
            address: workspace as usize,
            strides: Vec::new(),
            dtype: crate::DType::F32,
            alignment: ALIGN,
        });
    }
    let mut at = workspace;
    let [d_q_sum, row_factor, row_constant, partials, prefix_partials, turns, ticket] =
        sizes.pieces.map(|bytes| {
            let piece = at;
            at += bytes.next_multiple_of(ALIGN) as u64;
            piece
        });
    params = BackwardParams {
        d_q_sum,
        row_factor,
        row_constant,
        partials,
        prefix_partials,
        turns,
        ticket,
        // Sizes of more than 31 bits make more blocks than a launch can have.
        row_tiles: sizes.row_tiles as i32,
        turn_tiles: sizes.turn_tiles as i32,
        prepare_tiles: sizes.prepare_tiles as i32,
        chunks: sizes.chunks as i32,
        key_tiles: sizes.key_tiles as i32,
        prefix_tiles: sizes.prefix_tiles as i32,
        prefix_groups: sizes.prefix_groups as i32,
        partial_size: sizes.partial_size as i32,
        finish_blocks: BLOCKS as i32,
        gradient_blocks: sizes.gradient_blocks as i32,
        sequence_blocks: sizes.sequence_blocks as i32,
        ..params
    };
    let key_tasks = sizes.prefix_groups * sizes.prefix_tiles + lists.parts() * sizes.key_tiles;
    let kernels = [Pass::BackwardPrepare, Pass::Backward, Pass::BackwardFinish];
    let factors =
        [[problem.query_heads(), sizes.chunks, 1], [problem.kv_heads(), key_tasks, 1], [BLOCKS, 1, 1]];
    // Prepare counts the tiles of all sequences in 31 bits.
    launch(find(Pass::BackwardPrepare, problem, settings.device), [lists.parts(), sizes.prepare_tiles, 2])?;
    let mut launches = [None; 3];
    for ((slot, pass), factors) in launches.iter_mut().zip(kernels).zip(factors) {
        *slot = launch(find(pass, problem, settings.device), factors)?;
    }
    Ok(Plan { params, launches })
}

fn inputs(call: &Backward<'_, '_, '_>, params: &mut BackwardParams) -> Result<()> {
    let upstream = &call.upstream;
    params.saved = match &call.saved.output {
        SavedOutput::Output(t) => convert::tensor("saved.o", t, Access::Chunks)?,
        SavedOutput::Attention(t) => {
            params.problem.flags |= flags::FROM_ATTENTION;
            convert::tensor("saved.attn", t, Access::Chunks)?
        }
    };
    params.lse = convert::strided("saved.lse", &call.saved.lse)?;
    params.d_o = convert::tensor("d_o", &upstream.d_o, Access::Chunks)?;
    if let Some(t) = &upstream.d_lse {
        params.d_lse = convert::strided("d_lse", t)?;
    }
    if let Some(t) = &upstream.d_u {
        params.d_u = convert::tensor("d_u", t, Access::Elements)?;
    }
    Ok(())
}

fn outputs(call: &Backward<'_, '_, '_>, params: &mut BackwardParams) -> Result<()> {
    let gradients = &call.gradients;
    params.d_q = convert::tensor("d_q", &gradients.d_q.as_ref(), Access::Pairs)?;
    params.d_k = convert::tensor("d_k", &gradients.d_k.as_ref(), Access::Pairs)?;
    params.d_v = convert::tensor("d_v", &gradients.d_v.as_ref(), Access::Pairs)?;
    if let Some(prefix) = &gradients.prefix {
        params.d_prefix_k = convert::strided("d_prefix.k", &prefix.k.as_ref())?;
        params.d_prefix_v = convert::strided("d_prefix.v", &prefix.v.as_ref())?;
    }
    match &gradients.key {
        KeyGradients::None => {}
        KeyGradients::Residual(g) => params.d_key = adapter(D_KEY, g)?,
        KeyGradients::LogitPerHead(t) => {
            let logit = convert::strided("d_key.logit", &t.as_ref())?;
            params.d_logit = params::Strided { stride: [0, logit.stride[0], 0], ..logit };
        }
        KeyGradients::LogitPerToken(t) => {
            params.d_logit = convert::strided("d_key.logit", &t.as_ref())?;
        }
    }
    match &gradients.value {
        ValueGradients::None => {}
        ValueGradients::Adapter(g) => params.d_value = adapter(D_VALUE, g)?,
        ValueGradients::Extended(g) => {
            params.d_value.down_weight = convert::strided(D_VALUE[0], &g.down_weight.as_ref())?;
            params.d_value.down_bias = convert::strided(D_VALUE[1], &g.down_bias.as_ref())?;
        }
    }
    Ok(())
}

fn adapter(names: [&'static str; 4], g: &AdapterGradients<'_>) -> Result<params::AdapterGradients> {
    Ok(params::AdapterGradients {
        down_weight: convert::strided(names[0], &g.down_weight.as_ref())?,
        down_bias: convert::strided(names[1], &g.down_bias.as_ref())?,
        up_weight: convert::strided(names[2], &g.up_weight.as_ref())?,
        up_bias: convert::strided(names[3], &g.up_bias.as_ref())?,
    })
}
