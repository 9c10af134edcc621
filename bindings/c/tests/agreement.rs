//! What is written down in the header's structs is what the crate computes: every field, against the crate itself, bit for bit.

mod common;

use common::{Adapter, Tensor, Zeroed, last_error};
use inducer_attention::cpu::{Engine, Workspace};
use inducer_attention::{self as ia, TensorMut, TensorRef};
use inducer_attention_c::call::{AttentionCall, GradientTensors, OutputTensors};
use inducer_attention_c::{
    Status, ia_backward, ia_backward_workspace, ia_forward, ia_forward_workspace, ia_workspace_free,
    ia_workspace_new,
};

const B: usize = 2;
const H: usize = 4;
const H_KV: usize = 2;
const N: usize = 9;
const M: usize = 11;
const D: usize = 8;
const R: usize = 3;
const L: usize = 2;

const PLAIN: [&str; 9] = ["o", "lse", "attn", "u", "d_q", "d_k", "d_v", "d_prefix_k", "d_prefix_v"];
const ADAPTER: [&str; 4] = ["down_weight", "down_bias", "up_weight", "up_bias"];

/// Everything that any of the problems reads.
struct World {
    q: Tensor<f32>,
    k: Tensor<f32>,
    v: Tensor<f32>,
    prefix: [Tensor<f32>; 2],
    lists: [Tensor<i32>; 3],
    cu_seqlens: [Tensor<i32>; 2],
    slopes: Tensor<f32>,
    key: Adapter<f32>,
    value: Adapter<f32>,
    per_head: Tensor<f32>,
    per_token: Tensor<f32>,
    positions: Tensor<i32>,
    d_o: Tensor<f32>,
    d_lse: Tensor<f32>,
    d_u: Tensor<f32>,
}

impl World {
    fn new(batch: usize) -> Self {
        let list = |data: &[i32]| Tensor::new(data.to_vec(), &[data.len()]);
        Self {
            // As a projection writes it, [B, N, H, d].
            q: Tensor::noise(1, &[batch, N, H, D]).middle_exchanged(),
            k: Tensor::noise(2, &[batch, H_KV, M, D]),
            v: Tensor::noise(3, &[batch, H_KV, M, D]),
            prefix: [Tensor::noise(4, &[H_KV, L, D]), Tensor::noise(5, &[H_KV, L, D])],
            lists: [list(&[7, 9]), list(&[11, 8]), list(&[2, 0])],
            cu_seqlens: [list(&[0, 4, 9]), list(&[0, 6, 10])],
            slopes: Tensor::new(vec![0.5, 0.25, 0.125, 0.0625], &[H]),
            key: Adapter::noise(10, [H, D, R]),
            value: Adapter::noise(20, [H, D, R]),
            per_head: Tensor::noise(30, &[H]),
            per_token: Tensor::noise(31, &[batch, H, N]),
            positions: Tensor::new((1..=(batch * N) as i32).collect(), &[batch, N]),
            d_o: Tensor::noise(40, &[batch, H, N, D]),
            d_lse: Tensor::noise(41, &[batch, H, N]),
            d_u: Tensor::noise(42, &[batch, H, N, R]),
        }
    }

    fn attention(&self) -> ia::Attention<'_> {
        let [batch, ..] = self.batch();
        ia::Attention::new(
            TensorRef::bnhd(&self.q.data, [batch, N, H, D]).unwrap(),
            TensorRef::new(&self.k.data, [batch, H_KV, M, D]).unwrap(),
            TensorRef::new(&self.v.data, [batch, H_KV, M, D]).unwrap(),
        )
    }

    fn batch(&self) -> [usize; 1] {
        [self.q.shape[0] as usize]
    }

    fn call(&self) -> AttentionCall {
        AttentionCall { q: self.q.ptr(), k: self.k.ptr(), v: self.v.ptr(), ..AttentionCall::zeroed() }
    }

    fn adapter(a: &Adapter<f32>, activation: ia::Activation) -> ia::Adapter<'_> {
        ia::Adapter {
            down_weight: TensorRef::new(&a.down_weight.data, [H, D, R]).unwrap(),
            down_bias: TensorRef::new(&a.down_bias.data, [H, R]).unwrap(),
            up_weight: TensorRef::new(&a.up_weight.data, [H, R, D]).unwrap(),
            up_bias: TensorRef::new(&a.up_bias.data, [H, D]).unwrap(),
            activation,
        }
    }

    fn down(a: &Adapter<f32>, activation: ia::Activation) -> ia::DownProjection<'_> {
        let ia::Adapter { down_weight, down_bias, .. } = Self::adapter(a, activation);
        ia::DownProjection { down_weight, down_bias, activation }
    }
}

