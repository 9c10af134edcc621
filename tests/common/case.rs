//! A case: everything that a run depends on, as plain data that prints and shrinks.

use super::storage::{Arena, Placing, Slot, round_to};
use inducer_attention::{
    Activation, Adapter, Attention, AttentionConfig, DType, DownProjection, Inducer, Lengths, Prefix,
    VirtualKey, VirtualValue,
};

/// How Q, K, V and the results lie in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// `[B, H, N, d]`.
    Bhnd,
    /// `[B, N, H, d]`.
    Bnhd,
    /// One buffer `[B, N, (Hq + 2·Hkv)·d]`, and for the extended value `[B, N, Hq·(d + r_v)]`. Where N ≠ M,
    /// `[B, N, H, d]` instead.
    Packed,
}

/// Which rows and keys exist; see [`Lengths`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LengthsCase {
    Full,
    Padded { query_lengths: Option<Vec<i32>>, key_lengths: Option<Vec<i32>>, key_starts: Option<Vec<i32>> },
    Packed { cu_seqlens_q: Vec<i32>, cu_seqlens_k: Vec<i32> },
}

/// The shape of ALiBi slopes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slopes {
    PerHead,
    PerEntry,
}

/// The virtual key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyCase {
    Query,
    Residual { rank: usize },
    LogitPerHead,
    LogitPerToken,
}

/// The virtual value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ValueCase {
    Zero,
    Residual { rank: usize },
    Direct { rank: usize },
    Extended { rank: usize },
}

impl ValueCase {
    /// Not inlined: the compiler would read it before it knows that there is an inducer, and valgrind would complain.
    #[inline(never)]
    fn rank(&self) -> usize {
        match *self {
            Self::Zero => 0,
            Self::Residual { rank } | Self::Direct { rank } | Self::Extended { rank } => rank,
        }
    }
}

/// The virtual token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InducerCase {
    pub key: KeyCase,
    pub value: ValueCase,
    pub activation: Activation,
    pub adaptive_length: bool,
    pub positions: bool,
    /// Some given logits are −∞.
    pub some_logits_off: bool,
}

/// One run of the operation, forward and backward.
#[derive(Clone, Debug, PartialEq)]
pub struct Case {
    pub dtype: DType,
    /// Of adapters and given logits.
    pub parameter_dtype: DType,
    pub batch: usize,
    pub kv_heads: usize,
    /// Hq / Hkv.
    pub group: usize,
    pub rows: usize,
    pub keys: usize,
    pub head_dim: usize,
    pub layout: Layout,
    pub result_layout: Layout,
    /// Elements that are in no view: before each tensor, and after each of its rows.
    pub offset: usize,
    pub row_pad: usize,
    /// K and V have batch stride 0.
    pub broadcast: bool,
    pub config: AttentionConfig,
    pub lengths: LengthsCase,
    pub prefix: Option<usize>,
    pub alibi: Option<Slopes>,
    pub inducer: Option<InducerCase>,
    /// The largest scores, by order of magnitude.
    pub logits: f32,
    /// Whether there are gradients of lse and of U.
    pub lse_gradient: bool,
    pub u_gradient: bool,
    /// The backward is given attn instead of O.
    pub saves_attention: bool,
    /// The backward is asked for dQ, dK and dV alone.
    pub parameter_gradients: bool,
    /// Of all values.
    pub seed: u64,
}

impl Default for Case {
    /// Plain attention of two heads over a few keys.
    fn default() -> Self {
        Self {
            dtype: DType::F32,
            parameter_dtype: DType::F32,
            batch: 1,
            kv_heads: 2,
            group: 1,
            rows: 5,
            keys: 7,
            head_dim: 8,
            layout: Layout::Bhnd,
            result_layout: Layout::Bhnd,
            offset: 0,
            row_pad: 0,
            broadcast: false,
            config: AttentionConfig::default(),
            lengths: LengthsCase::Full,
            prefix: None,
            alibi: None,
            inducer: None,
            logits: 3.0,
            lse_gradient: true,
            u_gradient: true,
            saves_attention: false,
            parameter_gradients: true,
            seed: 1,
        }
    }
}

impl InducerCase {
    /// Without adaptive length.
    pub fn new(key: KeyCase, value: ValueCase) -> Self {
        Self {
            key,
            value,
            activation: Activation::Tanh,
            adaptive_length: false,
            positions: false,
            some_logits_off: false,
        }
    }
}

