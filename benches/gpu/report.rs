//! Results: a line of the table, an entry of the JSON file.

use inducer_attention::cuda::kernels::{self, Kernel};
use inducer_attention::cuda::{Engine, Resources};
use serde_json::{Value, json};

use crate::clock::Look;
use crate::device::Device;
use crate::grid;
use crate::problem::Problem;
use crate::roofline::{self, Bound, Card};
use crate::steadiness::{End, noise, slowdown};
use crate::support::shapes::{Case, Pass};
use crate::support::statistics::Summary;
use crate::support::table::Column;
use crate::timing::Outcome;

/// Columns of the table.
pub(crate) const COLUMNS: [Column<'static>; 24] = [
    column("", "pass", 4),
    column("", "dtype", 5),
    column("", "mask", 6),
    column("", "d", 3),
    column("", "N", 5),
    column("", "BxH", 6),
    column("inducer on", "ms", 8),
    column("", "±%", 4),
    column("", "warm", 8),
    column("", "TFLOP/s", 7),
    column("", "%roof", 5),
    column("off", "ms", 8),
    column("", "±%", 4),
    column("", "TFLOP/s", 7),
    column("", "%roof", 5),
    column("", "roof", 6),
    column("", "GB/s", 6),
    column("inducer's", "GFLOP", 7),
    column("", "price%", 6),
    column("", "±%", 4),
    column("", "regs", 4),
    column("", "KB", 4),
    column("", "occ%", 4),
    column("", "MHz", 5),
];

const fn column(group: &'static str, title: &'static str, width: usize) -> Column<'static> {
    Column { group, title, width }
}

/// The explanation above the table.
pub(crate) const LEGEND: &str = "\
ms is the median of a launch that finds its inputs in memory (± standard deviation over mean), warm of one that finds them in the
cache as far as they fit. TFLOP/s and %roof count the attention products only; GB/s is every tensor once over ms. roof names the
ceiling that is meant. price is the median of on/off − 1 within a round. regs, KB of shared memory and occupancy are the main kernel's.";

/// What was measured of one pass of one case.
pub(crate) struct Measurement {
    case: Case,
    pass: Pass,
    card: Card,
    kernel: &'static Kernel,
    resources: Option<Resources>,
    highest_clock: Option<u32>,
    outcome: Outcome,
}

impl Measurement {
    /// Adds to an outcome what is known of the problem.
    pub(crate) fn new(problem: &Problem<'_>, pass: Pass, outcome: Outcome) -> Self {
        let (case, device) = (problem.case(), problem.device());
        let kernel = main_kernel(problem.engine(), &case, pass);
        Self {
            case,
            pass,
            card: device.card.clone(),
            kernel,
            resources: problem.engine().resources(kernel).ok(),
            highest_clock: device.monitor.as_ref().and_then(crate::clock::Monitor::highest_clock),
            outcome,
        }
    }

    fn flop(&self) -> f64 {
        self.case.attention_flop(self.pass)
    }

    /// Seconds that the pass takes at least with the attention products alone.
    fn floor(&self) -> Option<(f64, Bound)> {
        let bytes = grid::bytes(&self.case, self.pass, false);
        roofline::floor(&self.card, self.case.dtype, self.flop(), bytes)
    }

    /// On over off within a round.
    fn price(&self) -> Summary {
        let pairs = self.outcome.on.cold.iter().zip(&self.outcome.off.cold);
        let ratios: Vec<f64> = pairs.map(|(on, off)| 100.0 * (on / off - 1.0)).collect();
        summary(&ratios)
    }

    /// Threads at work of those that a multiprocessor holds, in percent.
    fn occupancy(&self) -> Option<f64> {
        let threads = self.resources?.blocks_per_multiprocessor * self.kernel.threads();
        Some(100.0 * f64::from(threads) / f64::from(self.card.threads_per_multiprocessor))
    }

    /// The middle clock of all looks.
    fn clock(&self) -> Option<f64> {
        let clocks: Vec<f64> = self.outcome.looks.iter().map(|look| f64::from(look.clock)).collect();
        Summary::of(&clocks).map(|s| s.median)
    }

    /// Cells of [`COLUMNS`].
    pub(crate) fn cells(&self) -> Vec<String> {
        let case = &self.case;
        let or_dash = |value: Option<String>| value.unwrap_or_else(|| "-".into());
        let floor = self.floor();
        let percent = |seconds: f64| or_dash(floor.map(|(s, _)| format!("{:.1}", 100.0 * s / seconds)));
        let tflops = |seconds: f64| format!("{:.1}", self.flop() / seconds / 1e12);
        let spread = |series: &[f64]| or_dash(noise(series).map(|n| format!("{:.1}", 100.0 * n)));
        let (on, off) = (&self.outcome.on, &self.outcome.off);
        let (on_cold, off_cold) = (summary(&on.cold).median, summary(&off.cold).median);
        let price = self.price();
        vec![
            self.pass.to_string(),
            case.dtype.to_string(),
            case.mask.to_string(),
            case.head_dim.to_string(),
            case.n.to_string(),
            format!("{}x{}", case.batch, case.heads),
            format!("{:.3}", 1e3 * on_cold),
            spread(&on.cold),
            format!("{:.3}", 1e3 * summary(&on.warm).median),
            tflops(on_cold),
            percent(on_cold),
            format!("{:.3}", 1e3 * off_cold),
            spread(&off.cold),
            tflops(off_cold),
            percent(off_cold),
            or_dash(floor.map(|(_, bound)| bound.name().to_owned())),
            format!("{:.0}", grid::bytes(case, self.pass, true) / on_cold / 1e9),
            format!("{:.2}", case.inducer_flop(self.pass) / 1e9),
            format!("{:+.1}", price.median),
            format!("{:.1}", price.spread),
            or_dash(self.resources.map(|r| r.registers.to_string())),
            or_dash(self.resources.map(|r| (r.shared_bytes / 1024).to_string())),
            or_dash(self.occupancy().map(|o| format!("{o:.0}"))),
            or_dash(self.clock().map(|c| format!("{c:.0}"))),
        ]
    }