/// Results of both passes, in the order of the fields.
struct Results {
    workspaces: [usize; 2],
    named: Vec<(&'static str, Vec<f32>)>,
}

/// Which results a problem has.
#[allow(clippy::struct_excessive_bools, reason = "independent of one another")]
struct Kind {
    extended: bool,
    key_adapter: bool,
    value_adapter: bool,
    logit: Option<Vec<usize>>,
    prefix: bool,
    from_attention: bool,
}

impl Kind {
    fn of(call: &AttentionCall, batch: usize, from_attention: bool) -> Self {
        Self {
            extended: call.value == 3,
            key_adapter: call.key == 2,
            value_adapter: call.key != 0 && call.value != 0,
            logit: match call.key {
                3 => Some(vec![H]),
                4 => Some(vec![batch, H, N]),
                _ => None,
            },
            prefix: !call.prefix_k.is_null(),
            from_attention,
        }
    }
}

impl Kind {
    /// The results that there are, with their names.
    fn named(
        &self,
        plain: [&Vec<f32>; 9],
        d_logit: Vec<f32>,
        [d_key, d_value]: [[Vec<f32>; 4]; 2],
    ) -> Vec<(&'static str, Vec<f32>)> {
        let there = |name: &str| match name {
            "u" => self.extended,
            "d_prefix_k" | "d_prefix_v" => self.prefix,
            _ => true,
        };
        let plain = PLAIN.into_iter().zip(plain.map(Vec::clone));
        let mut named: Vec<_> = plain.filter(|(name, _)| there(name)).collect();
        if self.logit.is_some() {
            named.push(("d_logit", d_logit));
        }
        for (wanted, adapter, count) in
            [(self.key_adapter, d_key, 4), (self.value_adapter, d_value, if self.extended { 2 } else { 4 })]
        {
            named.extend(ADAPTER.into_iter().zip(adapter).take(if wanted { count } else { 0 }));
        }
        named
    }
}

fn through_c(world: &World, call: &AttentionCall, kind: &Kind) -> Results {
    let [batch] = world.batch();
    let o = Tensor::<f32>::room(&[batch, H, N, D]);
    let lse = Tensor::<f32>::room(&[batch, H, N]);
    let u = Tensor::<f32>::room(&[batch, H, N, R]);
    let attn = Tensor::<f32>::room(&[batch, H, N, D]);
    let null = std::ptr::null();
    let outputs = OutputTensors {
        o: o.ptr(),
        lse: lse.ptr(),
        u: if kind.extended { u.ptr() } else { null },
        attn: attn.ptr(),
        ..OutputTensors::zeroed()
    };
    let [d_q, d_k, d_v] = [[H, N], [H_KV, M], [H_KV, M]].map(|[h, n]| Tensor::<f32>::room(&[batch, h, n, D]));
    let [d_prefix_k, d_prefix_v] = [0, 1].map(|_| Tensor::<f32>::room(&[H_KV, L, D]));
    let (d_key, d_value) = (Adapter::<f32>::noise(50, [H, D, R]), Adapter::<f32>::noise(60, [H, D, R]));
    let d_logit = kind.logit.as_ref().map(|shape| Tensor::<f32>::room(shape));
    let mut gradients = GradientTensors {
        lse: lse.ptr(),
        d_o: world.d_o.ptr(),
        d_lse: world.d_lse.ptr(),
        d_u: if kind.extended { world.d_u.ptr() } else { null },
        d_q: d_q.ptr(),
        d_k: d_k.ptr(),
        d_v: d_v.ptr(),
        d_logit: d_logit.as_ref().map_or(null, Tensor::ptr),
        ..GradientTensors::zeroed()
    };
    *(if kind.from_attention { &mut gradients.attn } else { &mut gradients.o }) =
        if kind.from_attention { attn.ptr() } else { o.ptr() };
    if kind.prefix {
        (gradients.d_prefix_k, gradients.d_prefix_v) = (d_prefix_k.ptr(), d_prefix_v.ptr());
    }
    if kind.key_adapter {
        gradients.d_key_adapter = d_key.tensors();
    }
    if kind.value_adapter {
        gradients.d_value_adapter = if kind.extended { d_value.down() } else { d_value.tensors() };
    }
    let (mut forward, mut backward) = (0, 0);
    // SAFETY: all tensors are dense and live until the end of this function; nobody else uses them.
    unsafe {
        assert_eq!(ia_forward_workspace(call, &raw mut forward), Status::Ok, "{}", last_error());
        assert_eq!(ia_backward_workspace(call, &raw mut backward), Status::Ok, "{}", last_error());
        let workspace = ia_workspace_new();
        assert_eq!(ia_forward(call, &raw const outputs, workspace), Status::Ok, "{}", last_error());
        // Without a workspace as well.
        let null = std::ptr::null_mut();
        assert_eq!(ia_backward(call, &raw const gradients, null), Status::Ok, "{}", last_error());
        ia_workspace_free(workspace);
    }
    let adapter =
        |a: &Adapter<f32>| [&a.down_weight, &a.down_bias, &a.up_weight, &a.up_bias].map(|t| t.data.clone());
    let d_logit = d_logit.map_or_else(Vec::new, |t| t.data);
    let plain = [&o, &lse, &attn, &u, &d_q, &d_k, &d_v, &d_prefix_k, &d_prefix_v].map(|t| &t.data);
    let named = kind.named(plain, d_logit, [adapter(&d_key), adapter(&d_value)]);
    Results { workspaces: [forward, backward], named }
}

/// An adapter's gradients: down weight and bias, up weight and bias.
fn adapter_room() -> [Vec<f32>; 4] {
    [H * D * R, H * R, H * R * D, H * D].map(|n| vec![0f32; n])
}

fn adapter_gradients([a, b, c, e]: &mut [Vec<f32>; 4]) -> ia::AdapterGradients<'_> {
    ia::AdapterGradients {
        down_weight: TensorMut::new(a, [H, D, R]).unwrap(),
        down_bias: TensorMut::new(b, [H, R]).unwrap(),
        up_weight: TensorMut::new(c, [H, R, D]).unwrap(),
        up_bias: TensorMut::new(e, [H, D]).unwrap(),
    }
}

