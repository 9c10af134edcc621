//! The CUDA kernels on the emulator.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use inducer_attention::cuda::kernels::Abilities;
use inducer_attention::cuda::plan::{self, Plan, Settings};
use inducer_attention::cuda::{HEAD_DIM_MULTIPLE, Lists, RawList, RawLists};
use inducer_attention::emulator::{self, CopyTiming, Launch, Memory, Options, Policy, Region, Site, launch};
use inducer_attention::{DType, Error, Gradients, Outputs, Problem, Saved, Upstream};

use super::backend::Backend;
use super::staging::{self, Device};

/// The kernels' own source on the emulator. Every fault that it finds is a panic.
#[derive(Clone, Debug, Default)]
pub struct Emulated {
    /// How to run launches; `None`: differently for problems of different sizes.
    pub options: Option<Options>,
    /// The most rows and keys that a packed sequence is said to have; `None`: what is true.
    pub bounds: Option<(usize, usize)>,
    /// The order of sums, and the tiles.
    pub settings: Settings,
    /// Barriers, waits and the like that launches came to.
    pub sites: Arc<Mutex<BTreeSet<Site>>>,
}

impl Emulated {
    /// Hopper's kernels, on so few multiprocessors that blocks take several tiles.
    pub fn hopper() -> Self {
        let device = Abilities { multiprocessors: 2, ..Abilities::HOPPER };
        Self { settings: Settings { device, ..Settings::default() }, ..Self::default() }
    }

    fn options(&self, problem: &Problem<'_>) -> Options {
        const POLICIES: [Policy; 4] =
            [Policy::RoundRobin, Policy::OneWarpAhead, Policy::Reversed, Policy::Random];
        const TIMINGS: [CopyTiming; 3] = [CopyTiming::Early, CopyTiming::Late, CopyTiming::Random];
        self.options.clone().unwrap_or_else(|| {
            let sizes = [problem.rows(), problem.keys(), problem.head_dim(), problem.query_heads()];
            let seed = sizes.into_iter().fold(17usize, |h, n| h.wrapping_mul(0x9e37_79b1).wrapping_add(n));
            Options {
                policy: POLICIES[seed / 8 % 4],
                copies: TIMINGS[seed / 32 % 3],
                seed: seed as u64,
                ..Options::default()
            }
        })
    }
}

/// Memory that launches may touch.
#[derive(Default)]
struct Pieces {
    memory: Vec<Memory>,
    regions: Vec<Region>,
}

impl Pieces {
    /// A copy of a list.
    fn list(&mut self, list: Option<RawList>) -> Option<RawList> {
        let list = list?;
        let entries = std::ptr::with_exposed_provenance::<u32>(list.address as usize);
        // SAFETY: a list of the problem, of numbers of four bytes; an empty one's address is aligned as well.
        let memory = Memory::of(unsafe { std::slice::from_raw_parts(entries, list.len) });
        let address = memory.address() as u64;
        self.regions.extend((list.len > 0).then(|| memory.input()));
        self.memory.push(memory);
        Some(RawList { address, ..list })
    }

    /// Copies of a problem's lists.
    fn lists(&mut self, problem: &Problem<'_>, bounds: Option<(usize, usize)>) -> Lists {
        let own = RawLists::of(problem);
        let raw = RawLists {
            query_lengths: self.list(own.query_lengths),
            key_lengths: self.list(own.key_lengths),
            key_starts: self.list(own.key_starts),
            cu_seqlens_q: self.list(own.cu_seqlens_q),
            cu_seqlens_k: self.list(own.cu_seqlens_k),
            positions: self.list(own.positions),
            alibi_slopes: self.list(own.alibi_slopes),
            max_rows: bounds.map_or(own.max_rows, |b| Some(b.0)),
            max_keys: bounds.map_or(own.max_keys, |b| Some(b.1)),
        };
        Lists::new(problem, &raw).expect("a problem's own lists fit it")
    }

    /// Runs all launches of a plan.
    ///
    /// # Panics
    /// If the emulator finds a fault.
    fn run<P: bytemuck::Pod>(&mut self, plan: &Plan<P>, options: &Options, sites: &Mutex<BTreeSet<Site>>) {
        let there = emulator::kernels();
        for step in plan.launches() {
            let kernel = step.kernel;
            // Another test holds the table's bytes against these.
            let shared_bytes = there.iter().find(|k| k.name == kernel.name).map_or(0, |k| k.shared_bytes);
            let call = Launch {
                kernel: kernel.name,
                grid: step.blocks,
                threads: kernel.threads(),
                shared_bytes,
                params: plan.params_bytes(),
                regions: &self.regions,
            };
            // SAFETY: the regions lie in memory that this value owns.
            let report = unsafe { launch(&call, options) };
            sites.lock().unwrap_or_else(PoisonError::into_inner).extend(report.sites.iter().cloned());
            assert!(report.is_clean(), "{} with {options:?}:\n{report}", kernel.name);
            // What this launch has written, the next one may read.
            self.regions.iter_mut().for_each(|region| region.initialised = true);
        }
    }
}

impl Device for Pieces {
    fn memory(&self) -> inducer_attention::Memory {
        inducer_attention::Memory::Host
    }

    fn hold(&mut self, piece: &[u64], first: usize, bytes: usize, writable: bool) -> u64 {
        let memory = Memory::of(piece);
        if bytes > 0 {
            // Regions begin at multiples of 16.
            let start = first / 16 * 16;
            let address = memory.address().wrapping_add(start);
            let bytes = first + bytes - start;
            self.regions.push(Region { address, bytes, writable, initialised: !writable });
        }
        let address = memory.address().expose_provenance();
        self.memory.push(memory);
        address as u64
    }

    fn fetch(&mut self, address: u64, piece: &mut [u64]) {
        let memory = self.memory.iter().find(|m| m.address() as u64 == address).expect("a piece");
        piece.copy_from_slice(&memory.read());
    }
}

impl Backend for Emulated {
    fn name(&self) -> String {
        if self.settings.device.hopper { "emulated warpgroups" } else { "emulated" }.into()
    }

    fn supports(&self, problem: &Problem<'_>) -> bool {
        // Of f32, Hopper's kernels are those of all others.
        let is_new = !self.settings.device.hopper || problem.dtype() != DType::F32;
        is_new && problem.head_dim().is_multiple_of(HEAD_DIM_MULTIPLE)
    }

    fn forward(&self, problem: &Problem<'_>, outputs: Outputs<'_>) -> Result<(), Error> {
        staging::forward(&mut Pieces::default(), problem, outputs, |pieces, copy, call| {
            let lists = pieces.lists(copy, self.bounds);
            pieces.run(&plan::forward(&call, &lists, &self.settings)?, &self.options(copy), &self.sites);
            Ok(())
        })
    }

    fn backward<'a>(
        &self,
        problem: &Problem<'a>,
        saved: Saved<'a>,
        upstream: Upstream<'a>,
        gradients: Gradients<'_>,
    ) -> Result<(), Error> {
        let inputs = (&saved, &upstream);
        staging::backward(&mut Pieces::default(), problem, inputs, gradients, |pieces, copy, call| {
            let lists = pieces.lists(copy, self.bounds);
            let workspace = Memory::new(plan::backward_workspace(copy, &lists, &self.settings));
            pieces.regions.push(workspace.output());
            let address = workspace.address() as u64;
            let plan = plan::backward(&call, &lists, address, workspace.len(), &self.settings)?;
            pieces.memory.push(workspace);
            pieces.run(&plan, &self.options(copy), &self.sites);
            Ok(())
        })
    }
}
