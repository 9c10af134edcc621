//! The table at the end, and the file of results.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::steps::Outcome;

/// What became of one step.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) name: String,
    pub(crate) outcome: Outcome,
    pub(crate) seconds: f64,
    pub(crate) remark: String,
    /// The end of its output, where it did not pass.
    pub(crate) tail: Vec<String>,
}

/// The results as they are so far.
#[derive(Debug)]
pub(crate) struct Summary {
    pub(crate) file: PathBuf,
    /// Files that steps wrote: the card, the bench, the comparison.
    pub(crate) card: PathBuf,
    pub(crate) bench: PathBuf,
    pub(crate) peers: PathBuf,
    pub(crate) date: String,
    pub(crate) rows: Vec<Row>,
}

impl Summary {
    /// Whether there was a GPU and nothing failed.
    pub(crate) fn passed(&self) -> bool {
        !self.rows.is_empty()
            && self.rows.iter().all(|r| matches!(r.outcome, Outcome::Passed | Outcome::LeftOut))
    }

    /// Writes what there is, in one step, so that the file is whole whenever this program ends.
    ///
    /// # Errors
    /// A sentence.
    pub(crate) fn write(&self, finished: bool) -> Result<(), String> {
        let steps: Vec<Value> = self
            .rows
            .iter()
            .map(|row| {
                json!({
                    "name": row.name,
                    "outcome": row.outcome.name(),
                    "seconds": (row.seconds * 10.0).round() / 10.0,
                    "remark": row.remark,
                    "tail": row.tail,
                })
            })
            .collect();
        let value = json!({
            "check": "gpu",
            "version": env!("CARGO_PKG_VERSION"),
            "commit": option_env!("INDUCER_ATTENTION_COMMIT"),
            "date": self.date,
            "finished": finished,
            "passed": finished && self.passed(),
            "card": read(&self.card)["card"],
            "steps": steps,
            "bench": read(&self.bench),
            "peers": read(&self.peers),
        });
        let mut partial = self.file.as_os_str().to_owned();
        partial.push(".partial");
        std::fs::write(&partial, format!("{value:#}\n"))
            .and_then(|()| std::fs::rename(&partial, &self.file))
            .map_err(|error| format!("{}: {error}", self.file.display()))
    }

    /// The table.
    pub(crate) fn table(&self) -> String {
        let width = self.rows.iter().map(|row| row.name.len()).max().unwrap_or(0);
        let lines = self.rows.iter().map(|row| {
            format!("{:width$}  {:9}  {:6.1} s  {}", row.name, row.outcome.name(), row.seconds, row.remark)
        });
        lines.collect::<Vec<_>>().join("\n")
    }
}

/// What a step has written, null if nothing that can be read.
fn read(path: &Path) -> Value {
    std::fs::read_to_string(path)
        .ok()
        .and_then(|text| serde_json::from_str(&text).ok())
        .unwrap_or(Value::Null)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary(outcomes: &[Outcome]) -> Summary {
        let row = |outcome: &Outcome| Row {
            name: "step".into(),
            outcome: outcome.clone(),
            seconds: 1.0,
            remark: "fine".into(),
            tail: Vec::new(),
        };
        let file = std::env::temp_dir().join(format!("gpu-check-test-{}.json", std::process::id()));
        let none = PathBuf::from("/no/such/file");
        let date = String::new();
        let rows = outcomes.iter().map(row).collect();
        Summary { file, card: none.clone(), bench: none.clone(), peers: none, date, rows }
    }

    #[test]
    fn only_a_check_without_failures_passes() {
        assert!(summary(&[Outcome::Passed, Outcome::LeftOut]).passed());
        assert!(!summary(&[]).passed());
        for bad in [Outcome::Failed, Outcome::TimedOut, Outcome::NoGpu] {
            assert!(!summary(&[Outcome::Passed, bad]).passed());
        }
    }

    #[test]
    fn results_are_there_after_every_step() {
        let summary = summary(&[Outcome::Passed]);
        summary.write(false).unwrap();
        let value = read(&summary.file);
        assert_eq!((&value["passed"], &value["finished"]), (&json!(false), &json!(false)));
        assert_eq!(value["steps"][0]["outcome"], "passed");
        summary.write(true).unwrap();
        assert_eq!(read(&summary.file)["passed"], true);
        std::fs::remove_file(&summary.file).unwrap();
    }
}