fn through_rust(world: &World, attention: &ia::Attention<'_>, kind: &Kind) -> Results {
    let [batch] = world.batch();
    let problem = attention.validate().expect("a valid problem");
    let (shape, rows) = ([batch, H, N, D], [batch, H, N]);
    let [mut o, mut attn, mut d_q] = [0, 1, 2].map(|_| vec![0f32; batch * H * N * D]);
    let mut lse = vec![0f32; batch * H * N];
    let mut u = vec![0f32; batch * H * N * R];
    let mut outputs = ia::Outputs::with_lse(
        TensorMut::new(&mut o, shape).unwrap(),
        TensorMut::new(&mut lse, rows).unwrap(),
    );
    outputs.attn = Some(TensorMut::new(&mut attn, shape).unwrap());
    if kind.extended {
        outputs.u = Some(TensorMut::new(&mut u, [batch, H, N, R]).unwrap());
    }
    let engine = Engine::detect();
    let bytes = engine.forward_workspace(&problem).max(engine.backward_workspace(&problem));
    let mut workspace = Workspace::with_bytes(bytes);
    engine.forward(problem.forward(outputs).unwrap(), &mut workspace).unwrap();
    let saved = ia::Saved {
        output: if kind.from_attention {
            ia::SavedOutput::Attention(TensorRef::new(&attn, shape).unwrap())
        } else {
            ia::SavedOutput::Output(TensorRef::new(&o, shape).unwrap())
        },
        lse: TensorRef::new(&lse, rows).unwrap(),
    };
    let upstream = ia::Upstream {
        d_o: TensorRef::new(&world.d_o.data, shape).unwrap(),
        d_lse: Some(TensorRef::new(&world.d_lse.data, rows).unwrap()),
        d_u: kind.extended.then(|| TensorRef::new(&world.d_u.data, [batch, H, N, R]).unwrap()),
    };
    let kv = [batch, H_KV, M, D];
    let [mut d_k, mut d_v] = [0, 1].map(|_| vec![0f32; batch * H_KV * M * D]);
    let [mut d_prefix_k, mut d_prefix_v] = [0, 1].map(|_| vec![0f32; H_KV * L * D]);
    let (mut d_key, mut d_value) = (adapter_room(), adapter_room());
    let mut d_logit = vec![0f32; kind.logit.as_ref().map_or(0, |shape| shape.iter().product())];
    let mut gradients = ia::Gradients::new(
        TensorMut::new(&mut d_q, shape).unwrap(),
        TensorMut::new(&mut d_k, kv).unwrap(),
        TensorMut::new(&mut d_v, kv).unwrap(),
    );
    if kind.prefix {
        gradients.prefix = Some(ia::PrefixGradients {
            k: TensorMut::new(&mut d_prefix_k, [H_KV, L, D]).unwrap(),
            v: TensorMut::new(&mut d_prefix_v, [H_KV, L, D]).unwrap(),
        });
    }
    gradients.key = match kind.logit.as_deref() {
        Some([_]) => ia::KeyGradients::LogitPerHead(TensorMut::new(&mut d_logit, [H]).unwrap()),
        Some(_) => ia::KeyGradients::LogitPerToken(TensorMut::new(&mut d_logit, rows).unwrap()),
        None if kind.key_adapter => ia::KeyGradients::Residual(adapter_gradients(&mut d_key)),
        None => ia::KeyGradients::None,
    };
    if kind.value_adapter {
        let all = adapter_gradients(&mut d_value);
        gradients.value = if kind.extended {
            let ia::AdapterGradients { down_weight, down_bias, .. } = all;
            ia::ValueGradients::Extended(ia::DownProjectionGradients { down_weight, down_bias })
        } else {
            ia::ValueGradients::Adapter(all)
        };
    }
    let call = problem.backward(saved, upstream, gradients).unwrap();
    engine.backward(call, &mut workspace).unwrap();
    let workspaces = [engine.forward_workspace(&problem), engine.backward_workspace(&problem)];
    let plain = [&o, &lse, &attn, &u, &d_q, &d_k, &d_v, &d_prefix_k, &d_prefix_v];
    Results { workspaces, named: kind.named(plain, d_logit, [d_key, d_value]) }
}

