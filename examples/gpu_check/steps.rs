//! What is run on the other machine, for how long at most, and what its end means.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::process::Ended;

/// Test executables, the instructions' first. Those that the repository does not have are left out of the folder.
pub(crate) const TESTS: &[&str] = &["probes", "cuda_device", "pairwise", "exact", "properties"];

/// Exit code of the bench where there is no GPU.
pub(crate) const NO_GPU: i32 = 3;

/// Exit code of the comparison where what it needs is not installed.
const NOT_INSTALLED: i32 = 4;

/// A step.
pub(crate) struct Step {
    pub(crate) name: String,
    pub(crate) command: Command,
    /// Most seconds.
    pub(crate) limit: u64,
    /// Where there is no GPU: whether it says so itself. Otherwise `--list` only shows that it starts.
    pub(crate) tells: bool,
}

/// What became of a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Passed,
    Failed,
    TimedOut,
    /// What it needs is not installed.
    LeftOut,
    NoGpu,
}

impl Outcome {
    /// In the table and in the results.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Failed => "FAILED",
            Self::TimedOut => "TIMED OUT",
            Self::LeftOut => "left out",
            Self::NoGpu => "no GPU",
        }
    }
}

/// Which kernels are checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kernels {
    /// Those that every GPU can run.
    All,
    /// Those for Hopper alone.
    Hopper,
}

/// All steps for a folder; the bench writes to `bench`, the comparison to `peers`.
pub(crate) fn all(folder: &Path, bench: &Path, peers: &Path, kernels: Kernels) -> Vec<Step> {
    // The tests' name of the backend; an option for the bench.
    let (backend, option) = match kernels {
        Kernels::All => ("gpu", None),
        Kernels::Hopper => ("hopper", Some("--hopper")),
    };
    let bin = folder.join("bin");
    let mut steps = Vec::new();
    for test in TESTS.iter().filter(|test| bin.join(test).is_file()) {
        let mut command = Command::new(bin.join(test));
        // The processor's engine and the emulator have their tests elsewhere.
        command.env("INDUCER_ATTENTION_TEST_BACKENDS", backend).env("INDUCER_ATTENTION_REQUIRE_GPU", "1");
        // Output of the probes: the errors that were found.
        command.env("RUST_BACKTRACE", "0").args(["--nocapture", "--test-threads", "4"]);
        let limit = match *test {
            "pairwise" => 40,
            "probes" | "cuda_device" => 10,
            _ => 20,
        };
        steps.push(Step { name: format!("test {test}"), command, limit, tells: *test == "probes" });
    }
    let mut command = Command::new(bin.join("gpu"));
    command.args(["--require-gpu", "--seconds", "1.5", "--json"]).arg(bench).args(option);
    steps.push(Step { name: "bench".into(), command, limit: 80, tells: true });
    let mut command = Command::new("python3");
    command
        .arg("-u")
        .arg(folder.join("peers.py"))
        .arg("--bench")
        .arg(bin.join("gpu"))
        .arg("--json")
        .arg(peers)
        .args(option);
    steps.push(Step { name: "peers".into(), command, limit: 75, tells: false });
    // Last, what says least if it fails: checkers of memory can stumble over instructions that are newer than they are. The race check looks
    // at every access: 120 s on an H200 for what takes the others two.
    for (tool, limit) in [("memcheck", 15), ("initcheck", 15), ("synccheck", 15), ("racecheck", 150)] {
        let mut command = Command::new(sanitizer().unwrap_or_else(|| "compute-sanitizer".into()));
        command.args(["--tool", tool, "--error-exitcode", "9"]);
        // An engine asks each module for a kernel until one has it; the driver's "not found" is no error of ours.
        command.args(["--report-api-errors", "no"]).arg(bin.join("gpu")).arg("--smoke").args(option);
        steps.push(Step { name: format!("sanitizer {tool}"), command, limit, tells: false });
    }
    steps
}

