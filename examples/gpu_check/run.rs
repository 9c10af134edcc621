//! Runs the steps on the machine with the GPU.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::process::{self, Ended};
use crate::steps::{self, Kernels, Outcome, Step};
use crate::summary::{Row, Summary};

/// All of it, with a margin for what lies between the steps.
pub(crate) const LIMIT: Duration = Duration::from_secs(470);

/// Most seconds for asking what the card is.
pub(crate) const CARD: u64 = 20;

/// Lines of a failed step's output that go into the results.
const TAIL: usize = 40;

/// Runs everything in `folder`, writes the results to `file`, and says whether all passed.
///
/// # Errors
/// That the results cannot be written.
pub(crate) fn run(folder: &Path, file: &Path, kernels: Kernels) -> Result<bool, String> {
    let start = Instant::now();
    let mut logs = file.as_os_str().to_owned();
    logs.push(".logs");
    let logs = Path::new(&logs);
    // What an earlier run has left must not pass for this one's.
    let _ = std::fs::remove_dir_all(logs);
    std::fs::create_dir_all(logs).map_err(|error| format!("{}: {error}", logs.display()))?;
    let mut summary = Summary {
        file: file.to_owned(),
        card: logs.join("card.json"),
        bench: logs.join("bench.json"),
        peers: logs.join("peers.json"),
        date: date(),
        rows: Vec::new(),
    };
    summary.write(false)?;

    let mut command = Command::new(folder.join("bin/gpu"));
    command.args(["--info", "--require-gpu", "--json"]).arg(&summary.card);
    let info = Step { name: "card".into(), command, limit: CARD, tells: true };
    let row = step(info, true, LIMIT, logs);
    let has_gpu = row.outcome == Outcome::Passed;
    summary.rows.push(row);
    summary.write(false)?;

    for next in steps::all(folder, &summary.bench, &summary.peers, kernels) {
        summary.rows.push(step(next, has_gpu, LIMIT.saturating_sub(start.elapsed()), logs));
        summary.write(false)?;
    }
    summary.write(true)?;
    println!("\n{}\n", summary.table());
    println!(
        "{} in {:.0} s; results: {}",
        verdict(&summary, has_gpu),
        start.elapsed().as_secs_f64(),
        file.display()
    );
    Ok(summary.passed())
}

fn verdict(summary: &Summary, has_gpu: bool) -> &'static str {
    match (has_gpu, summary.passed()) {
        (false, _) => "NO GPU: nothing was checked",
        (true, true) => "PASSED",
        (true, false) => "FAILED",
    }
}

fn step(mut step: Step, has_gpu: bool, left: Duration, logs: &Path) -> Row {
    let limit = left.min(Duration::from_secs(step.limit));
    println!("\n== {} (at most {:.0} s)", step.name, limit.as_secs_f64());
    let row = |outcome, seconds, remark: String, tail| {
        println!("   {}: {remark}", Outcome::name(&outcome));
        Row { name: step.name.clone(), outcome, seconds, remark, tail }
    };
    if limit < Duration::from_secs(1) {
        return row(Outcome::TimedOut, 0.0, "no time was left".into(), Vec::new());
    }
    if !has_gpu && !step.tells {
        // Tests without a GPU would say that they pass. That they start is worth knowing.
        let is_test = step.name.starts_with("test ");
        let started = is_test.then(|| Command::new(step.command.get_program()).arg("--list").output());
        return match started {
            Some(Ok(output)) if output.status.success() => {
                let tests = String::from_utf8_lossy(&output.stdout).matches(": test").count();
                row(Outcome::NoGpu, 0.0, format!("{tests} tests would run"), Vec::new())
            }
            Some(_) => row(Outcome::Failed, 0.0, "it does not start".into(), Vec::new()),
            None => row(Outcome::NoGpu, 0.0, "not run".into(), Vec::new()),
        };
    }
    let log = logs.join(format!("{}.log", step.name.replace(' ', "-")));
    match process::run(&mut step.command, limit, &log) {
        Ok(ended) => {
            let outcome = steps::outcome(&ended);
            let tail = if outcome == Outcome::Passed { Vec::new() } else { tail(&ended) };
            row(outcome, ended.seconds, steps::remark(&ended), tail)
        }
        // A tool of the other machine's, or an executable of the folder.
        Err(mistake) if step.command.get_program().to_string_lossy().contains("/bin/gpu") => {
            row(Outcome::Failed, 0.0, mistake, Vec::new())
        }
        Err(_) => {
            let program = step.command.get_program().to_string_lossy().into_owned();
            row(Outcome::LeftOut, 0.0, format!("left out: {program} is not installed"), Vec::new())
        }
    }
}

fn tail(ended: &Ended) -> Vec<String> {
    ended.lines[ended.lines.len().saturating_sub(TAIL)..].to_vec()
}

/// As the system says it, UTC.
fn date() -> String {
    let output = Command::new("date").args(["-u", "+%Y-%m-%dT%H:%M:%SZ"]).output();
    output.map(|o| String::from_utf8_lossy(&o.stdout).trim().to_owned()).unwrap_or_default()
}
