//! What is launched for a call, and what the kernels do not take.

#![cfg(any(feature = "cuda", feature = "emulator"))]

use inducer_attention::cuda::kernels::{Abilities, KERNELS};
use inducer_attention::cuda::{Lists, plan};
use inducer_attention::{Attention, DType, Error, Lengths, Outputs, TensorMut, TensorRef, bf16};

/// Memory that begins at a multiple of 16 bytes.
#[repr(align(16))]
struct Aligned([f32; 1 << 14]);

static INPUT: Aligned = Aligned([0.0; 1 << 14]);

fn planned(attention: &Attention<'_>) -> Result<Option<(&'static str, u32)>, Error> {
    let problem = attention.validate()?;
    let mut memory = vec![0u64; 1 << 13];
    let o = TensorMut::new(bytemuck::cast_slice_mut::<_, f32>(&mut memory), attention.q.shape())?;
    let plan =
        plan::forward(&problem.forward(Outputs::new(o))?, &Lists::of(&problem), &plan::Settings::default())?;
    let mut launches = plan.launches().map(|l| (l.kernel.name, l.blocks));
    let first = launches.next();
    assert_eq!(launches.next(), None, "a forward is one launch");
    Ok(first)
}

fn input(shape: [usize; 4]) -> TensorRef<'static, 4> {
    TensorRef::new(&INPUT.0, shape).unwrap()
}

/// Rows of a tile of the f32 kernel for head dimensions up to 64.
fn tile_rows() -> usize {
    let kernel = KERNELS.iter().find(|k| k.name == "forward_f32_d64").expect("it is in the list");
    kernel.rows as usize
}

#[test]
fn one_block_per_tile_head_and_sequence() {
    let tile = tile_rows();
    let kv = input([2, 2, 5, 8]);
    let blocks = |rows| planned(&Attention::new(input([2, 4, rows, 8]), kv, kv)).unwrap().map(|l| l.1);
    assert_eq!(blocks(0), None);
    assert_eq!(blocks(1), Some(8));
    assert_eq!(blocks(tile), Some(8));
    assert_eq!(blocks(tile + 1), Some(16));
    let none = input([2, 2, 0, 8]);
    assert_eq!(planned(&Attention::new(input([2, 4, 1, 8]), none, none)).unwrap().map(|l| l.1), Some(8));
}

#[test]
fn packed_sequences_take_blocks_for_the_longest_and_one_more_for_the_tail() {
    let tile = tile_rows();
    let n = 2 * tile + 7;
    let (q, kv) = (input([1, 2, n, 8]), input([1, 2, 9, 8]));
    let mut attention = Attention::new(q, kv, kv);
    // Sequences of two rows, and of one more than a tile.
    let cu_seqlens_q = [0, 2, tile as i32 + 3];
    attention.lengths = Lengths::Packed { cu_seqlens_q: &cu_seqlens_q, cu_seqlens_k: &[0, 4, 9] };
    let (tiles, heads, parts) = (2, 2, 3);
    assert_eq!(planned(&attention).unwrap().unwrap().1, tiles * heads * parts);
    attention.lengths = Lengths::Packed { cu_seqlens_q: &[0], cu_seqlens_k: &[0] };
    assert_eq!(planned(&attention).unwrap().unwrap().1, 2);
}