/// Where the memory checker is.
fn sanitizer() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/local/cuda/bin", "/usr/local/cuda/compute-sanitizer"].map(PathBuf::from);
    std::env::split_paths(&path).chain(usual).map(|f| f.join("compute-sanitizer")).find(|p| p.is_file())
}

/// What the end of a step means.
pub(crate) fn outcome(ended: &Ended) -> Outcome {
    let says = |text: &str| ended.lines.iter().any(|line| line.contains(text));
    match ended.code {
        _ if ended.timed_out => Outcome::TimedOut,
        // The memory checker's words on a machine whose driver does not let it in.
        _ if says("Device not supported") => Outcome::LeftOut,
        Some(0) => Outcome::Passed,
        Some(NO_GPU) => Outcome::NoGpu,
        Some(NOT_INSTALLED) => Outcome::LeftOut,
        _ if says("no GPU: ") || says("no gpu: ") => Outcome::NoGpu,
        _ => Outcome::Failed,
    }
}

/// The line of the output that says most: a summary, else the last.
pub(crate) fn remark(ended: &Ended) -> String {
    const TELLING: [&str; 7] =
        ["no GPU: ", "SUMMARY", "test result:", "left out: ", "summary: ", "error: ", "Device not supported"];
    let lines = || ended.lines.iter().rev().map(|line| line.trim()).filter(|line| !line.is_empty());
    let found = TELLING.iter().find_map(|word| lines().find(|line| line.contains(word)));
    let line = found.or_else(|| lines().next()).unwrap_or_default();
    // The outcome stands beside it.
    line.trim_start_matches("========= ").trim_start_matches("no GPU: ").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::{CARD, LIMIT};

    #[test]
    fn no_step_can_take_the_last_ones_time() {
        // As if the folder held all executables.
        let folder = std::env::temp_dir().join(format!("gpu-check-steps-{}", std::process::id()));
        std::fs::create_dir_all(folder.join("bin")).unwrap();
        for test in TESTS {
            std::fs::write(folder.join("bin").join(test), "").unwrap();
        }
        let steps = all(&folder, Path::new("bench.json"), Path::new("peers.json"), Kernels::All);
        std::fs::remove_dir_all(&folder).unwrap();
        assert_eq!(steps.len(), TESTS.len() + 6);
        let seconds: u64 = CARD + steps.iter().map(|step| step.limit).sum::<u64>();
        assert!(seconds <= LIMIT.as_secs(), "{seconds} seconds");
    }

    fn ended(code: Option<i32>, output: &str) -> Ended {
        let lines = output.lines().map(str::to_owned).collect();
        Ended { code, timed_out: code.is_none(), seconds: 1.0, lines }
    }

    #[test]
    fn exit_codes_and_words_decide() {
        for (code, output, expected) in [
            (Some(0), "fine", Outcome::Passed),
            (Some(101), "thread 'main' panicked at no GPU: no CUDA driver", Outcome::NoGpu),
            (Some(101), "assertion failed", Outcome::Failed),
            (Some(3), "", Outcome::NoGpu),
            (Some(4), "left out: torch is not installed", Outcome::LeftOut),
            (Some(9), "========= Error: Device not supported", Outcome::LeftOut),
            (Some(9), "========= ERROR SUMMARY: 2 errors", Outcome::Failed),
            (None, "half of it", Outcome::TimedOut),
        ] {
            assert_eq!(outcome(&ended(code, output)), expected, "{output}");
        }
    }

    #[test]
    fn the_telling_line_is_shown() {
        let text = "running 3 tests\ntest result: ok. 3 passed; 0 failed\n\n";
        assert_eq!(remark(&ended(Some(0), text)), "test result: ok. 3 passed; 0 failed");
        let text = "========= COMPUTE-SANITIZER\n24 calls ran\n========= ERROR SUMMARY: 0 errors\n";
        assert_eq!(remark(&ended(Some(0), text)), "ERROR SUMMARY: 0 errors");
        assert_eq!(remark(&ended(Some(0), "one\ntwo\n")), "two");
        assert_eq!(remark(&ended(Some(0), "")), "");
    }
}
