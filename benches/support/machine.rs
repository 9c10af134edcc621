//! Where and when results were taken.

use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

/// The CPU's name, as its maker gives it; of the architecture if it does not say.
pub(crate) fn cpu_name() -> String {
    let linux = || {
        let info = std::fs::read_to_string("/proc/cpuinfo").ok()?;
        let line = info.lines().find(|line| line.starts_with("model name"))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let mac = || output("sysctl", &["-n", "machdep.cpu.brand_string"]);
    let windows = || std::env::var("PROCESSOR_IDENTIFIER").ok();
    linux().or_else(mac).or_else(windows).unwrap_or_else(|| std::env::consts::ARCH.to_owned())
}

/// CPUs that this process may use.
pub(crate) fn cpus() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// Processes that computed during the last minute, where the system tells.
pub(crate) fn load_average() -> Option<f64> {
    std::fs::read_to_string("/proc/loadavg").ok()?.split(' ').next()?.parse().ok()
}

/// The commit of the sources, with "+" where they were changed since; none outside of a repository.
pub(crate) fn commit() -> Option<String> {
    let directory = env!("CARGO_MANIFEST_DIR");
    let id = output("git", &["-C", directory, "rev-parse", "--short=12", "HEAD"])?;
    let changes = output("git", &["-C", directory, "status", "--porcelain", "--untracked-files=no"]);
    Some(if changes.is_some() { id + "+" } else { id })
}

/// What a program prints, if it runs, succeeds and prints anything.
fn output(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok().filter(|o| o.status.success())?;
    let text = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    (!text.is_empty()).then_some(text)
}

/// Date and time now, UTC, as in 2026-01-31T23:59:59Z.
pub(crate) fn now() -> String {
    utc(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.as_secs()))
}

/// Date and time of a number of seconds since 1970 in the Gregorian calendar.
pub(crate) fn utc(seconds: u64) -> String {
    let (days, second) = (seconds / 86400, seconds % 86400);
    let (mut year, mut day) = (1970, days);
    let leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    while day >= 365 + u64::from(leap(year)) {
        day -= 365 + u64::from(leap(year));
        year += 1;
    }
    let mut month = 0;
    let lengths = [31, 28 + u64::from(leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    while day >= lengths[month] {
        day -= lengths[month];
        month += 1;
    }
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{:02}-{:02}T{hour:02}:{minute:02}:{second:02}Z", month + 1, day + 1)
}
