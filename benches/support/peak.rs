//! What the cores can do at most: the yardstick of everything else.

use std::sync::Barrier;
use std::time::{Duration, Instant};

use inducer_attention::DType;
use inducer_attention::cpu::InstructionSet;
use inducer_attention::cpu::microkernels::MicroKernels;
use rayon::ThreadPool;

/// How long a thread computes for one sample: less than a time slice, so that some samples are not interrupted even where
/// the machine does other things as well.
const SAMPLE: Duration = Duration::from_millis(1);

/// Samples of each thread.
const SAMPLES: usize = 200;

/// Which of a thread's samples counts, of the sorted ones. Nothing makes a core faster than it is, but the very best may
/// have been taken while the thread that shares its core was not running.
const QUANTILE: f64 = 0.9;

/// Floating-point operations per second of all threads of a pool together, on registers alone.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Peak {
    /// Multiply-adds of f32.
    pub(crate) f32_fma: f64,
    /// Dot products of pairs of bf16, where the instruction set has them.
    pub(crate) bf16_dot: Option<f64>,
}

impl Peak {
    /// Measures it, on all threads of the pool at once; none where the CPU lacks the instruction set.
    pub(crate) fn measure(pool: &ThreadPool, set: InstructionSet) -> Option<Self> {
        let kernels = MicroKernels::all().into_iter().find(|k| k.set() == set)?;
        Some(Self {
            f32_fma: rate(pool, kernels, false),
            bf16_dot: kernels.bf16_dot().then(|| rate(pool, kernels, true)),
        })
    }

    /// The peak that bounds attention of this type: f16 is computed in f32, and so is bf16 without a dot product.
    pub(crate) fn of(&self, dtype: DType) -> f64 {
        match dtype {
            DType::BF16 => self.bf16_dot.unwrap_or(self.f32_fma),
            DType::F32 | DType::F16 => self.f32_fma,
        }
    }
}

fn rate(pool: &ThreadPool, kernels: MicroKernels, bf16: bool) -> f64 {
    let steps = steps_per_sample(kernels, bf16);
    let start = Barrier::new(pool.current_num_threads());
    let rates = pool.broadcast(|_| {
        start.wait();
        let mut rates: Vec<f64> = (0..SAMPLES)
            .map(|_| {
                let start = Instant::now();
                let flop = kernels.peak(bf16, steps);
                flop / start.elapsed().as_secs_f64()
            })
            .collect();
        rates.sort_unstable_by(f64::total_cmp);
        rates[(QUANTILE * (SAMPLES - 1) as f64) as usize]
    });
    // Where there are more threads than CPUs, they were not all running at once.
    let running = (super::machine::cpus() as f64 / rates.len() as f64).min(1.0);
    rates.iter().sum::<f64>() * running
}

/// Steps that take about [`SAMPLE`].
fn steps_per_sample(kernels: MicroKernels, bf16: bool) -> usize {
    let mut steps = 1000;
    loop {
        let start = Instant::now();
        kernels.peak(bf16, steps);
        let spent = start.elapsed();
        if spent >= SAMPLE {
            return (steps as f64 * SAMPLE.as_secs_f64() / spent.as_secs_f64()).ceil() as usize;
        }
        steps *= 2;
    }
}