/// A well-mixed 64-bit hash (the finaliser of SplitMix64).
pub fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// Uniform in (0, 1), a function of its arguments alone.
pub fn uniform(seed: u64, stream: &str, index: u64) -> f64 {
    let stream = stream.bytes().fold(0, |h, b| mix(h ^ u64::from(b)));
    let bits = mix(mix(seed ^ stream).wrapping_add(index));
    ((bits >> 11) as f64 + 0.5) / (1u64 << 53) as f64
}

/// Standard normal, a function of its arguments alone.
pub fn normal(seed: u64, stream: &str, index: u64) -> f64 {
    let (u, v) = (uniform(seed, stream, 2 * index), uniform(seed, stream, 2 * index + 1));
    (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()
}

impl Case {
    pub fn query_heads(&self) -> usize {
        self.kv_heads * self.group
    }

    /// Batch entries or packed sequences.
    pub fn sequences(&self) -> usize {
        match &self.lengths {
            LengthsCase::Packed { cu_seqlens_q, .. } => cu_seqlens_q.len() - 1,
            _ => self.batch,
        }
    }

    pub fn value_rank(&self) -> usize {
        self.inducer.as_ref().map_or(0, |inducer| inducer.value.rank())
    }

    pub fn is_extended(&self) -> bool {
        matches!(self.inducer.map(|i| i.value), Some(ValueCase::Extended { .. }))
    }

    /// Multiplications of one product of the size of the scores.
    pub fn work(&self) -> usize {
        self.batch * self.query_heads() * self.rows * (self.keys + self.prefix.unwrap_or(0)) * self.head_dim
    }

    pub fn placing(&self) -> Placing {
        Placing { offset: self.offset, row_pad: self.row_pad, gap: 0 }
    }

    /// Standard deviation of the elements of Q and K, so that the largest of some hundred scores is about `logits`.
    fn query_scale(&self) -> f64 {
        let sigma = self.config.softmax_scale.map_or(1.0 / (self.head_dim as f64).sqrt(), f64::from).abs();
        let spread = sigma * (self.head_dim as f64).sqrt() * 3.0;
        (f64::from(self.logits) / spread.max(1e-3)).sqrt()
    }

    /// Draws the inputs.
    pub fn build(&self) -> Inputs {
        Inputs::new(self)
    }

    /// Q, K, V (or their gradients) with `heads`, and what else has their layout, without values.
    pub fn place_qkv(&self, arena: &mut Arena, layout: Layout, broadcast: bool) -> [Slot; 3] {
        let (b, d, h, h_kv) = (self.batch, self.head_dim, self.query_heads(), self.kv_heads);
        if layout == Layout::Packed && self.rows == self.keys {
            let shape = [b, h + 2 * h_kv, self.rows, d];
            let all = arena.add(self.dtype, &shape, &[0, 2, 1, 3], &[], self.placing());
            return [all.narrow(1, 0, h), all.narrow(1, h, h_kv), all.narrow(1, h + h_kv, h_kv)];
        }
        let broadcast: &[usize] = if broadcast { &[0] } else { &[] };
        let mut place = |heads, rows, broadcast: &[usize]| {
            arena.add(self.dtype, &[b, heads, rows, d], order(layout), broadcast, self.placing())
        };
        [place(h, self.rows, &[]), place(h_kv, self.keys, broadcast), place(h_kv, self.keys, broadcast)]
    }

    /// O and, for the extended value, U.
    pub fn place_o_and_u(&self, arena: &mut Arena, layout: Layout) -> (Slot, Option<Slot>) {
        let (b, n, d, h) = (self.batch, self.rows, self.head_dim, self.query_heads());
        let r = self.value_rank();
        if layout == Layout::Packed && self.is_extended() {
            // Rows of h·d + h·r elements; as dimensions [B, h, N, d] inside of them.
            let all = arena.add(self.dtype, &[b, n, h * (d + r)], &[0, 1, 2], &[], self.placing());
            let part = |start: usize, size: usize| Slot {
                shape: vec![b, h, n, size],
                strides: vec![all.strides[0], size, all.strides[1], 1],
                ..all.narrow(2, start, 0)
            };
            return (part(0, d), Some(part(h * d, r)));
        }
        let o = arena.add(self.dtype, &[b, h, n, d], order(layout), &[], self.placing());
        let u = self
            .is_extended()
            .then(|| arena.add(self.dtype, &[b, h, n, r], order(layout), &[], self.placing()));
        (o, u)
    }
}

/// The order of the dimensions `[B, H, N, d]` in memory.
pub fn order(layout: Layout) -> &'static [usize] {
    match layout {
        Layout::Bhnd => &[0, 1, 2, 3],
        Layout::Bnhd | Layout::Packed => &[0, 2, 1, 3],
    }
}

