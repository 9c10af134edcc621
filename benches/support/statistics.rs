//! Summaries of repeated measurements.

/// What is told of a series of measurements: robust against the few that something else on the machine disturbed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Summary {
    /// The middle one.
    pub(crate) median: f64,
    /// Half the distance between the quartiles.
    pub(crate) spread: f64,
    /// How many there were.
    pub(crate) samples: usize,
}

impl Summary {
    /// Summarises a series, or nothing where there is none.
    pub(crate) fn of(series: &[f64]) -> Option<Self> {
        let mut sorted = series.to_vec();
        sorted.sort_unstable_by(f64::total_cmp);
        Some(Self {
            median: quantile(&sorted, 0.5)?,
            spread: (quantile(&sorted, 0.75)? - quantile(&sorted, 0.25)?) / 2.0,
            samples: sorted.len(),
        })
    }

    /// The spread as a fraction of the median.
    pub(crate) fn relative_spread(&self) -> f64 {
        self.spread / self.median
    }
}

/// Linear interpolation between the neighbours of position `q·(n − 1)`.
fn quantile(sorted: &[f64], q: f64) -> Option<f64> {
    let last = sorted.len().checked_sub(1)?;
    let at = q * last as f64;
    let (below, above) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
    Some(below + (above - below) * at.fract())
}
