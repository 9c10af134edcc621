//! Results: a line of the table, an entry of the JSON file.

use serde_json::{Value, json};

use super::peak::Peak;
use super::shapes::{Case, Pass};
use super::statistics::Summary;
use super::table::Column;
use super::timing::Comparison;

/// Columns of the table.
pub(crate) const COLUMNS: [Column<'static>; 19] = [
    column("", "pass", 4),
    column("", "dtype", 5),
    column("", "mask", 6),
    column("", "d", 3),
    column("", "N", 5),
    column("", "BxH", 4),
    column("", "layout", 6),
    column("inducer on", "ms", 8),
    column("", "±%", 4),
    column("", "GFLOP/s", 7),
    column("", "%peak", 5),
    column("off", "ms", 8),
    column("", "±%", 4),
    column("", "GFLOP/s", 7),
    column("", "%peak", 5),
    column("inducer's", "GFLOP", 7),
    column("", "price%", 6),
    column("", "±%", 4),
    column("", "runs", 4),
];

const fn column(group: &'static str, title: &'static str, width: usize) -> Column<'static> {
    Column { group, title, width }
}

/// What was measured of one pass of one case.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Measurement {
    /// The problem.
    pub(crate) case: Case,
    /// Which pass.
    pub(crate) pass: Pass,
    /// Threads of the pool.
    pub(crate) threads: usize,
    /// What those threads can do at most.
    pub(crate) peak: Peak,
    /// With the inducer (first) against without (second).
    pub(crate) times: Comparison,
}

impl Measurement {
    /// Attention's operations per second, in units of 10⁹: the inducer's own are not counted.
    fn gflops(&self, time: &Summary) -> f64 {
        self.case.attention_flop(self.pass) / time.median / 1e9
    }

    fn percent_of_peak(&self, time: &Summary) -> f64 {
        100.0 * 1e9 * self.gflops(time) / self.peak.of(self.case.dtype)
    }

    /// How much longer it takes with the inducer, in percent, and the spread of that.
    fn price(&self) -> (f64, f64) {
        (100.0 * (self.times.ratio.median - 1.0), 100.0 * self.times.ratio.spread)
    }

    /// Cells of [`COLUMNS`].
    pub(crate) fn cells(&self) -> Vec<String> {
        let case = &self.case;
        let mut cells = vec![
            self.pass.to_string(),
            case.dtype.to_string(),
            case.mask.to_string(),
            case.head_dim.to_string(),
            case.n.to_string(),
            format!("{}x{}", case.batch, case.heads),
            case.layout.to_string(),
        ];
        for time in [&self.times.first, &self.times.second] {
            cells.extend([
                format!("{:.3}", 1e3 * time.median),
                format!("{:.1}", 100.0 * time.relative_spread()),
                format!("{:.1}", self.gflops(time)),
                format!("{:.1}", self.percent_of_peak(time)),
            ]);
        }
        let (price, spread) = self.price();
        cells.push(format!("{:.3}", case.inducer_flop(self.pass) / 1e9));
        cells.extend([format!("{price:+.1}"), format!("{spread:.1}"), self.times.ratio.samples.to_string()]);
        cells
    }

    /// The entry of the JSON file.
    pub(crate) fn json(&self) -> Value {
        let case = &self.case;
        let state = |time: &Summary| {
            json!({
                "median_seconds": time.median,
                "spread_seconds": time.spread,
                "samples": time.samples,
                "attention_gflops": self.gflops(time),
                "percent_of_peak": self.percent_of_peak(time),
            })
        };
        let (price, spread) = self.price();
        json!({
            "pass": self.pass.to_string(),
            "dtype": case.dtype.to_string(),
            "mask": case.mask.to_string(),
            "head_dim": case.head_dim,
            "n": case.n,
            "heads": case.heads,
            "batch": case.batch,
            "layout": case.layout.to_string(),
            "rank": case.rank,
            "threads": self.threads,
            "peak_gflops": self.peak.of(case.dtype) / 1e9,
            "attention_gflop": case.attention_flop(self.pass) / 1e9,
            "inducer_gflop": case.inducer_flop(self.pass) / 1e9,
            "inducer_on": state(&self.times.first),
            "inducer_off": state(&self.times.second),
            "inducer_price_percent": price,
            "inducer_price_spread_percent": spread,
        })
    }
}