/// Places of an adapter's tensors; the up projection is absent for the extended value.
#[derive(Clone, Debug)]
pub struct AdapterSlots {
    pub down_weight: Slot,
    pub down_bias: Slot,
    pub up: Option<(Slot, Slot)>,
}

/// The inputs of a case.
#[derive(Clone)]
pub struct Inputs {
    pub case: Case,
    pub arena: Arena,
    pub q: Slot,
    pub k: Slot,
    pub v: Slot,
    pub prefix: Option<(Slot, Slot)>,
    pub key: Option<AdapterSlots>,
    pub value: Option<AdapterSlots>,
    pub logit: Option<Slot>,
    pub alibi: Option<Vec<f32>>,
    pub positions: Option<Vec<i32>>,
    pub d_o: Slot,
    pub d_u: Option<Slot>,
    pub d_lse: Slot,
}

impl Inputs {
    fn new(case: &Case) -> Self {
        let (b, n, d, h, h_kv) = (case.batch, case.rows, case.head_dim, case.query_heads(), case.kv_heads);
        let mut arena = Arena::default();
        let seed = case.seed;
        let draw = |arena: &mut Arena, slot: &Slot, name: &str, scale: f64| {
            arena.fill(slot, |i| scale * normal(seed, name, i as u64));
        };
        let scale = case.query_scale();
        let [q, k, v] = case.place_qkv(&mut arena, case.layout, case.broadcast);
        draw(&mut arena, &q, "q", scale);
        draw(&mut arena, &k, "k", scale);
        draw(&mut arena, &v, "v", 1.0);
        let prefix = case.prefix.map(|len| {
            let [k, v] = [("prefix.k", scale), ("prefix.v", 1.0)].map(|(name, scale)| {
                let slot = arena.add(case.dtype, &[h_kv, len, d], &[0, 1, 2], &[], case.placing());
                draw(&mut arena, &slot, name, scale);
                slot
            });
            (k, v)
        });

        let mut adapter = |name: &str, rank: usize, up: bool, up_scale: f64| {
            let mut tensor = |part: &str, shape: &[usize], scale: f64| {
                let order: Vec<usize> = (0..shape.len()).collect();
                let slot = arena.add(case.parameter_dtype, shape, &order, &[], case.placing());
                draw(&mut arena, &slot, &format!("{name}.{part}"), scale);
                slot
            };
            let down = 1.0 / (scale.max(1e-3) * (d as f64).sqrt());
            AdapterSlots {
                down_weight: tensor("down_weight", &[h, d, rank], down),
                down_bias: tensor("down_bias", &[h, rank], 0.5),
                up: up.then(|| {
                    let weight = tensor("up_weight", &[h, rank, d], up_scale / (rank as f64).sqrt());
                    (weight, tensor("up_bias", &[h, d], 0.3 * up_scale))
                }),
            }
        };
        let key = match case.inducer.map(|i| i.key) {
            Some(KeyCase::Residual { rank }) => Some(adapter("key", rank, true, 0.5 * scale)),
            _ => None,
        };
        let value = match case.inducer.map(|i| i.value) {
            Some(ValueCase::Residual { rank } | ValueCase::Direct { rank }) => {
                Some(adapter("value", rank, true, 1.0))
            }
            Some(ValueCase::Extended { rank }) => Some(adapter("value", rank, false, 1.0)),
            _ => None,
        };
        let mut given = |shape: &[usize], order: &[usize]| {
            // Not contiguous: only rows of head_dim and rank have to be.
            let placing = Placing { gap: case.offset % 2, ..case.placing() };
            let slot = arena.add(case.parameter_dtype, shape, order, &[], placing);
            let off = case.inducer.is_some_and(|i| i.some_logits_off);
            let spread = f64::from(case.logits).min(10.0) / 3.0;
            arena.fill(&slot, |i| {
                if off && mix(seed ^ i as u64).is_multiple_of(3) {
                    f64::NEG_INFINITY
                } else {
                    1.5 + spread * normal(seed, "logit", i as u64)
                }
            });
            slot
        };
        let logit = match case.inducer.map(|i| i.key) {
            Some(KeyCase::LogitPerHead) => Some(given(&[h], &[0])),
            Some(KeyCase::LogitPerToken) => {
                let order: &[usize] = if case.layout == Layout::Bhnd { &[0, 1, 2] } else { &[0, 2, 1] };
                Some(given(&[b, h, n], order))
            }
            _ => None,
        };

        let (d_o, d_u) = case.place_o_and_u(&mut arena, case.layout);
        draw(&mut arena, &d_o, "d_o", 1.0);
        if let Some(d_u) = &d_u {
            draw(&mut arena, d_u, "d_u", 1.0);
        }
        let lse_order: &[usize] = if case.layout == Layout::Bhnd { &[0, 1, 2] } else { &[0, 2, 1] };
        let d_lse = arena.add(DType::F32, &[b, h, n], lse_order, &[], case.placing());
        draw(&mut arena, &d_lse, "d_lse", 1.0);

        let alibi = case.alibi.map(|slopes| {
            let count = if slopes == Slopes::PerHead { h } else { case.sequences() * h };
            // A slope of 2^-1 … 2^-8, as published, and now and then a negative one.
            (0..count)
                .map(|i| {
                    let u = uniform(seed, "alibi", i as u64);
                    let slope = 2f64.powf(-1.0 - 7.0 * u) as f32;
                    if mix(seed ^ i as u64).is_multiple_of(8) { -slope } else { slope }
                })
                .collect()
        });
        let positions = case
            .inducer
            .filter(|i| i.positions)
            .map(|_| (0..b * n).map(|i| (uniform(seed, "positions", i as u64) * 40.0) as i32).collect());
        Self {
            case: case.clone(),
            arena,
            q,
            k,
            v,
            prefix,
            key,
            value,
            logit,
            alibi,
            positions,
            d_o,
            d_u,
            d_lse,
        }
    }

