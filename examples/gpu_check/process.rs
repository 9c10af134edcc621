//! Programs under a time limit, whose output is shown as it comes.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

/// How a program ended.
#[derive(Debug)]
pub(crate) struct Ended {
    /// Its exit code; none if it was killed or crashed.
    pub(crate) code: Option<i32>,
    /// Whether the time limit ended it.
    pub(crate) timed_out: bool,
    pub(crate) seconds: f64,
    /// What it printed, both streams.
    pub(crate) lines: Vec<String>,
}

/// Runs a program for at most `limit`. Every line goes to the terminal and to the file `log`.
///
/// # Errors
/// That it cannot be started.
pub(crate) fn run(command: &mut Command, limit: Duration, log: &Path) -> Result<Ended, String> {
    let start = Instant::now();
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // A group of its own, so that what it starts ends with it.
    #[cfg(unix)]
    std::os::unix::process::CommandExt::process_group(command, 0);
    let name = command.get_program().to_string_lossy().into_owned();
    let mut child = command.spawn().map_err(|error| format!("cannot start {name}: {error}"))?;
    let (sender, receiver) = mpsc::channel();
    forward(child.stdout.take().expect("piped"), sender.clone());
    forward(child.stderr.take().expect("piped"), sender);

    let mut log = File::create(log).ok();
    let mut lines = Vec::new();
    let mut timed_out = false;
    loop {
        match receiver.recv_timeout(limit.saturating_sub(start.elapsed())) {
            Ok(line) => {
                println!("   {line}");
                if let Some(log) = &mut log {
                    let _ = writeln!(log, "{line}");
                }
                lines.push(line);
            }
            Err(RecvTimeoutError::Timeout) => {
                timed_out = true;
                kill_group(child.id());
                let _ = child.kill();
                break;
            }
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    // Both streams are closed, so it has ended or is about to; one that closed them and stays has no time left either.
    let code = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status.code(),
            Ok(None) if start.elapsed() > limit + Duration::from_secs(1) => {
                timed_out = true;
                kill_group(child.id());
                let _ = child.kill();
                break child.wait().ok().and_then(|status| status.code());
            }
            Ok(None) => std::thread::sleep(Duration::from_millis(5)),
            Err(_) => break None,
        }
    };
    Ok(Ended { code, timed_out, seconds: start.elapsed().as_secs_f64(), lines })
}

/// Sends a stream's lines.
fn forward(stream: impl Read + Send + 'static, to: Sender<String>) {
    std::thread::spawn(move || {
        let mut reader = BufReader::new(stream);
        let mut line = Vec::new();
        while reader.read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
            if to.send(String::from_utf8_lossy(&line).trim_end().to_owned()).is_err() {
                break;
            }
            line.clear();
        }
    });
}

/// Ends a program that leads its group, and all that it has started.
fn kill_group(leader: u32) {
    // The shell's own `kill` is there wherever run.sh runs.
    let _ = Command::new("sh").args(["-c", &format!("kill -9 -{leader}")]).stderr(Stdio::null()).status();
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    fn shell(script: &str, limit: Duration) -> Ended {
        run(Command::new("sh").args(["-c", script]), limit, Path::new("/dev/null")).unwrap()
    }

    #[test]
    fn output_and_exit_code_are_reported() {
        let ended = shell("echo one; echo two >&2; exit 3", Duration::from_secs(20));
        let mut lines = ended.lines.clone();
        lines.sort();
        assert_eq!((ended.code, ended.timed_out, lines), (Some(3), false, vec!["one".into(), "two".into()]));
    }

    #[test]
    fn a_program_and_what_it_started_end_at_the_limit() {
        let ended = shell("echo before; sleep 60 & sleep 60; echo after", Duration::from_millis(300));
        assert!(ended.timed_out && ended.seconds < 20.0, "{ended:?}");
        assert_eq!(ended.lines, ["before"]);
    }

    #[test]
    fn a_missing_program_is_an_error() {
        let mistake =
            run(&mut Command::new("/no/such/program"), Duration::from_secs(1), Path::new("/dev/null"));
        assert!(mistake.unwrap_err().contains("/no/such/program"));
    }
}