/// On Hopper's multiprocessors: 8 tiles of queries a head, four twos.
#[test]
fn blocks_stay_where_they_have_as_much_to_do() {
    let planned = |heads: usize, causal: bool, window_left: Option<i64>| {
        let memory = vec![0u64; heads * 1024 * 8 / 4 + 2];
        let shape = [1, heads, 1024, 8];
        let words = bytemuck::cast_slice::<_, bf16>(&memory);
        let x = TensorRef::new(&words[words.as_ptr().align_offset(16)..], shape).unwrap();
        let mut attention = Attention::new(x, x, x);
        attention.config.causal = causal;
        attention.config.window_left = window_left;
        let problem = attention.validate().unwrap();
        let mut o = vec![0u64; heads * 1024 * 8 / 4 + 2];
        let o = TensorMut::new(bytemuck::cast_slice_mut::<_, bf16>(&mut o), shape).unwrap();
        let settings = plan::Settings { device: Abilities::HOPPER, ..plan::Settings::default() };
        let call = problem.forward(Outputs::new(o)).unwrap();
        let plan = plan::forward(&call, &Lists::of(&problem), &settings).unwrap();
        (plan.launches().next().unwrap().blocks, plan.params().folded)
    };
    assert_eq!(planned(36, false, None), (132, 0), "full: all are alike");
    assert_eq!(planned(33, true, None), (132, 1), "132 twos for 132 multiprocessors");
    assert_eq!(planned(32, true, None), (132, 1), "128 twos: few are idle");
    assert_eq!(planned(36, true, None), (36 * 8, 0), "144 twos: a second turn for twelve");
    assert_eq!(planned(33, true, Some(300)), (33 * 8, 0), "a window: twos differ");
}

#[test]
fn what_the_kernels_do_not_take_is_a_typed_error() {
    let t = input([1, 1, 4, 12]);
    let error = planned(&Attention::new(t, t, t)).unwrap_err();
    assert_eq!(error, Error::DeviceHeadDim { got: 12, multiple: 8, max: 256 });

    let good = input([1, 1, 4, 8]);
    let shifted = TensorRef::new(&INPUT.0[2..], [1, 1, 4, 8]).unwrap();
    let error = planned(&Attention::new(good, shifted, good)).unwrap_err();
    assert!(
        matches!(error, Error::Misaligned { argument: "k", alignment: 16, dtype: DType::F32, .. }),
        "{error}"
    );
    let padded = TensorRef::strided(&INPUT.0, [1, 1, 4, 8], [0, 0, 10, 1]).unwrap();
    let error = planned(&Attention::new(padded, good, good)).unwrap_err();
    assert!(matches!(error, Error::Misaligned { argument: "q", .. }), "{error}");
    // A stride that is never stepped over does not matter.
    let single = TensorRef::strided(&INPUT.0, [1, 1, 1, 8], [3, 5, 7, 1]).unwrap();
    assert!(planned(&Attention::new(single, good, good)).is_ok());
    // SAFETY: nothing is run.
    let null =
        unsafe { TensorRef::from_raw_parts(std::ptr::null(), DType::F32, [1, 1, 4, 8], [32, 32, 8, 1]) };
    let error = planned(&Attention::new(good, good, null.unwrap())).unwrap_err();
    assert_eq!(error, Error::NullPointer { argument: "v", elements: 32 });
}

#[test]
fn a_grid_that_is_too_large_is_a_typed_error() {
    let (batch, heads, rows) = (1 << 16, 1 << 4, 1 << 18);
    let q = TensorRef::strided(&INPUT.0, [batch, heads, rows, 8], [0, 0, 0, 1]).unwrap();
    let kv = TensorRef::strided(&INPUT.0, [batch, 1, 1, 8], [0, 0, 0, 1]).unwrap();
    let attention = Attention::new(q, kv, kv);
    let problem = attention.validate().unwrap();
    let strides = [heads * rows * 8, rows * 8, 8, 1];
    // SAFETY: nothing is run.
    let o = unsafe {
        TensorMut::from_raw_parts(std::ptr::without_provenance_mut(16), DType::F32, q.shape(), strides)
    };
    let call = problem.forward(Outputs::new(o.unwrap())).unwrap();
    let error = plan::forward(&call, &Lists::of(&problem), &plan::Settings::default()).unwrap_err();
    let blocks = (batch * heads * rows / tile_rows()) as u128;
    assert_eq!(error, Error::TooManyBlocks { pass: "forward_f32_d64", blocks, max: i32::MAX as u32 });
}