    fn adapter(&self, slots: &AdapterSlots) -> Adapter<'_> {
        let (up_weight, up_bias) = slots.up.as_ref().expect("an adapter with an up projection");
        Adapter {
            down_weight: self.arena.view(&slots.down_weight),
            down_bias: self.arena.view(&slots.down_bias),
            up_weight: self.arena.view(up_weight),
            up_bias: self.arena.view(up_bias),
            activation: self.case.inducer.expect("an adapter belongs to an inducer").activation,
        }
    }

    fn inducer(&self) -> Option<Inducer<'_>> {
        let case = self.case.inducer?;
        let key_adapter = || self.adapter(self.key.as_ref().expect("the key's adapter"));
        let value_slots = || self.value.as_ref().expect("the value's adapter");
        let logit = || self.logit.as_ref().expect("the given logits");
        Some(Inducer {
            key: match case.key {
                KeyCase::Query => VirtualKey::Query,
                KeyCase::Residual { .. } => VirtualKey::Residual(key_adapter()),
                KeyCase::LogitPerHead => VirtualKey::LogitPerHead(self.arena.view(logit())),
                KeyCase::LogitPerToken => VirtualKey::LogitPerToken(self.arena.view(logit())),
            },
            value: match case.value {
                ValueCase::Zero => VirtualValue::Zero,
                ValueCase::Residual { .. } => VirtualValue::Residual(self.adapter(value_slots())),
                ValueCase::Direct { .. } => VirtualValue::Direct(self.adapter(value_slots())),
                ValueCase::Extended { .. } => VirtualValue::Extended(DownProjection {
                    down_weight: self.arena.view(&value_slots().down_weight),
                    down_bias: self.arena.view(&value_slots().down_bias),
                    activation: case.activation,
                }),
            },
            adaptive_length: case.adaptive_length,
            positions: self.positions.as_deref(),
        })
    }

    /// The problem as a caller describes it.
    pub fn attention(&self) -> Attention<'_> {
        let mut attention =
            Attention::new(self.arena.view(&self.q), self.arena.view(&self.k), self.arena.view(&self.v));
        attention.config = self.case.config;
        attention.prefix =
            self.prefix.as_ref().map(|(k, v)| Prefix { k: self.arena.view(k), v: self.arena.view(v) });
        attention.lengths = match &self.case.lengths {
            LengthsCase::Full => Lengths::Full,
            LengthsCase::Padded { query_lengths, key_lengths, key_starts } => Lengths::Padded {
                query_lengths: query_lengths.as_deref(),
                key_lengths: key_lengths.as_deref(),
                key_starts: key_starts.as_deref(),
            },
            LengthsCase::Packed { cu_seqlens_q, cu_seqlens_k } => {
                Lengths::Packed { cu_seqlens_q, cu_seqlens_k }
            }
        };
        attention.alibi_slopes = self.alibi.as_deref();
        attention.inducer = self.inducer();
        attention
    }

    /// Overwrites one element of a tensor, given by its flat row-major index.
    pub fn poke(&mut self, slot: &Slot, index: usize, value: f64) {
        let mut values = self.arena.read(slot).data;
        values[index] = value;
        self.arena.fill(slot, |i| values[i]);
    }

    /// Rounds as the case's dtype does.
    pub fn round(&self, x: f64) -> f64 {
        round_to(self.case.dtype, x)
    }
}

