//! When a series of measurements is long enough, and whether the card slowed down meanwhile.

use std::time::Duration;

/// A series is steady when its standard deviation is at most this part of its mean.
pub(crate) const NOISE: f64 = 0.005;

/// Fewest rounds.
const MIN_ROUNDS: usize = 8;

/// A later part that is slower by more than this has been throttled, or shares the card.
const DRIFT: f64 = 0.03;

/// Standard deviation over mean; none for fewer than two samples.
pub(crate) fn noise(series: &[f64]) -> Option<f64> {
    let n = series.len() as f64;
    if series.len() < 2 {
        return None;
    }
    let mean = series.iter().sum::<f64>() / n;
    let squares: f64 = series.iter().map(|x| (x - mean).powi(2)).sum();
    Some((squares / (n - 1.0)).sqrt() / mean)
}

/// Why a measurement ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// Every series is steady.
    Steady,
    /// The time is used up.
    TimeLimit,
}

/// Whether to stop after another round. The last half of each series is judged, so that a slow beginning is forgotten.
pub(crate) fn end(series: &[&[f64]], spent: Duration, budget: Duration) -> Option<End> {
    let recent = |s: &&[f64]| noise(&s[s.len() / 2..]).is_some_and(|noise| noise <= NOISE);
    let enough = series.iter().all(|s| s.len() >= MIN_ROUNDS);
    if enough && series.iter().all(recent) {
        Some(End::Steady)
    } else if spent >= budget {
        Some(End::TimeLimit)
    } else {
        None
    }
}

/// How much slower the last third of a series is than the first, where that is more than chance.
pub(crate) fn slowdown(series: &[f64]) -> Option<f64> {
    let third = series.len() / 3;
    let median = |part: &[f64]| crate::support::statistics::Summary::of(part).map(|s| s.median);
    let (first, last) = (median(&series[..third])?, median(&series[series.len() - third..])?);
    let ratio = last / first - 1.0;
    (ratio > DRIFT).then_some(ratio)
}
