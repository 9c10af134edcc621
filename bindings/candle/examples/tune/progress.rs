//! Progress bars on a terminal; a line now and then where there is none.

use crate::train::History;
use indicatif::{ProgressBar, ProgressStyle};
use std::cell::Cell;
use std::time::{Duration, Instant};

/// A phase's progress on standard error.
pub(crate) struct Progress {
    bar: ProgressBar,
    label: String,
    printed: Cell<Instant>,
}

const LABEL: usize = 24;
const UNITS: u64 = 1000;
const PLAIN_EVERY: Duration = Duration::from_secs(10);

impl Progress {
    pub(crate) fn new(label: &str, steps: usize) -> Self {
        let bar = ProgressBar::new(UNITS);
        let template = "{prefix} {bar:28.cyan/blue} {percent:>3}%  {msg}  {elapsed_precise}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("━╸─"));
        }
        bar.set_prefix(format!("{label:<LABEL$}"));
        bar.set_message(format!("{steps} steps"));
        Self { bar, label: label.to_owned(), printed: Cell::new(Instant::now()) }
    }

    pub(crate) fn step(&self, progress: f64, loss: f64, tokens_per_second: f64) {
        let message = format!("loss {loss:.3}  {tokens_per_second:>6.0} tokens/s");
        if self.bar.is_hidden() && self.printed.get().elapsed() >= PLAIN_EVERY {
            eprintln!("{:<LABEL$} {:>3.0}%  {message}", self.label, 100.0 * progress);
            self.printed.set(Instant::now());
        }
        self.bar.set_message(message);
        self.bar.set_position((progress * UNITS as f64) as u64);
    }

    /// Leaves one line that says how the phase ended.
    pub(crate) fn finish(&self, held_out: f64, history: &History) {
        self.bar.finish_and_clear();
        eprintln!(
            "{:<LABEL$} {} steps in {:.1} s, {:.0} tokens/s, held-out loss {held_out:.4}",
            self.label,
            history.steps,
            history.seconds,
            history.tokens_per_second(),
        );
    }
}