/// What one batch entry, or one packed sequence, takes of a tensor.
#[derive(Clone, Copy, Debug)]
pub struct Extent {
    pub batch: usize,
    /// First row of Q, and how many.
    pub rows: (usize, usize),
    /// First row of K, and how many.
    pub keys: (usize, usize),
}

impl Extent {
    /// That part of a tensor `[B, H, N, …]`.
    pub fn of_rows(&self, slot: &Slot) -> Slot {
        slot.narrow(0, self.batch, 1).narrow(2, self.rows.0, self.rows.1)
    }

    /// That part of a tensor `[B, H, M, d]`.
    pub fn of_keys(&self, slot: &Slot) -> Slot {
        slot.narrow(0, self.batch, 1).narrow(2, self.keys.0, self.keys.1)
    }
}

impl Inputs {
    /// Where batch entry or packed sequence `index` lies.
    pub fn extent(&self, index: usize) -> Extent {
        match &self.case.lengths {
            LengthsCase::Packed { cu_seqlens_q, cu_seqlens_k } => {
                let span = |cu: &[i32]| (cu[index] as usize, (cu[index + 1] - cu[index]) as usize);
                Extent { batch: 0, rows: span(cu_seqlens_q), keys: span(cu_seqlens_k) }
            }
            _ => Extent { batch: index, rows: (0, self.case.rows), keys: (0, self.case.keys) },
        }
    }

    /// Batch entry or packed sequence `index` by itself, with the same values.
    pub fn alone(&self, index: usize) -> Self {
        let extent = self.extent(index);
        let one = |list: &Option<Vec<i32>>| list.as_ref().map(|l| vec![l[index]]);
        let mut alone = Self::new(&Case {
            batch: 1,
            rows: extent.rows.1,
            keys: extent.keys.1,
            lengths: match &self.case.lengths {
                LengthsCase::Padded { query_lengths, key_lengths, key_starts } => LengthsCase::Padded {
                    query_lengths: one(query_lengths),
                    key_lengths: one(key_lengths),
                    key_starts: one(key_starts),
                },
                LengthsCase::Full | LengthsCase::Packed { .. } => LengthsCase::Full,
            },
            alibi: self.case.alibi.map(|_| Slopes::PerHead),
            ..self.case.clone()
        });
        let mut copies = vec![
            (extent.of_rows(&self.q), alone.q.clone()),
            (extent.of_keys(&self.k), alone.k.clone()),
            (extent.of_keys(&self.v), alone.v.clone()),
            (extent.of_rows(&self.d_o), alone.d_o.clone()),
            (extent.of_rows(&self.d_lse), alone.d_lse.clone()),
        ];
        if let (Some(from), Some(to)) = (&self.d_u, &alone.d_u) {
            copies.push((extent.of_rows(from), to.clone()));
        }
        if let (Some(from), Some(to), 3) =
            (&self.logit, &alone.logit, self.logit.as_ref().map_or(0, |l| l.shape.len()))
        {
            copies.push((extent.of_rows(from), to.clone()));
        }
        for (from, to) in copies {
            let values = self.arena.read(&from).data;
            alone.arena.fill(&to, |i| values[i]);
        }
        let heads = self.case.query_heads();
        alone.alibi = self.alibi.as_ref().map(|slopes| {
            let first = if slopes.len() == heads { 0 } else { index * heads };
            slopes[first..first + heads].to_vec()
        });
        alone.positions = self.positions.as_ref().map(|positions| {
            let first = extent.batch * self.case.rows + extent.rows.0;
            positions[first..first + extent.rows.1].to_vec()
        });
        alone
    }

    /// Replaces the rows of a tensor `[B, H, N, …]` that `is_hit(batch, row)` names by `value`.
    pub fn spoil_rows(&mut self, slot: &Slot, value: f64, is_hit: impl Fn(usize, usize) -> bool) {
        let [heads, rows] = [slot.shape[1], slot.shape[2]];
        let width: usize = slot.shape[3..].iter().product();
        let old = self.arena.read(slot).data;
        self.arena.fill(slot, |flat| {
            let row = flat / width.max(1);
            if is_hit(row / rows / heads, row % rows) { value } else { old[flat] }
        });
    }
}
