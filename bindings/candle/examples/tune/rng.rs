//! A small seeded generator: candle's CPU generator cannot be seeded, and a run should be repeatable.

use candle_core::{Device, Result, Shape, Tensor};

/// `SplitMix64` (Steele, Lea and Flood, 2014).
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// An integer in `0..bound`.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        ((u128::from(self.next()) * bound as u128) >> 64) as usize
    }

    /// In (0, 1].
    fn uniform(&mut self) -> f64 {
        ((self.next() >> 11) + 1) as f64 / (1u64 << 53) as f64
    }

    fn normal(&mut self) -> f64 {
        (-2.0 * self.uniform().ln()).sqrt() * (std::f64::consts::TAU * self.uniform()).cos()
    }

    /// Normal values of the given deviation, those beyond two deviations drawn again.
    pub(crate) fn truncated_normal(&mut self, shape: impl Into<Shape>, deviation: f64) -> Result<Tensor> {
        let shape = shape.into();
        let values: Vec<f32> = (0..shape.elem_count())
            .map(|_| {
                loop {
                    let x = self.normal();
                    if x.abs() <= 2.0 {
                        return (deviation * x) as f32;
                    }
                }
            })
            .collect();
        Tensor::from_vec(values, shape, &Device::Cpu)
    }
}

#[cfg(test)]
mod tests {
    use super::Rng;

    #[test]
    fn truncated_normal_has_the_deviation_of_the_cut_distribution() {
        let values = Rng::new(3).truncated_normal(40_000, 0.01).unwrap().to_vec1::<f32>().unwrap();
        let mean = values.iter().sum::<f32>() / 40_000.0;
        let deviation = (values.iter().map(|x| (x - mean).powi(2)).sum::<f32>() / 40_000.0).sqrt();
        assert!(values.iter().all(|x| x.abs() <= 0.02));
        // A normal cut at two deviations keeps 0.8796 of its deviation.
        assert!(mean.abs() < 2e-4 && (deviation - 0.008_796).abs() < 1e-4, "{mean} {deviation}");
    }

    #[test]
    fn the_same_seed_gives_the_same_numbers() {
        let draw = |seed| {
            (0..9).map(|_| seed).scan(Rng::new(seed), |rng, _| Some(rng.below(1000))).collect::<Vec<_>>()
        };
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
    }
}
