//! Runs jobs on a few threads; a job may give rise to further ones.

use std::sync::{Condvar, Mutex};

struct State<J> {
    waiting: Vec<J>,
    running: usize,
}

/// Runs `jobs`, the last ones first, and what they return, on `threads` threads. The first error ends the work.
pub fn run<J: Send>(
    threads: usize,
    jobs: Vec<J>,
    work: impl Fn(J) -> Result<Vec<J>, String> + Sync,
) -> Result<(), String> {
    let state = Mutex::new(State { waiting: jobs, running: 0 });
    let changed = Condvar::new();
    let error = Mutex::new(None);
    let worker = || {
        let mut at = state.lock().unwrap();
        loop {
            if let Some(job) = at.waiting.pop() {
                at.running += 1;
                drop(at);
                let result = work(job);
                at = state.lock().unwrap();
                at.running -= 1;
                match result {
                    Ok(more) => at.waiting.extend(more),
                    Err(e) => {
                        at.waiting.clear();
                        error.lock().unwrap().get_or_insert(e);
                    }
                }
                changed.notify_all();
            } else if at.running == 0 {
                return;
            } else {
                at = changed.wait(at).unwrap();
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            scope.spawn(worker);
        }
    });
    error.into_inner().unwrap().map_or(Ok(()), Err)
}