fn check(
    world: &World,
    attention: &ia::Attention<'_>,
    call: &AttentionCall,
    from_attention: bool,
) -> Vec<f32> {
    let [batch] = world.batch();
    let kind = Kind::of(call, batch, from_attention);
    let (c, rust) = (through_c(world, call, &kind), through_rust(world, attention, &kind));
    assert_eq!(c.named.len(), rust.named.len());
    assert_eq!(c.workspaces, rust.workspaces);
    for ((name, a), (other, b)) in c.named.iter().zip(&rust.named) {
        assert_eq!(name, other);
        assert_eq!(a.len(), b.len(), "{name}");
        let different = a.iter().zip(b).position(|(a, b)| a.to_bits() != b.to_bits());
        assert_eq!(different, None, "{name}");
    }
    c.named.into_iter().next().expect("o").1
}

/// A setting, in Rust and in C.
type Change<'w> = (&'static str, Box<dyn Fn(&mut ia::Attention<'w>, &mut AttentionCall) + 'w>);

#[test]
fn every_setting_of_plain_attention() {
    let world = World::new(B);
    let plain = check(&world, &world.attention(), &world.call(), false);
    let w = &world;
    let changes: Vec<Change<'_>> = vec![
        ("causal", Box::new(|a, c| (a.config.causal, c.options) = (true, 1))),
        (
            "scale",
            Box::new(|a, c| (a.config.softmax_scale, c.softmax_scale, c.options) = (Some(0.7), 0.7, 2)),
        ),
        ("left", Box::new(|a, c| (a.config.window_left, c.window_left, c.options) = (Some(3), 3, 4))),
        ("right", Box::new(|a, c| (a.config.window_right, c.window_right, c.options) = (Some(0), 0, 8))),
        ("softcap", Box::new(|a, c| (a.config.softcap, c.softcap, c.options) = (Some(0.5), 0.5, 16))),
        (
            "a small window to the left, and softcap",
            Box::new(|a, c| {
                (a.config.window_left, a.config.softcap) = (Some(1), Some(0.7));
                (c.window_left, c.softcap, c.options) = (1, 0.7, 4 | 16);
            }),
        ),
        (
            "dropout",
            Box::new(|a, c| {
                a.config.dropout = Some(ia::Dropout { p: 0.4, seed: u64::MAX - 5 });
                (c.dropout_p, c.dropout_seed, c.options) = (0.4, u64::MAX - 5, 32);
            }),
        ),
        (
            "prefix",
            Box::new(|a, c| {
                let [k, v] = w.prefix.each_ref().map(|t| TensorRef::new(&t.data, [H_KV, L, D]).unwrap());
                a.prefix = Some(ia::Prefix { k, v });
                (c.prefix_k, c.prefix_v) = (w.prefix[0].ptr(), w.prefix[1].ptr());
            }),
        ),
        (
            "lengths",
            Box::new(|a, c| {
                let [query_lengths, key_lengths, key_starts] = w.lists.each_ref().map(|t| Some(&t.data[..]));
                a.lengths = ia::Lengths::Padded { query_lengths, key_lengths, key_starts };
                [c.query_lengths, c.key_lengths, c.key_starts] = w.lists.each_ref().map(Tensor::ptr);
            }),
        ),
        (
            "slopes",
            Box::new(|a, c| (a.alibi_slopes, c.alibi_slopes) = (Some(&w.slopes.data[..]), w.slopes.ptr())),
        ),
    ];
    for (name, change) in &changes {
        let (mut attention, mut call) = (world.attention(), world.call());
        change(&mut attention, &mut call);
        let changed = check(&world, &attention, &call, true);
        assert_ne!(changed, plain, "{name} changes nothing");
    }
}

