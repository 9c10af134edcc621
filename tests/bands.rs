//! The CPU engine's backward where keys come in bands: more of them than any other test has, gathered in scratch memory.

mod common;

use common::agreement::check_on;
use common::backend::{Backend, Cpu};
use common::case::{Case, Extent, InducerCase, Inputs, KeyCase, LengthsCase, ValueCase};
use common::run;
use inducer_attention::cpu::{Engine, Workspace};
use inducer_attention::reference::Tensor;
use inducer_attention::{
    Attention, DType, Gradients, Outputs, Saved, SavedOutput, TensorMut, TensorRef, Upstream,
};
use rayon::ThreadPoolBuilder;

fn long(dtype: DType) -> Case {
    let inducer = InducerCase::new(KeyCase::Residual { rank: 3 }, ValueCase::Residual { rank: 2 });
    let mut case = Case {
        dtype,
        kv_heads: 1,
        rows: 1100,
        keys: 4600,
        head_dim: 13,
        prefix: Some(5),
        inducer: Some(inducer),
        ..Case::default()
    };
    case.config.causal = true;
    case
}

#[test]
fn long_sequences_agree_with_the_oracle() {
    for dtype in [DType::BF16, DType::F32] {
        for cpu in Cpu::all() {
            check_on(&cpu, &long(dtype)).unwrap_or_else(|e| panic!("{dtype:?}: {e}"));
        }
    }
}

/// A long sequence among short ones, one of which has no keys.
fn mixed() -> Case {
    let lengths = LengthsCase::Packed {
        cu_seqlens_q: vec![0, 40, 300, 307, 1400],
        cu_seqlens_k: vec![0, 100, 4500, 4500, 6000],
    };
    Case { kv_heads: 2, group: 2, rows: 1400, keys: 6000, lengths, ..long(DType::F16) }
}

#[test]
fn sequences_of_all_lengths_agree_with_the_oracle() {
    let case = Case { kv_heads: 1, group: 2, ..mixed() };
    for cpu in Cpu::all() {
        check_on(&cpu, &case).unwrap_or_else(|e| panic!("{e}"));
    }
}

/// Gradients with so many threads: a flight of pairs is as large as keeps them busy.
fn gradients(inputs: &Inputs, threads: usize) -> Vec<(&'static str, Vec<u64>)> {
    let cpu = Cpu::all().next().expect("an instruction set");
    let pool = ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
    pool.install(|| {
        let forward = run::forward(&cpu as &dyn Backend, inputs).expect("a forward");
        let named = run::backward(&cpu, inputs, &forward).expect("a backward").named();
        named.into_iter().map(|(name, t)| (name, t.data.iter().map(|x| x.to_bits()).collect())).collect()
    })
}

#[test]
fn bands_depend_neither_on_threads_nor_on_the_batch() {
    for case in [long(DType::BF16), mixed()] {
        let inputs = case.build();
        let (one, three) = (gradients(&inputs, 1), gradients(&inputs, 3));
        for ((name, a), (_, b)) in one.iter().zip(&three) {
            assert!(a == b, "d{name} with one thread and with three");
        }
        let [q, k, v] = ["q", "k", "v"].map(|name| &one.iter().find(|g| g.0 == name).expect("a gradient").1);
        for index in 0..case.sequences() {
            let (extent, alone) = (inputs.extent(index), gradients(&inputs.alone(index), 2));
            let tensors = [
                ("q", q, case.rows, extent.rows),
                ("k", k, case.keys, extent.keys),
                ("v", v, case.keys, extent.keys),
            ];
            for (name, all, n, (first, count)) in tensors {
                // Rows of the sequence, head by head.
                let d = case.head_dim;
                let part: Vec<u64> = all
                    .chunks(n * d)
                    .flat_map(|head| head[first * d..(first + count) * d].to_vec())
                    .collect();
                let (_, own) = alone.iter().find(|g| g.0 == name).expect("a gradient");
                assert!(*own == part, "d{name} of sequence {index} by itself");
            }
        }
    }
}

