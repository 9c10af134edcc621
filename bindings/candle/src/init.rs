//! How parameters begin.

use std::f64::consts::TAU;

use candle_core::{DType, Device, Result, Tensor};

/// How a parameter begins.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Initial {
    /// 0.
    Zero,
    /// One value.
    Constant {
        /// The value.
        value: f64,
    },
    /// A normal distribution around 0.
    Normal {
        /// Its standard deviation.
        deviation: f64,
    },
    /// A normal distribution around 0 of which values beyond two deviations are drawn again: the published initialisation.
    TruncatedNormal {
        /// The deviation of the distribution before the cut.
        deviation: f64,
    },
}

/// Where the published distribution is cut, in deviations.
const CUT: f64 = 2.0;

impl Initial {
    /// A tensor of such values. The same seed and name give the same values on every machine.
    ///
    /// # Errors
    /// What candle says of the shape, dtype and device.
    pub fn sample(
        self,
        seed: u64,
        name: &str,
        shape: &[usize],
        dtype: DType,
        device: &Device,
    ) -> Result<Tensor> {
        let mut random = Random::new(seed, name);
        let mut draw = || match self {
            Self::Zero => 0.0,
            Self::Constant { value } => value,
            Self::Normal { deviation } => deviation * random.normal(),
            Self::TruncatedNormal { deviation } => loop {
                let x = random.normal();
                if x.abs() <= CUT {
                    break deviation * x;
                }
            },
        };
        let values: Vec<f32> = (0..shape.iter().product::<usize>()).map(|_| draw() as f32).collect();
        Tensor::from_vec(values, shape, device)?.to_dtype(dtype)
    }
}

/// SplitMix64 (Steele, Lea, Flood, 2014).
struct Random(u64);

impl Random {
    /// A stream of its own for each name.
    fn new(seed: u64, name: &str) -> Self {
        // FNV-1a.
        let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        let mut random = Self(seed);
        let mixed_seed = random.next();
        Self(hash ^ mixed_seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in (0, 1].
    fn uniform(&mut self) -> f64 {
        ((self.next() >> 11) + 1) as f64 / (1u64 << 53) as f64
    }

    /// Standard normal (Box and Muller).
    fn normal(&mut self) -> f64 {
        let radius = (-2.0 * self.uniform().ln()).sqrt();
        radius * (TAU * self.uniform()).cos()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(initial: Initial, seed: u64, name: &str) -> Vec<f32> {
        let shape = [64, 512];
        initial
            .sample(seed, name, &shape, DType::F32, &Device::Cpu)
            .unwrap()
            .flatten_all()
            .unwrap()
            .to_vec1()
            .unwrap()
    }

    fn moments(values: &[f32]) -> (f64, f64) {
        let n = values.len() as f64;
        let mean = values.iter().map(|&x| f64::from(x)).sum::<f64>() / n;
        let variance = values.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / n;
        (mean, variance.sqrt())
    }

    #[test]
    fn the_truncated_normal_is_cut_and_has_its_deviation() {
        let values = values(Initial::TruncatedNormal { deviation: 0.01 }, 1, "w");
        assert!(values.iter().all(|x| x.abs() <= 0.02));
        let (mean, deviation) = moments(&values);
        // A standard normal cut at 2 has deviation 0.8796.
        assert!(mean.abs() < 2e-4, "{mean}");
        assert!((deviation - 0.008_796).abs() < 1e-4, "{deviation}");
    }

    #[test]
    fn the_normal_has_its_deviation() {
        let (mean, deviation) = moments(&values(Initial::Normal { deviation: 3.0 }, 1, "w"));
        assert!(mean.abs() < 0.06 && (deviation - 3.0).abs() < 0.04, "{mean} {deviation}");
    }

    #[test]
    fn seed_and_name_choose_the_values() {
        let initial = Initial::Normal { deviation: 1.0 };
        assert_eq!(values(initial, 1, "w"), values(initial, 1, "w"));
        assert_ne!(values(initial, 1, "w"), values(initial, 2, "w"));
        assert_ne!(values(initial, 1, "w"), values(initial, 1, "v"));
    }
}