#[test]
fn packed_sequences() {
    let world = World::new(1);
    let (mut attention, mut call) = (world.attention(), world.call());
    let [cu_seqlens_q, cu_seqlens_k] = world.cu_seqlens.each_ref().map(|t| &t.data[..]);
    attention.lengths = ia::Lengths::Packed { cu_seqlens_q, cu_seqlens_k };
    [call.cu_seqlens_q, call.cu_seqlens_k] = world.cu_seqlens.each_ref().map(Tensor::ptr);
    check(&world, &attention, &call, false);
}

#[test]
fn every_virtual_token() {
    let world = World::new(B);
    let w = &world;
    for key in 1..=4 {
        for value in 0..=3 {
            let linear = value % 2 == 1;
            let activation = if linear { ia::Activation::Identity } else { ia::Activation::Tanh };
            let mut call = world.call();
            (call.key, call.value) = (key, value);
            let key_activation = if linear { ia::Activation::Tanh } else { ia::Activation::Identity };
            (call.key_activation, call.value_activation) = (u32::from(!linear), u32::from(linear));
            let mut attention = world.attention();
            let rust_key = match key {
                1 => ia::VirtualKey::Query,
                2 => {
                    call.key_adapter = w.key.tensors();
                    ia::VirtualKey::Residual(World::adapter(&w.key, key_activation))
                }
                3 => {
                    call.logit = w.per_head.ptr();
                    ia::VirtualKey::LogitPerHead(TensorRef::new(&w.per_head.data, [H]).unwrap())
                }
                _ => {
                    call.logit = w.per_token.ptr();
                    ia::VirtualKey::LogitPerToken(TensorRef::new(&w.per_token.data, [B, H, N]).unwrap())
                }
            };
            let rust_value = match value {
                0 => ia::VirtualValue::Zero,
                1 => ia::VirtualValue::Residual(World::adapter(&w.value, activation)),
                2 => ia::VirtualValue::Direct(World::adapter(&w.value, activation)),
                _ => ia::VirtualValue::Extended(World::down(&w.value, activation)),
            };
            if value == 3 {
                call.value_adapter = w.value.down();
            } else if value != 0 {
                call.value_adapter = w.value.tensors();
            }
            let mut inducer = ia::Inducer::new(rust_key, rust_value);
            if key <= 2 {
                inducer.adaptive_length = true;
                call.options = 64;
            }
            if key == 2 {
                inducer.positions = Some(&w.positions.data);
                call.positions = w.positions.ptr();
            }
            attention.inducer = Some(inducer);
            check(&world, &attention, &call, value == 1);
        }
    }
}
