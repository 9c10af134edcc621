//! Throughput of the micro-kernels on one thread, next to what the core can do on registers alone.
//!
//! `cargo bench --bench microkernels [-- FILTER]`

use std::time::{Duration, Instant};

use inducer_attention::cpu::microkernels::{Function, MicroKernels, Operand};

/// Best of many runs of about two milliseconds, in calls per second.
fn rate(mut run: impl FnMut()) -> f64 {
    run();
    let start = Instant::now();
    run();
    let once = start.elapsed().max(Duration::from_nanos(50));
    let calls = (Duration::from_millis(2).as_nanos() / once.as_nanos()).max(1) as u32;
    let mut best = f64::INFINITY;
    for _ in 0..40 {
        let start = Instant::now();
        for _ in 0..calls {
            run();
        }
        best = best.min(start.elapsed().as_secs_f64() / f64::from(calls));
    }
    1.0 / best
}

/// Operations per second on registers alone, in GFLOP/s.
fn peak(kernels: MicroKernels, bf16: bool) -> f64 {
    if bf16 && !kernels.bf16_dot() {
        return 0.0;
    }
    let steps = 100_000;
    let flops = kernels.peak(bf16, steps);
    (0..3).map(|_| rate(|| _ = kernels.peak(bf16, steps)) * flops / 1e9).fold(0.0, f64::max)
}

/// A product as attention has it.
struct Use {
    name: &'static str,
    m: usize,
    n: usize,
    k: usize,
    /// Elements between rows and between columns of A.
    a: (usize, usize),
    accumulate: bool,
}

fn uses(bf16: bool) -> Vec<Use> {
    let mut uses = Vec::new();
    // Rows of K and V lie side by side, or, where they are copied, an odd number of cache lines apart.
    for d in [64, 128, 256] {
        for distance in [d, d + 16] {
            for queries in [64, 96, 112, 128] {
                for keys in [96, 128, 256, 512] {
                    let per = if bf16 { 2 } else { 1 };
                    let stride = distance / per;
                    uses.push(Use {
                        name: "a  S = K·Qt",
                        m: keys,
                        n: queries,
                        k: d / per,
                        a: (stride, 1),
                        accumulate: false,
                    });
                    uses.push(Use {
                        name: "b  Ot += Vt·P",
                        m: d,
                        n: queries,
                        k: keys / per,
                        a: (1, distance),
                        accumulate: true,
                    });
                    uses.push(Use {
                        name: "c  dV += P·dO",
                        m: keys,
                        n: d,
                        k: queries / per,
                        a: (queries / per, 1),
                        accumulate: true,
                    });
                }
            }
        }
    }
    uses
}

fn main() {
    let filter: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    let wanted = |line: &str| filter.iter().all(|word| line.contains(word.as_str()));
    // One yardstick for all instruction sets: the most that any of them reaches on registers.
    let all = MicroKernels::all();
    let peaks = [false, true].map(|bf16| all.iter().map(|k| peak(*k, bf16)).fold(0.0, f64::max));
    println!("registers: f32 {:.1}, bf16 {:.1} GFLOP/s", peaks[0], peaks[1]);
    for kernels in all {
        for (bf16, peak) in [false, true].into_iter().zip(peaks) {
            let set = format!("{:?}", kernels.set());
            if bf16 && !kernels.bf16_dot() {
                continue;
            }
            let dtype = if bf16 { "bf16" } else { "f32" };
            for u in uses(bf16) {
                let line = format!(
                    "{set:10} {dtype:4} {:14} m {:3} n {:3} k {:3} a_row {:4} a_col {:4}",
                    u.name, u.m, u.n, u.k, u.a.0, u.a.1
                );
                if !wanted(&line) {
                    continue;
                }
                let a = vec![0.0; (u.m - 1) * u.a.0 + (u.k - 1) * u.a.1 + 1];
                let b = vec![0.0; u.k * u.n];
                let mut c = vec![0.0; u.m * u.n];
                let a = Operand { data: &a, row: u.a.0, column: u.a.1 };
                let b = Operand { data: &b, row: u.n, column: 1 };
                let calls = rate(|| kernels.gemm(bf16, (u.m, u.n, u.k), a, b, &mut c, u.n, u.accumulate));
                let per_element = if bf16 { 4.0 } else { 2.0 };
                let gflops = calls * per_element * (u.m * u.n * u.k) as f64 / 1e9;
                println!("{line}  {gflops:6.1} GFLOP/s  {:5.1} %", 100.0 * gflops / peak);
            }
        }
        for function in Function::ALL {
            let line = format!("{:?} {function:?}", kernels.set());
            if !wanted(&line) {
                continue;
            }
            let x: Vec<f32> = (0..4096).map(|i| i as f32 / -200.0).collect();
            let mut y = vec![0.0; x.len()];
            let calls = rate(|| kernels.map(function, &x, &mut y));
            println!("{line}  {:.2} G elements/s", calls * x.len() as f64 / 1e9);
        }
    }
}
