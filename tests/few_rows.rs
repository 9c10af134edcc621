//! Few queries, as where a model generates text: a row has the same bits whether it is computed alone or with others.

use inducer_attention::cpu::{Engine, InstructionSet, Workspace};
use inducer_attention::{
    Activation, Adapter, Attention, Element, Inducer, Outputs, TensorMut, TensorRef, VirtualKey,
    VirtualValue, bf16, f16,
};

const RANK: usize = 3;
/// More than any vector has lanes.
const ROWS: usize = 37;

/// Numbers without a pattern, from −1 to 1.
fn noise(n: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

struct World<T> {
    q: Vec<T>,
    k: Vec<T>,
    v: Vec<T>,
    adapter: [Vec<f32>; 4],
    heads: usize,
    kv_heads: usize,
    keys: usize,
    head_dim: usize,
}

impl<T: Element> World<T> {
    fn new([heads, kv_heads]: [usize; 2], keys: usize, head_dim: usize, from_f32: fn(f32) -> T) -> Self {
        let d = head_dim;
        // Scores of some size: maxima move from tile to tile.
        let numbers =
            |n: usize, seed, by: f32| noise(n, seed).into_iter().map(|x| from_f32(x * by)).collect();
        let [a, b] = [heads * d * RANK, heads * RANK];
        Self {
            q: numbers(heads * ROWS * d, 1, 6.0),
            k: numbers(kv_heads * keys * d, 2, 2.0),
            v: numbers(kv_heads * keys * d, 3, 1.0),
            adapter: [noise(a, 4), noise(b, 5), noise(a, 6), noise(heads * d, 7)],
            heads,
            kv_heads,
            keys,
            head_dim,
        }
    }

    /// O and lse of `rows` rows from the first on, which see `keys` keys or, causally, the last of them that many.
    fn run(
        &self,
        set: InstructionSet,
        first: usize,
        rows: usize,
        keys: usize,
        causal: bool,
    ) -> (Vec<T>, Vec<f32>) {
        let (d, heads) = (self.head_dim, self.heads);
        let q = TensorRef::new(&self.q, [1, heads, ROWS, d]).expect("Q");
        let [k, v] =
            [&self.k, &self.v].map(|t| TensorRef::new(t, [1, self.kv_heads, self.keys, d]).expect("keys"));
        let mut attention = Attention::new(part(q, first, first + rows), part(k, 0, keys), part(v, 0, keys));
        attention.config.causal = causal;
        attention.config.softcap = (d == 16).then_some(3.0);
        let [a, b, c, e] = &self.adapter;
        let adapter = Adapter {
            down_weight: TensorRef::new(a, [heads, d, RANK]).expect("down weight"),
            down_bias: TensorRef::new(b, [heads, RANK]).expect("down bias"),
            up_weight: TensorRef::new(c, [heads, RANK, d]).expect("up weight"),
            up_bias: TensorRef::new(e, [heads, d]).expect("up bias"),
            activation: Activation::Tanh,
        };
        attention.inducer = Some(Inducer::new(VirtualKey::Residual(adapter), VirtualValue::Direct(adapter)));
        let problem = attention.validate().expect("a valid problem");
        let mut o = vec![T::zeroed(); heads * rows * d];
        let mut lse = vec![0f32; heads * rows];
        let outputs = Outputs::with_lse(
            TensorMut::new(&mut o, [1, heads, rows, d]).expect("O"),
            TensorMut::new(&mut lse, [1, heads, rows]).expect("lse"),
        );
        let engine = Engine::with(set).expect("an instruction set that is there");
        let mut workspace = Workspace::with_bytes(engine.forward_workspace(&problem));
        engine.forward(problem.forward(outputs).expect("a valid call"), &mut workspace).expect("a forward");
        (o, lse)
    }

    fn check(&self, set: InstructionSet, causal: bool) {
        let (d, heads, keys) = (self.head_dim, self.heads, self.keys);
        let (all_o, all_lse) = self.run(set, 0, ROWS, keys, causal);
        for rows in [1, 2, 3, 5, 8] {
            for first in [0, 10, ROWS - rows] {
                // The last of these rows sees as many keys.
                let seen = if causal { (keys + first + rows).saturating_sub(ROWS) } else { keys };
                let (o, lse) = self.run(set, first, rows, seen, causal);
                for (head, row) in (0..heads).flat_map(|head| (0..rows).map(move |row| (head, row))) {
                    let (one, all) = (head * rows + row, head * ROWS + first + row);
                    let context = format!(
                        "{set:?}, d {d}, {keys} keys, causal {causal}, row {row} of {rows} from {first}"
                    );
                    assert_eq!(lse[one].to_bits(), all_lse[all].to_bits(), "{context}: lse");
                    let same = bytes(&o[one * d..][..d]) == bytes(&all_o[all * d..][..d]);
                    assert!(same, "{context}");
                }
            }
        }
    }
}

fn part(t: TensorRef<'_, 4>, first: usize, end: usize) -> TensorRef<'_, 4> {
    t.narrow(2, first, end).expect("rows of the tensor")
}

fn bytes<T: Element>(row: &[T]) -> Vec<u8> {
    bytemuck::cast_slice(row).to_vec()
}

#[test]
fn a_row_does_not_depend_on_those_that_are_computed_with_it() {
    let sets: Vec<InstructionSet> =
        InstructionSet::ALL.into_iter().filter(|&set| Engine::with(set).is_some()).collect();
    for set in sets {
        for head_dim in [1, 7, 8, 16, 40, 64, 128, 256] {
            for keys in [1, 5, 127, 300] {
                for causal in [false, true] {
                    // Each head its own keys, and groups that share them, of as many heads as a vector has lanes and of more.
                    for heads in [[2, 2], [6, 2], [8, 1], [20, 1]] {
                        World::<f32>::new(heads, keys, head_dim, |x| x).check(set, causal);
                        if head_dim == 64 {
                            World::new(heads, keys, head_dim, f16::from_f32).check(set, causal);
                            World::new(heads, keys, head_dim, bf16::from_f32).check(set, causal);
                        }
                    }
                }
            }
        }
    }
}