/// How far a longer neighbour makes the tensor reach is no one's concern: not even the bits of an entry's gradients.
#[test]
fn padding_changes_no_bits() {
    const KEYS: usize = 4000;
    let with = |keys: usize| {
        let lengths = LengthsCase::Padded {
            query_lengths: None,
            key_lengths: Some(vec![KEYS as i32]),
            key_starts: Some(vec![70]),
        };
        let mut case = Case { rows: 1100, keys, lengths, ..long(DType::BF16) };
        case.config.causal = false;
        case.build()
    };
    let (padded, mut tight) = (with(5000), with(KEYS));
    let extent = Extent { batch: 0, rows: (0, 1100), keys: (0, KEYS) };
    for (from, to) in [(&padded.k, tight.k.clone()), (&padded.v, tight.v.clone())] {
        let values = padded.arena.read(&extent.of_keys(from)).data;
        tight.arena.fill(&to, |i| values[i]);
    }
    let (padded, tight) = (gradients(&padded, 2), gradients(&tight, 2));
    for ((name, a), (_, b)) in padded.iter().zip(&tight) {
        // dK and dV of the padding are zeros at the end: there is one head.
        assert!(a[..b.len()] == b[..] && a[b.len()..].iter().all(|&bits| bits == 0), "d{name}");
    }
}

/// Columns of zeros change nothing, but with a vector's worth of them gradients are gathered where they belong, in no bands. Many
/// rows, so that the queries have more parts than a band has chunks.
#[test]
fn bands_agree_with_sums_in_place() {
    const NARROW: usize = 13;
    const WIDE: usize = 16;
    let (n, m) = (9100, 5000);
    let value = |seed: usize, i: usize| (((i * 7919 + seed * 104_729) % 1999) as f32 / 999.5 - 1.0) * 0.7;
    let gradients = |d: usize| -> [Tensor; 3] {
        let fill = |seed: usize, rows: usize| -> Vec<f32> {
            (0..rows * d)
                .map(|at| if at % d < NARROW { value(seed, at / d * NARROW + at % d) } else { 0.0 })
                .collect()
        };
        let (q, k, v, d_o) = (fill(1, n), fill(2, m), fill(3, m), fill(4, n));
        let narrow = |x: &[f32]| {
            let rows = x.chunks(d).flat_map(|row| row[..NARROW].iter().copied().map(f64::from));
            Tensor::new(&[x.len() / d, NARROW], rows.collect())
        };
        let at = |x, rows| TensorRef::bnhd(x, [1, rows, 1, d]).expect("a view");
        let mut attention = Attention::new(at(&q, n), at(&k, m), at(&v, m));
        attention.config.softmax_scale = Some(1.0);
        let problem = attention.validate().expect("a valid problem");
        let engine = Engine::detect();
        let (mut o, mut lse) = (vec![0f32; n * d], vec![0f32; n]);
        let bytes = engine.forward_workspace(&problem).max(engine.backward_workspace(&problem));
        let mut workspace = Workspace::with_bytes(bytes);
        let outputs = Outputs::with_lse(
            TensorMut::bnhd(&mut o, [1, n, 1, d]).expect("a view"),
            TensorMut::new(&mut lse, [1, 1, n]).expect("a view"),
        );
        engine.forward(problem.forward(outputs).expect("outputs"), &mut workspace).expect("a forward");
        let [mut d_q, mut d_k, mut d_v] = [vec![0f32; n * d], vec![0f32; m * d], vec![0f32; m * d]];
        let lse = TensorRef::new(&lse, [1, 1, n]).expect("a view");
        let saved = Saved { output: SavedOutput::Output(at(&o, n)), lse };
        let to = |x, rows| TensorMut::bnhd(x, [1, rows, 1, d]).expect("a view");
        let results = Gradients::new(to(&mut d_q, n), to(&mut d_k, m), to(&mut d_v, m));
        let call = problem.backward(saved, Upstream::new(at(&d_o, n)), results).expect("gradients");
        engine.backward(call, &mut workspace).expect("a backward");
        [narrow(&d_q), narrow(&d_k), narrow(&d_v)]
    };
    for (name, (x, y)) in ["dQ", "dK", "dV"].iter().zip(gradients(NARROW).iter().zip(&gradients(WIDE))) {
        let error = x.relative_error(y);
        assert!(error < 2e-6, "{name} is off by {error:.1e}");
    }
}
