//! Timing two contestants against each other.

use std::time::{Duration, Instant};

use super::statistics::Summary;

/// Rounds that a comparison has at least, unless they take [`PATIENCE`] times the budget.
const MIN_ROUNDS: usize = 5;

/// How far a comparison of slow contestants may overrun its budget to reach [`MIN_ROUNDS`].
const PATIENCE: f64 = 4.0;

/// Two contestants, timed in turn.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Comparison {
    /// Seconds of one call of the first.
    pub(crate) first: Summary,
    /// Seconds of one call of the second.
    pub(crate) second: Summary,
    /// Time of the first over time of the second, within each round.
    pub(crate) ratio: Summary,
}

/// Calls both once to warm up, then times them in rounds until `budget` is spent.
///
/// Each round calls both, and the one that goes first changes from round to round: what else happens on the machine, and
/// what a call leaves in the caches, meets both alike.
///
/// # Errors
/// The first error of a contestant.
pub(crate) fn compare<E>(
    budget: Duration,
    mut first: impl FnMut() -> Result<(), E>,
    mut second: impl FnMut() -> Result<(), E>,
) -> Result<Comparison, E> {
    first()?;
    second()?;
    let (mut a, mut b) = (Vec::new(), Vec::new());
    let start = Instant::now();
    loop {
        if a.len().is_multiple_of(2) {
            a.push(seconds(&mut first)?);
            b.push(seconds(&mut second)?);
        } else {
            b.push(seconds(&mut second)?);
            a.push(seconds(&mut first)?);
        }
        let spent = start.elapsed();
        if spent >= budget && (a.len() >= MIN_ROUNDS || spent >= budget.mul_f64(PATIENCE)) {
            break;
        }
    }
    let ratios: Vec<f64> = a.iter().zip(&b).map(|(a, b)| a / b).collect();
    let summary = |series: &[f64]| Summary::of(series).expect("at least one round was timed");
    Ok(Comparison { first: summary(&a), second: summary(&b), ratio: summary(&ratios) })
}

fn seconds<E>(call: &mut impl FnMut() -> Result<(), E>) -> Result<f64, E> {
    let start = Instant::now();
    call()?;
    // A clock that is too coarse to see the call must not make it infinitely fast.
    Ok(start.elapsed().max(Duration::from_nanos(1)).as_secs_f64())
}
