//! Timing a pass with and without the inducer by the card's own clock.

use std::error::Error;
use std::time::{Duration, Instant};

use inducer_attention::cuda::cudarc::driver::CudaEvent;
use inducer_attention::cuda::cudarc::driver::sys::CUevent_flags;

use crate::clock::{Look, Monitor};
use crate::problem::Problem;
use crate::steadiness::{self, End};
use crate::support::shapes::Pass;

/// What a pair of events encloses at least, in seconds: their resolution is half a microsecond.
const BATCH: f64 = 1e-3;

/// Most launches between two events.
const MAX_BATCH: usize = 64;

/// How long the card computes before anything counts: long enough for its clocks to rise.
const WARM_UP: Duration = Duration::from_millis(100);

/// Seconds of one launch, by round.
#[derive(Clone, Debug, Default)]
pub(crate) struct Series {
    /// Inputs come from memory: each launch works on another set of tensors.
    pub(crate) cold: Vec<f64>,
    /// Inputs are in the cache as far as they fit: each launch works on the same set.
    pub(crate) warm: Vec<f64>,
}

/// What was measured of one pass.
#[derive(Clone, Debug)]
pub(crate) struct Outcome {
    pub(crate) on: Series,
    pub(crate) off: Series,
    pub(crate) end: End,
    /// The card in each round, while it was at work.
    pub(crate) looks: Vec<Look>,
}

struct Stopwatch {
    begin: CudaEvent,
    end: CudaEvent,
}

/// Measures in rounds until the figures are steady or the time is used up. In each round both contestants run, cold and warm,
/// and who goes first changes from round to round.
///
/// # Errors
/// The driver's.
pub(crate) fn measure(
    problem: &Problem<'_>,
    pass: Pass,
    budget: Duration,
) -> Result<Outcome, Box<dyn Error>> {
    let device = problem.device();
    let stream = &device.stream;
    let stopwatch = || -> Result<Stopwatch, Box<dyn Error>> {
        let event = || device.context.new_event(Some(CUevent_flags::CU_EVENT_DEFAULT));
        Ok(Stopwatch { begin: event()?, end: event()? })
    };
    let seconds = |watch: &Stopwatch, launches: usize| -> Result<f64, Box<dyn Error>> {
        Ok(f64::from(watch.begin.elapsed_ms(&watch.end)?) / 1e3 / launches as f64)
    };

    let watch = stopwatch()?;
    let start = Instant::now();
    let mut once = 0.0;
    while start.elapsed() < WARM_UP || once == 0.0 {
        problem.enqueue(pass, 0, true)?;
        watch.begin.record(stream)?;
        problem.enqueue(pass, 0, false)?;
        watch.end.record(stream)?;
        once = seconds(&watch, 1)?;
    }
    let batch = ((BATCH / once).ceil() as usize).clamp(1, MAX_BATCH);

    let watches = [stopwatch()?, stopwatch()?, stopwatch()?, stopwatch()?];
    let mut series = [Series::default(), Series::default()];
    let (mut looks, mut set) = (Vec::new(), 0);
    let start = Instant::now();
    let end = loop {
        let first = series[0].cold.len() % 2;
        for contestant in [first, 1 - first] {
            let inducer = contestant == 0;
            watches[2 * contestant].begin.record(stream)?;
            for _ in 0..batch {
                set = (set + 1) % problem.sets();
                problem.enqueue(pass, set, inducer)?;
            }
            watches[2 * contestant].end.record(stream)?;
            problem.enqueue(pass, set, inducer)?;
            watches[2 * contestant + 1].begin.record(stream)?;
            for _ in 0..batch {
                problem.enqueue(pass, set, inducer)?;
            }
            watches[2 * contestant + 1].end.record(stream)?;
        }
        // The card is at work while the processor is here.
        looks.extend(device.monitor.as_ref().and_then(Monitor::look));
        for (contestant, series) in series.iter_mut().enumerate() {
            series.cold.push(seconds(&watches[2 * contestant], batch)?);
            series.warm.push(seconds(&watches[2 * contestant + 1], batch)?);
        }
        if let Some(end) = steadiness::end(&[&series[0].cold, &series[1].cold], start.elapsed(), budget) {
            break end;
        }
    };
    let [on, off] = series;
    Ok(Outcome { on, off, end, looks })
}
