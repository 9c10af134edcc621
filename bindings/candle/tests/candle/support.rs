//! Problems to test with.

use candle_core::{DType, Device, Result, Tensor, Var};
use inducer_attention_candle::{
    Activation, AdapterTensors, InducerTensors, KeyTensors, PrefixTensors, ValueTensors, VirtualTokens,
};

/// Numbers in about ±1.7, the same every time.
pub(crate) fn values(seed: u64, n: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u32 << 24) as f32
    };
    (0..n).map(|_| (next() + next() + next() + next() - 2.0) * 1.7).collect()
}

pub(crate) fn tensor(seed: u64, shape: &[usize]) -> Tensor {
    Tensor::from_vec(values(seed, shape.iter().product()), shape, &Device::Cpu).unwrap()
}

pub(crate) fn var(seed: u64, shape: &[usize]) -> Var {
    Var::from_tensor(&tensor(seed, shape)).unwrap()
}

/// Sizes of a problem.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    pub(crate) batch: usize,
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) rows: usize,
    pub(crate) keys: usize,
    pub(crate) head_dim: usize,
}

pub(crate) const SMALL: Sizes = Sizes { batch: 2, heads: 4, kv_heads: 2, rows: 19, keys: 23, head_dim: 12 };

impl Sizes {
    pub(crate) fn q(&self) -> [usize; 4] {
        [self.batch, self.heads, self.rows, self.head_dim]
    }

    pub(crate) fn k(&self) -> [usize; 4] {
        [self.batch, self.kv_heads, self.keys, self.head_dim]
    }
}

/// Variables under their names.
#[derive(Default)]
pub(crate) struct Variables(pub(crate) Vec<(String, Var)>);

impl Variables {
    pub(crate) fn add(&mut self, name: &str, shape: &[usize]) -> Tensor {
        let seed = 100 + self.0.len() as u64;
        let variable = var(seed, shape);
        let tensor = variable.as_tensor().clone();
        self.0.push((name.to_owned(), variable));
        tensor
    }