    /// What a reader must know before believing the line.
    pub(crate) fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if self.outcome.end == End::TimeLimit {
            let runs = self.outcome.on.cold.len();
            warnings.push(format!("not steady after {runs} rounds; more --seconds may help"));
        }
        let mut reasons: Vec<&str> = self.outcome.looks.iter().flat_map(Look::throttled).collect();
        reasons.sort_unstable();
        reasons.dedup();
        if let (Some(clock), Some(highest)) = (self.clock(), self.highest_clock)
            && !reasons.is_empty()
        {
            warnings.push(format!("throttled to {clock:.0} of {highest} MHz: {}", reasons.join(", ")));
        }
        if let Some(ratio) = slowdown(&self.outcome.off.cold) {
            warnings.push(format!("the card became {:.0} % slower meanwhile", 100.0 * ratio));
        }
        warnings
    }

    /// The entry of the JSON file.
    pub(crate) fn json(&self) -> Value {
        let case = &self.case;
        let state = |cold: &[f64], warm: &[f64]| {
            let (cold_summary, warm) = (summary(cold), summary(warm));
            json!({
                "seconds": cold_summary.median,
                "noise": noise(cold),
                "seconds_warm": warm.median,
                "attention_tflops": self.flop() / cold_summary.median / 1e12,
                "percent_of_roofline": self.floor().map(|(s, _)| 100.0 * s / cold_summary.median),
            })
        };
        let (on, off, price) = (&self.outcome.on, &self.outcome.off, self.price());
        let watts: Vec<f64> = self.outcome.looks.iter().map(|look| look.watts).collect();
        json!({
            "label": case.label(self.pass),
            "pass": self.pass.to_string(),
            "dtype": case.dtype.to_string(),
            "mask": case.mask.to_string(),
            "head_dim": case.head_dim,
            "n": case.n,
            "heads": case.heads,
            "batch": case.batch,
            "rank": case.rank,
            "rounds": on.cold.len(),
            "steady": self.outcome.end == End::Steady,
            "inducer_on": state(&on.cold, &on.warm),
            "inducer_off": state(&off.cold, &off.warm),
            "inducer_price_percent": price.median,
            "inducer_price_spread_percent": price.spread,
            "attention_gflop": self.flop() / 1e9,
            "inducer_gflop": case.inducer_flop(self.pass) / 1e9,
            "roofline": self.floor().map(|(_, bound)| bound.name()),
            "bytes": grid::bytes(case, self.pass, true),
            "kernel": self.kernel.name,
            "registers": self.resources.map(|r| r.registers),
            "local_bytes": self.resources.map(|r| r.local_bytes),
            "shared_bytes": self.resources.map(|r| r.shared_bytes),
            "occupancy_percent": self.occupancy(),
            "clock_mhz": self.clock(),
            "watts": Summary::of(&watts).map(|s| s.median),
            "warnings": self.warnings(),
        })
    }
}

/// The kernel that does most of a pass.
fn main_kernel(engine: &Engine, case: &Case, pass: Pass) -> &'static Kernel {
    let pass = match pass {
        Pass::Forward => kernels::Pass::Forward,
        Pass::Backward => kernels::Pass::Backward,
    };
    engine
        .kernel(pass, case.dtype, case.head_dim)
        .expect("the table has kernels for every head_dim of the grid")
}

fn summary(series: &[f64]) -> Summary {
    Summary::of(series).expect("at least one round was timed")
}

/// The card's entry in the JSON file.
pub(crate) fn card_json(device: &Device) -> Value {
    let card = &device.card;
    json!({
        "name": card.name,
        "compute_capability": format!("{}.{}", card.capability.0, card.capability.1),
        "multiprocessors": card.multiprocessors,
        "clock_mhz": card.clock / 1e6,
        "l2_bytes": card.l2_bytes,
        "memory_bytes": card.memory_bytes,
        "driver": device.monitor.as_ref().and_then(crate::clock::Monitor::driver),
        "cuda": format!("{}.{}", device.cuda / 1000, device.cuda % 1000 / 10),
        "peak_16bit_tflops": card.peak(inducer_attention::DType::BF16).map(|p| p / 1e12),
        "peak_f32_tflops": card.peak(inducer_attention::DType::F32).map(|p| p / 1e12),
        "bandwidth_gbps": card.bandwidth / 1e9,
    })
}

/// What every kernel takes on this card, as the driver loaded it.
pub(crate) fn resources_json(engine: &Engine) -> Value {
    let one = |kernel: &'static Kernel| {
        let r = engine.resources(kernel).ok()?;
        Some(json!({
            "kernel": kernel.name,
            "registers": r.registers,
            "local_bytes": r.local_bytes,
            "shared_bytes": r.shared_bytes,
            "blocks_per_multiprocessor": r.blocks_per_multiprocessor,
        }))
    };
    kernels::KERNELS.iter().filter_map(one).collect()
}