    pub(crate) fn adapter(&mut self, part: &str, sizes: &Sizes, rank: usize) -> AdapterTensors {
        let (h, d) = (sizes.heads, sizes.head_dim);
        let mut scaled = |name: &str, shape: &[usize]| self.add(&format!("{part}.{name}"), shape);
        AdapterTensors {
            down_weight: scaled("down_weight", &[h, d, rank]),
            down_bias: scaled("down_bias", &[h, rank]),
            up_weight: scaled("up_weight", &[h, rank, d]),
            up_bias: scaled("up_bias", &[h, d]),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Key {
    Query,
    Residual,
    PerHead,
    PerToken,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Value {
    Zero,
    Residual,
    Direct,
    Extended,
}

pub(crate) fn inducer(variables: &mut Variables, sizes: &Sizes, key: Key, value: Value) -> InducerTensors {
    let key = match key {
        Key::Query => KeyTensors::Query,
        Key::Residual => KeyTensors::Residual(variables.adapter("key", sizes, 3)),
        Key::PerHead => KeyTensors::LogitPerHead(variables.add("key.logit", &[sizes.heads])),
        Key::PerToken => {
            KeyTensors::LogitPerToken(variables.add("key.logit", &[sizes.batch, sizes.heads, sizes.rows]))
        }
    };
    let value = match value {
        Value::Zero => ValueTensors::Zero,
        Value::Residual => ValueTensors::Residual(variables.adapter("value", sizes, 5)),
        Value::Direct => ValueTensors::Direct(variables.adapter("value", sizes, 5)),
        Value::Extended => ValueTensors::Extended {
            down_weight: variables.add("value.down_weight", &[sizes.heads, sizes.head_dim, 5]),
            down_bias: variables.add("value.down_bias", &[sizes.heads, 5]),
        },
    };
    InducerTensors { key, value, activation: Activation::Tanh, adaptive_length: false }
}

pub(crate) fn prefix(variables: &mut Variables, sizes: &Sizes, length: usize) -> PrefixTensors {
    let shape = [sizes.kv_heads, length, sizes.head_dim];
    PrefixTensors { k: variables.add("prefix.k", &shape), v: variables.add("prefix.v", &shape) }
}

pub(crate) fn published(variables: &mut Variables, sizes: &Sizes) -> VirtualTokens {
    VirtualTokens { prefix: None, inducer: Some(inducer(variables, sizes, Key::Residual, Value::Residual)) }
}

pub(crate) fn to_vec(t: &Tensor) -> Vec<f64> {
    t.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// ‖a − b‖ / ‖b‖, infinite if either holds a NaN where the other does not agree.
pub(crate) fn relative_error(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.dims(), b.dims());
    let (mut difference, mut norm) = (0.0, 0.0);
    for (x, y) in to_vec(a).into_iter().zip(to_vec(b)) {
        if !x.is_finite() || !y.is_finite() {
            if x.is_infinite() && y.is_infinite() && x.is_sign_positive() == y.is_sign_positive() {
                continue;
            }
            return f64::INFINITY;
        }
        difference += (x - y) * (x - y);
        norm += y * y;
    }
    if norm == 0.0 { difference.sqrt() } else { (difference / norm).sqrt() }
}

/// A scalar that every element of every result bears on differently.
pub(crate) fn loss(results: &[&Tensor]) -> Result<Tensor> {
    let mut total = Tensor::zeros((), DType::F64, &Device::Cpu)?;
    for (seed, result) in results.iter().enumerate() {
        let weights = tensor(900 + seed as u64, result.dims()).to_dtype(DType::F64)?;
        total = (total + (result.to_dtype(DType::F64)? * weights)?.sum_all()?)?;
    }
    Ok(total)
}

/// The tokens in another type, the conversion being part of the graph.
pub(crate) fn converted(tokens: &VirtualTokens, dtype: DType) -> Result<VirtualTokens> {
    mapped(tokens, |t| t.to_dtype(dtype))
}

/// The tokens with every tensor replaced, as part of the graph.
pub(crate) fn mapped(
    tokens: &VirtualTokens,
    to: impl Fn(&Tensor) -> Result<Tensor>,
) -> Result<VirtualTokens> {
    let adapter = |a: &AdapterTensors| {
        Ok::<_, candle_core::Error>(AdapterTensors {
            down_weight: to(&a.down_weight)?,
            down_bias: to(&a.down_bias)?,
            up_weight: to(&a.up_weight)?,
            up_bias: to(&a.up_bias)?,
        })
    };
    let prefix = match &tokens.prefix {
        Some(p) => Some(PrefixTensors { k: to(&p.k)?, v: to(&p.v)? }),
        None => None,
    };
    let inducer = match &tokens.inducer {
        Some(i) => Some(InducerTensors {
            key: match &i.key {
                KeyTensors::Query => KeyTensors::Query,
                KeyTensors::Residual(a) => KeyTensors::Residual(adapter(a)?),
                KeyTensors::LogitPerHead(t) => KeyTensors::LogitPerHead(to(t)?),
                KeyTensors::LogitPerToken(t) => KeyTensors::LogitPerToken(to(t)?),
            },
            value: match &i.value {
                ValueTensors::Zero => ValueTensors::Zero,
                ValueTensors::Residual(a) => ValueTensors::Residual(adapter(a)?),
                ValueTensors::Direct(a) => ValueTensors::Direct(adapter(a)?),
                ValueTensors::Extended { down_weight, down_bias } => {
                    ValueTensors::Extended { down_weight: to(down_weight)?, down_bias: to(down_bias)? }
                }
            },
            activation: i.activation,
            adaptive_length: i.adaptive_length,
        }),
        None => None,
    };
    Ok(VirtualTokens { prefix, inducer })
}
