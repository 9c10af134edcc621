//! Bad input: one typed error for each mistake, whose message names the argument, its value and what was expected.

use inducer_attention::{
    Activation, Adapter, AdapterGradients, Attention, AttentionConfig, DType, DownProjection, Dropout, Error,
    Gradients, Inducer, InducerConfig, KeyConfig, KeyGradients, Lengths, Outputs, Prefix, PrefixGradients,
    Problem, Saved, SavedOutput, TensorMut, TensorRef, Upstream, ValueConfig, ValueGradients, VirtualKey,
    VirtualValue, bf16, f16,
};

static F32: [f32; 4096] = [0.0; 4096];
static F16: [f16; 4096] = [f16::ZERO; 4096];
static BF16: [bf16; 4096] = [bf16::ZERO; 4096];

fn f32s<const R: usize>(shape: [usize; R]) -> TensorRef<'static, R> {
    TensorRef::new(&F32, shape).unwrap()
}

fn bf16s<const R: usize>(shape: [usize; R]) -> TensorRef<'static, R> {
    TensorRef::new(&BF16, shape).unwrap()
}

/// Memory that lives as long as the test.
fn fresh<const R: usize>(shape: [usize; R]) -> TensorMut<'static, R> {
    TensorMut::new(vec![0f32; shape.iter().product()].leak(), shape).unwrap()
}

fn fresh_bf16<const R: usize>(shape: [usize; R]) -> TensorMut<'static, R> {
    TensorMut::new(vec![bf16::ZERO; shape.iter().product()].leak(), shape).unwrap()
}

/// B = 2, Hq = 4, Hkv = 2, N = 5, M = 7, d = 8.
fn base() -> Attention<'static> {
    Attention::new(f32s([2, 4, 5, 8]), f32s([2, 2, 7, 8]), f32s([2, 2, 7, 8]))
}

/// Two packed sequences in 5 rows and 7 keys.
fn packed(cu_seqlens_q: &'static [i32], cu_seqlens_k: &'static [i32]) -> Attention<'static> {
    Attention {
        lengths: Lengths::Packed { cu_seqlens_q, cu_seqlens_k },
        ..Attention::new(f32s([1, 4, 5, 8]), f32s([1, 2, 7, 8]), f32s([1, 2, 7, 8]))
    }
}

fn adapter(rank: usize) -> Adapter<'static> {
    Adapter {
        down_weight: f32s([4, 8, rank]),
        down_bias: f32s([4, rank]),
        up_weight: f32s([4, rank, 8]),
        up_bias: f32s([4, 8]),
        activation: Activation::Tanh,
    }
}

fn down(rank: usize) -> DownProjection<'static> {
    let Adapter { down_weight, down_bias, activation, .. } = adapter(rank);
    DownProjection { down_weight, down_bias, activation }
}

fn with_key(key: VirtualKey<'static>) -> Attention<'static> {
    Attention { inducer: Some(Inducer::new(key, VirtualValue::Zero)), ..base() }
}

fn with_value(value: VirtualValue<'static>) -> Attention<'static> {
    Attention { inducer: Some(Inducer::new(VirtualKey::Query, value)), ..base() }
}

fn extended() -> Problem<'static> {
    with_value(VirtualValue::Extended(down(3))).validate().unwrap()
}

fn saved() -> Saved<'static> {
    Saved { output: SavedOutput::Output(f32s([2, 4, 5, 8])), lse: f32s([2, 4, 5]) }
}

fn upstream() -> Upstream<'static> {
    Upstream::new(f32s([2, 4, 5, 8]))
}

fn gradients() -> Gradients<'static> {
    Gradients::new(fresh([2, 4, 5, 8]), fresh([2, 2, 7, 8]), fresh([2, 2, 7, 8]))
}

/// Asserts the variant and the whole message.
macro_rules! rejects {
    ($result:expr, $variant:pat, $message:expr) => {{
        let error = $result.err().expect("bad input must be rejected");
        assert!(matches!(error, $variant), "{error:?}");
        assert_eq!(error.to_string(), $message);
    }};
}

#[test]
fn the_base_case_and_its_parts_are_valid() {
    base().validate().unwrap();
    packed(&[0, 2, 5], &[0, 3, 7]).validate().unwrap();
    with_key(VirtualKey::Residual(adapter(3))).validate().unwrap();
    let problem = with_value(VirtualValue::Direct(adapter(64))).validate().unwrap();
    problem.forward(Outputs::with_lse(fresh([2, 4, 5, 8]), fresh([2, 4, 5]))).unwrap();
    problem.backward(saved(), upstream(), gradients()).unwrap();
}

#[test]
fn shapes() {
    let mut a = base();
    a.k = f32s([2, 2, 7, 9]);
    rejects!(
        a.validate(),
        Error::Shape { .. },
        "k: shape [2, 2, 7, 9], expected [B, Hkv, M, d] = [2, 2, 7, 8]"
    );
    let mut a = base();
    a.k = f32s([3, 2, 7, 8]);
    rejects!(
        a.validate(),
        Error::Shape { .. },
        "k: shape [3, 2, 7, 8], expected [B, Hkv, M, d] = [2, 2, 7, 8]"
    );
    let mut a = base();
    a.v = f32s([2, 2, 6, 8]);
    rejects!(
        a.validate(),
        Error::Shape { .. },
        "v: shape [2, 2, 6, 8], expected [B, Hkv, M, d] = [2, 2, 7, 8]"
    );
    // V's head_dim equals d.
    let mut a = base();
    a.v = f32s([2, 2, 7, 4]);
    rejects!(
        a.validate(),
        Error::Shape { .. },
        "v: shape [2, 2, 7, 4], expected [B, Hkv, M, d] = [2, 2, 7, 8]"
    );
    let mut a = base();
    a.prefix = Some(Prefix { k: f32s([3, 6, 8]), v: f32s([3, 6, 8]) });
    rejects!(
        a.validate(),
        Error::Shape { .. },
        "prefix.k: shape [3, 6, 8], expected [Hkv, L, d] = [2, 6, 8]"
    );
    a.prefix = Some(Prefix { k: f32s([2, 6, 8]), v: f32s([2, 5, 8]) });
    rejects!(
        a.validate(),
        Error::Shape { .. },
        "prefix.v: shape [2, 5, 8], expected [Hkv, L, d] = [2, 6, 8]"
    );
    let a = with_key(VirtualKey::LogitPerHead(f32s([2])));
    rejects!(a.validate(), Error::Shape { .. }, "key.logit: shape [2], expected [Hq] = [4]");
    let a = with_key(VirtualKey::LogitPerToken(f32s([2, 2, 5])));
    rejects!(
        a.validate(),
        Error::Shape { .. },
        "key.logit: shape [2, 2, 5], expected [B, Hq, N] = [2, 4, 5]"
    );
    let mut a = packed(&[0, 5], &[0, 7]);
    (a.q, a.k, a.v) = (base().q, base().k, base().v);
    rejects!(
        a.validate(),
        Error::Shape { .. },
        "q: shape [2, 4, 5, 8], expected [1, Hq, total_q, d] for packed sequences"
    );
}

#[test]
fn dimensions_of_zero() {
    let of = |h, h_kv, d| Attention::new(f32s([2, h, 5, d]), f32s([2, h_kv, 7, d]), f32s([2, h_kv, 7, d]));
    rejects!(of(4, 2, 0).validate(), Error::ZeroDimension { .. }, "q: head_dim is 0, it must be at least 1");
    rejects!(of(0, 2, 8).validate(), Error::ZeroDimension { .. }, "q: heads is 0, it must be at least 1");
    rejects!(of(4, 0, 8).validate(), Error::ZeroDimension { .. }, "k: heads is 0, it must be at least 1");
}

#[test]
fn head_dim_over_256() {
    let of = |d| Attention::new(f32s([1, 1, 2, d]), f32s([1, 1, 3, d]), f32s([1, 1, 3, d])).validate();
    of(256).unwrap();
    rejects!(of(257), Error::HeadDim { got: 257, max: 256 }, "head_dim: 257, expected 1 to 256");
}

#[test]
fn heads_that_do_not_divide() {
    let a = Attention::new(f32s([1, 4, 2, 8]), f32s([1, 3, 3, 8]), f32s([1, 3, 3, 8]));
    rejects!(
        a.validate(),
        Error::GroupedHeads { query_heads: 4, kv_heads: 3 },
        "q: 4 heads, expected a multiple of the 3 key/value heads"
    );
    let a = Attention::new(f32s([1, 2, 2, 8]), f32s([1, 4, 3, 8]), f32s([1, 4, 3, 8]));
    rejects!(
        a.validate(),
        Error::GroupedHeads { .. },
        "q: 2 heads, expected a multiple of the 4 key/value heads"
    );
}

#[test]
fn ranks() {
    for rank in [0, 65] {
        let message = |argument: &str| format!("{argument}: rank {rank}, expected 1 to 64");
        let key = with_key(VirtualKey::Residual(adapter(rank)));
        rejects!(key.validate(), Error::Rank { .. }, message("key.down_weight"));
        for value in [
            VirtualValue::Residual(adapter(rank)),
            VirtualValue::Direct(adapter(rank)),
            VirtualValue::Extended(down(rank)),
        ] {
            rejects!(with_value(value).validate(), Error::Rank { .. }, message("value.down_weight"));
        }
        let config =
            |key, value| InducerConfig { key, value, activation: Activation::Tanh, adaptive_length: false };
        let key = config(KeyConfig::Residual { rank }, ValueConfig::Zero);
        rejects!(key.validate(), Error::Rank { .. }, message("key.rank"));
        let value = config(KeyConfig::Query, ValueConfig::Extended { rank, shared: true });
        rejects!(value.validate(), Error::Rank { .. }, message("value.rank"));
    }
    let mut mismatched = adapter(3);
    mismatched.up_weight = f32s([4, 2, 8]);
    rejects!(
        with_key(VirtualKey::Residual(mismatched)).validate(),
        Error::Shape { .. },
        "key.up_weight: shape [4, 2, 8], expected [Hq, r, d] = [4, 3, 8]"
    );
    let mut mismatched = adapter(3);
    mismatched.down_bias = f32s([4, 4]);
    rejects!(
        with_value(VirtualValue::Direct(mismatched)).validate(),
        Error::Shape { .. },
        "value.down_bias: shape [4, 4], expected [Hq, r] = [4, 3]"
    );
    let mut mismatched = adapter(3);
    mismatched.up_bias = f32s([2, 8]);
    rejects!(
        with_value(VirtualValue::Residual(mismatched)).validate(),
        Error::Shape { .. },
        "value.up_bias: shape [2, 8], expected [Hq, d] = [4, 8]"
    );
}

#[test]
fn dtype_mixtures() {
    let mut a = base();
    a.k = bf16s([2, 2, 7, 8]);
    rejects!(a.validate(), Error::DType { .. }, "k: dtype bf16, expected f32, that of q");
    let mut a = base();
    a.v = TensorRef::new(&F16, [2, 2, 7, 8]).unwrap();
    rejects!(a.validate(), Error::DType { .. }, "v: dtype f16, expected f32, that of q");
    let mut a = base();
    a.prefix = Some(Prefix { k: f32s([2, 6, 8]), v: bf16s([2, 6, 8]) });
    rejects!(a.validate(), Error::DType { .. }, "prefix.v: dtype bf16, expected f32, that of q");
    let mut half = adapter(3);
    half.down_weight = bf16s([4, 8, 3]);
    rejects!(
        with_key(VirtualKey::Residual(half)).validate(),
        Error::DType { .. },
        "key.down_weight: dtype bf16, expected f32, that of q, or f32"
    );
    let mut half = adapter(3);
    half.up_weight = bf16s([4, 3, 8]);
    rejects!(
        with_value(VirtualValue::Direct(half)).validate(),
        Error::DType { .. },
        "value.up_weight: dtype bf16, expected f32, that of the down weight"
    );
    let logit = VirtualKey::LogitPerHead(TensorRef::new(&F16, [4]).unwrap());
    rejects!(
        with_key(logit).validate(),
        Error::DType { .. },
        "key.logit: dtype f16, expected f32, that of q, or f32"
    );
    let problem = base().validate().unwrap();
    rejects!(
        problem.forward(Outputs::new(fresh_bf16([2, 4, 5, 8]))),
        Error::DType { .. },
        "o: dtype bf16, expected f32, as the problem requires"
    );
    let half = Attention::new(bf16s([2, 4, 5, 8]), bf16s([2, 2, 7, 8]), bf16s([2, 2, 7, 8]));
    let problem = half.validate().unwrap();
    rejects!(
        problem.forward(Outputs::with_lse(fresh_bf16([2, 4, 5, 8]), fresh_bf16([2, 4, 5]))),
        Error::DType { .. },
        "lse: dtype bf16, expected f32, as the problem requires"
    );
}

#[test]
fn last_dimension_not_contiguous() {
    let strided = TensorRef::strided(&F32, [2, 4, 5, 8], [640, 160, 16, 2]).unwrap();
    let message = |name: &str, stride: usize| {
        format!("{name}: the last dimension has stride {stride}, it must be contiguous (stride 1)")
    };
    let mut a = base();
    a.q = strided;
    rejects!(a.validate(), Error::LastDimensionStrided { stride: 2, .. }, message("q", 2));
    let mut a = base();
    a.v = TensorRef::strided(&F32, [2, 2, 7, 8], [112, 56, 8, 0]).unwrap();
    rejects!(a.validate(), Error::LastDimensionStrided { stride: 0, .. }, message("v", 0));
    let mut a = adapter(3);
    a.up_weight = f32s([4, 8, 3]).permute([0, 2, 1]).unwrap();
    let a = with_key(VirtualKey::Residual(a));
    rejects!(a.validate(), Error::LastDimensionStrided { .. }, message("key.up_weight", 3));
    let problem = base().validate().unwrap();
    let o = fresh([2, 4, 8, 5]).permute([0, 1, 3, 2]).unwrap();
    rejects!(problem.forward(Outputs::new(o)), Error::LastDimensionStrided { .. }, message("o", 5));
    // One element is contiguous whatever its stride.
    let a = TensorRef::strided(&F32, [1, 1, 5, 1], [9, 9, 9, 9]).unwrap();
    Attention::new(a, a, a).validate().unwrap();
}

#[test]
fn cu_seqlens() {
    let rejected = |q, k| packed(q, k).validate();
    rejects!(
        rejected(&[0, 3, 2, 5], &[0, 3, 5, 7]),
        Error::CuSeqlens { argument: "cu_seqlens_q", index: 2, value: 2, .. },
        "cu_seqlens_q[2]: 2, expected at least the entry before it, 3"
    );
    rejects!(
        rejected(&[0, 3, 5], &[0, 3, 8]),
        Error::CuSeqlens { .. },
        "cu_seqlens_k[2]: 8, expected at most the 7 packed rows"
    );
    rejects!(rejected(&[1, 3], &[0, 7]), Error::CuSeqlens { .. }, "cu_seqlens_q[0]: 1, expected 0");
    rejects!(rejected(&[0, 3], &[-1, 7]), Error::CuSeqlens { .. }, "cu_seqlens_k[0]: -1, expected 0");
    rejects!(rejected(&[], &[0]), Error::Count { .. }, "cu_seqlens_q: 0 entries, expected at least 1");
    rejects!(
        rejected(&[0, 2, 5], &[0, 7]),
        Error::Count { .. },
        "cu_seqlens_k: 2 entries, expected len(cu_seqlens_q) = 3"
    );
    rejects!(
        rejected(&[0, i32::MAX], &[0, 7]),
        Error::CuSeqlens { .. },
        "cu_seqlens_q[1]: 2147483647, expected at most the 5 packed rows"
    );
}

#[test]
fn lengths() {
    let padded = |query_lengths, key_lengths, key_starts| {
        Attention { lengths: Lengths::Padded { query_lengths, key_lengths, key_starts }, ..base() }.validate()
    };
    rejects!(
        padded(None, Some(&[7, 8]), None),
        Error::Length { argument: "key_lengths", index: 1, value: 8, .. },
        "key_lengths[1]: 8, expected 0 to M = 7"
    );
    rejects!(
        padded(Some(&[-1, 5]), None, None),
        Error::Length { .. },
        "query_lengths[0]: -1, expected 0 to N = 5"
    );
    rejects!(
        padded(None, None, Some(&[0, 9])),
        Error::Length { .. },
        "key_starts[1]: 9, expected 0 to M = 7"
    );
    rejects!(padded(None, Some(&[7]), None), Error::Count { .. }, "key_lengths: 1 entries, expected B = 2");
    rejects!(padded(Some(&[]), None, None), Error::Count { .. }, "query_lengths: 0 entries, expected B = 2");

    let positions = |positions| {
        let inducer = Inducer::new(VirtualKey::Query, VirtualValue::Zero);
        let inducer = Inducer { adaptive_length: true, positions: Some(positions), ..inducer };
        Attention { inducer: Some(inducer), ..base() }.validate()
    };
    rejects!(positions(&[1; 9]), Error::Count { .. }, "positions: 9 entries, expected B*N = 10");
    rejects!(
        positions(&[1, 2, 3, 4, 5, 1, 2, 3, 4, -5]),
        Error::Length { .. },
        "positions[9]: -5, expected 0 or more"
    );
}

#[test]
fn settings() {
    let rejected = |config| Attention { config, ..base() }.validate();
    let default = AttentionConfig::default();
    for (value, shown) in [(f32::NAN, "NaN"), (f32::INFINITY, "inf"), (f32::NEG_INFINITY, "-inf")] {
        rejects!(
            rejected(AttentionConfig { softmax_scale: Some(value), ..default }),
            Error::Setting { argument: "softmax_scale", .. },
            format!("softmax_scale: {shown}, expected a finite number")
        );
        rejects!(
            rejected(AttentionConfig { softcap: Some(value), ..default }),
            Error::Setting { argument: "softcap", .. },
            format!("softcap: {shown}, expected a finite number over 0, or none")
        );
    }
    for value in [0.0, -3.0] {
        rejects!(
            rejected(AttentionConfig { softcap: Some(value), ..default }),
            Error::Setting { argument: "softcap", .. },
            format!("softcap: {value}, expected a finite number over 0, or none")
        );
    }
    rejects!(
        rejected(AttentionConfig { window_left: Some(-1), ..default }),
        Error::NegativeWindow { argument: "window_left", value: -1 },
        "window_left: -1, expected 0 or more, or none for no limit"
    );
    rejects!(
        rejected(AttentionConfig { window_right: Some(i64::MIN), ..default }),
        Error::NegativeWindow { argument: "window_right", .. },
        "window_right: -9223372036854775808, expected 0 or more, or none for no limit"
    );
    for (p, shown) in [(1.0, "1"), (-0.1, "-0.1"), (f32::NAN, "NaN"), (f32::INFINITY, "inf")] {
        rejects!(
            rejected(AttentionConfig { dropout: Some(Dropout { p, seed: 0 }), ..default }),
            Error::Dropout { .. },
            format!("dropout.p: {shown}, expected 0 <= p < 1")
        );
    }
    let slopes = |slopes| Attention { alibi_slopes: Some(slopes), ..base() }.validate();
    rejects!(slopes(&[0.5; 5]), Error::Count { .. }, "alibi_slopes: 5 entries, expected Hq = 4 or B*Hq = 8");
    rejects!(
        slopes(&[0.5, 0.5, f32::NAN, 0.5]),
        Error::Setting { .. },
        "alibi_slopes: NaN, expected finite numbers"
    );
}

#[test]
fn settings_without_use() {
    let inducer = Inducer::new(VirtualKey::LogitPerHead(f32s([4])), VirtualValue::Zero);
    let a = Attention { inducer: Some(Inducer { adaptive_length: true, ..inducer }), ..base() };
    rejects!(
        a.validate(),
        Error::Unexpected { .. },
        "adaptive_length: given, but a given logit is taken as it is"
    );
    let inducer =
        Inducer { positions: Some(&[1; 10]), ..Inducer::new(VirtualKey::Query, VirtualValue::Zero) };
    let a = Attention { inducer: Some(inducer), ..base() };
    rejects!(a.validate(), Error::Unexpected { .. }, "positions: given, but only adaptive_length uses them");
}

#[test]
fn sizes_that_overflow() {
    let huge = usize::MAX / 2;
    rejects!(
        TensorRef::new(&F32, [huge, 3, 5, 8]),
        Error::SizeOverflow { .. },
        format!(
            "tensor: sizes [{huge}, 3, 5, 8] overflow; the view's size in bytes must fit the address type"
        )
    );
    rejects!(
        TensorRef::strided(&F32, [2, 2], [usize::MAX, 1]),
        Error::SizeOverflow { .. },
        "tensor: sizes [2, 2] overflow; the view's size in bytes must fit the address type"
    );
    rejects!(
        TensorRef::split_packed_qkv(&F32, [1, 1], 1, huge + 1, 1),
        Error::SizeOverflow { argument: "qkv", .. },
        format!("qkv: sizes [1, {0}, {0}] overflow; the number of heads must fit the address type", huge + 1)
    );
    rejects!(
        TensorMut::split_attn_u(vec![0f32; 8].leak(), [1, 1], huge, 3, 1),
        Error::SizeOverflow { argument: "attn_u", .. },
        format!(
            "attn_u: sizes [1, 1, {huge}, 3, 1] overflow; the number of elements must fit the address type"
        )
    );
    // A stride of 0 makes any number of rows out of one; more than 31 bits count is too many all the same.
    let rows = 1usize << 31;
    let many = TensorRef::strided(&F32, [1, 1, rows, 8], [0, 0, 0, 1]).unwrap();
    rejects!(
        Attention::new(many, f32s([1, 1, 3, 8]), f32s([1, 1, 3, 8])).validate(),
        Error::SizeOverflow { argument: "q", .. },
        "q: sizes [2147483648] overflow; rows and keys must be fewer than 2^31"
    );
    rejects!(
        Attention::new(f32s([1, 1, 3, 8]), many, many).validate(),
        Error::SizeOverflow { argument: "k", .. },
        "k: sizes [2147483648] overflow; rows and keys must be fewer than 2^31"
    );
    let batch = 1usize << 30;
    let many = TensorRef::strided(&F32, [batch, 4, 1, 1], [0, 0, 0, 1]).unwrap();
    rejects!(
        Attention::new(many, many, many).validate(),
        Error::SizeOverflow { argument: "q", .. },
        "q: sizes [1073741824, 4] overflow; batch entries times query heads must be fewer than 2^32"
    );
    let many = TensorRef::strided(&F32, [2, rows, 8], [0, 0, 1]).unwrap();
    rejects!(
        Attention { prefix: Some(Prefix { k: many, v: many }), ..base() }.validate(),
        Error::SizeOverflow { argument: "prefix.k", .. },
        "prefix.k: sizes [2147483648] overflow; prefix tokens must be fewer than 2^31"
    );
}

#[test]
fn views_of_buffers() {
    rejects!(
        TensorRef::new(&F32[..10], [3, 4]),
        Error::BufferTooSmall { .. },
        "tensor: shape [3, 4] with strides [4, 1] needs 12 elements, the buffer holds 10"
    );
    rejects!(
        TensorMut::strided(vec![0f32; 64].leak(), [4, 3], [2, 1]),
        Error::SelfOverlap { .. },
        "tensor: shape [4, 3] with strides [2, 1] maps two elements to one place"
    );
    rejects!(
        f32s([3, 4]).narrow(1, 2, 5),
        Error::OutOfRange { .. },
        "narrow: range 2..5 of dimension 1, which has 4 entries"
    );
    rejects!(
        f32s([3, 4]).permute([0, 0]),
        Error::Shape { .. },
        "order: shape [0, 0], expected a permutation of 0..2"
    );
}

#[test]
fn overlapping_mutable_views() {
    let message =
        |a: &str, b: &str| format!("{a}: overlaps {b}; an output must share no element with another view");
    let buffer = vec![0f32; 1000].leak();
    let ptr = buffer.as_mut_ptr().cast::<u8>();
    let view = |offset: usize| {
        // SAFETY: inside the buffer; nothing is read or written through the views.
        unsafe { TensorMut::from_raw_parts(ptr.add(4 * offset), DType::F32, [2, 4, 5, 8], [160, 40, 8, 1]) }
            .unwrap()
    };
    let lse = |offset: usize| {
        // SAFETY: as above.
        unsafe { TensorMut::from_raw_parts(ptr.add(4 * offset), DType::F32, [2, 4, 5], [20, 5, 1]) }.unwrap()
    };
    let problem = base().validate().unwrap();
    problem.forward(Outputs::with_lse(view(0), lse(320))).unwrap();
    rejects!(
        problem.forward(Outputs::with_lse(view(0), lse(319))),
        Error::Overlap { argument: "lse", other: "o" },
        message("lse", "o")
    );
    let outputs = Outputs { attn: Some(view(7)), ..Outputs::new(view(0)) };
    rejects!(problem.forward(outputs), Error::Overlap { .. }, message("attn", "o"));

    // An output over an input, and a gradient over what the backward reads.
    // SAFETY: as above.
    let q = unsafe { TensorRef::from_raw_parts(ptr, DType::F32, [2, 4, 5, 8], [160, 40, 8, 1]) }.unwrap();
    let over = Attention { q, ..base() };
    let over = over.validate().unwrap();
    rejects!(over.forward(Outputs::new(view(319))), Error::Overlap { .. }, message("o", "q"));
    over.forward(Outputs::new(view(320))).unwrap();
    let all = Gradients { d_q: view(300), ..gradients() };
    rejects!(over.backward(saved(), upstream(), all), Error::Overlap { .. }, message("d_q", "q"));
    let all = Gradients { d_q: view(0), ..gradients() };
    let from = Upstream::new(q);
    rejects!(problem.backward(saved(), from, all), Error::Overlap { .. }, message("d_q", "d_o"));
    // SAFETY: as above.
    let short = |offset: usize| unsafe {
        TensorMut::from_raw_parts(ptr.add(4 * offset), DType::F32, [2, 2, 7, 8], [112, 56, 8, 1]).unwrap()
    };
    let all = Gradients::new(fresh([2, 4, 5, 8]), short(0), short(223));
    rejects!(problem.backward(saved(), upstream(), all), Error::Overlap { .. }, message("d_v", "d_k"));
    // What does not touch is fine, interleaved as it may be.
    let [d_q, d_k, d_v] =
        TensorMut::split_packed_qkv(vec![0f32; 2 * 5 * 8 * 8].leak(), [2, 5], 4, 2, 8).unwrap();
    let square = Attention { k: f32s([2, 2, 5, 8]), v: f32s([2, 2, 5, 8]), ..base() };
    let square = square.validate().unwrap();
    square.backward(saved(), upstream(), Gradients::new(d_q, d_k, d_v)).unwrap();
}

#[test]
fn results_of_the_forward() {
    let problem = base().validate().unwrap();
    rejects!(
        problem.forward(Outputs::new(fresh([2, 4, 7, 8]))),
        Error::Shape { .. },
        "o: shape [2, 4, 7, 8], expected [B, Hq, N, d] = [2, 4, 5, 8]"
    );
    rejects!(
        problem.forward(Outputs::with_lse(fresh([2, 4, 5, 8]), fresh([2, 5, 4]))),
        Error::Shape { .. },
        "lse: shape [2, 5, 4], expected [B, Hq, N] = [2, 4, 5]"
    );
    let outputs = Outputs { u: Some(fresh([2, 4, 5, 3])), ..Outputs::new(fresh([2, 4, 5, 8])) };
    rejects!(
        problem.forward(outputs),
        Error::Unexpected { .. },
        "u: given, but only the extended value returns U"
    );
    let problem = extended();
    rejects!(
        problem.forward(Outputs::new(fresh([2, 4, 5, 8]))),
        Error::Missing { .. },
        "u: missing; the extended value returns U"
    );
    let outputs = Outputs { u: Some(fresh([2, 4, 5, 4])), ..Outputs::new(fresh([2, 4, 5, 8])) };
    rejects!(
        problem.forward(outputs),
        Error::Shape { .. },
        "u: shape [2, 4, 5, 4], expected [B, Hq, N, r_v] = [2, 4, 5, 3]"
    );
}

#[test]
fn what_the_backward_reads_and_writes() {
    let problem = base().validate().unwrap();
    let bad = Saved { output: SavedOutput::Output(f32s([2, 4, 7, 8])), ..saved() };
    rejects!(
        problem.backward(bad, upstream(), gradients()),
        Error::Shape { .. },
        "saved.o: shape [2, 4, 7, 8], expected [B, Hq, N, d] = [2, 4, 5, 8]"
    );
    let bad = Saved { output: SavedOutput::Attention(bf16s([2, 4, 5, 8])), ..saved() };
    rejects!(
        problem.backward(bad, upstream(), gradients()),
        Error::DType { .. },
        "saved.attn: dtype bf16, expected f32, as the problem requires"
    );
    let bad = Saved { lse: f32s([2, 4, 6]), ..saved() };
    rejects!(
        problem.backward(bad, upstream(), gradients()),
        Error::Shape { .. },
        "saved.lse: shape [2, 4, 6], expected [B, Hq, N] = [2, 4, 5]"
    );
    let bad = Upstream { d_lse: Some(f32s([2, 4, 8])), ..upstream() };
    rejects!(
        problem.backward(saved(), bad, gradients()),
        Error::Shape { .. },
        "d_lse: shape [2, 4, 8], expected [B, Hq, N] = [2, 4, 5]"
    );
    let bad = Upstream { d_u: Some(f32s([2, 4, 5, 3])), ..upstream() };
    rejects!(
        problem.backward(saved(), bad, gradients()),
        Error::Unexpected { .. },
        "d_u: given, but only the extended value has U"
    );
    let bad = Gradients { d_k: fresh([2, 4, 7, 8]), ..gradients() };
    rejects!(
        problem.backward(saved(), upstream(), bad),
        Error::Shape { .. },
        "d_k: shape [2, 4, 7, 8], expected [B, Hkv, M, d] = [2, 2, 7, 8]"
    );
    let prefix = PrefixGradients { k: fresh([2, 6, 8]), v: fresh([2, 6, 8]) };
    let bad = Gradients { prefix: Some(prefix), ..gradients() };
    rejects!(
        problem.backward(saved(), upstream(), bad),
        Error::Unexpected { .. },
        "prefix gradients: given, but there is no prefix"
    );
    let bad = Gradients { key: KeyGradients::LogitPerHead(fresh([4])), ..gradients() };
    rejects!(
        problem.backward(saved(), upstream(), bad),
        Error::Unexpected { .. },
        "key gradients: given, but they are not those of this problem's virtual key"
    );
    let all = |rank| AdapterGradients {
        down_weight: fresh([4, 8, rank]),
        down_bias: fresh([4, rank]),
        up_weight: fresh([4, rank, 8]),
        up_bias: fresh([4, 8]),
    };
    let bad = Gradients { value: ValueGradients::Adapter(all(3)), ..gradients() };
    rejects!(
        extended().backward(saved(), upstream(), bad),
        Error::Unexpected { .. },
        "value gradients: given, but they are not those of this problem's virtual value"
    );
    let problem = with_value(VirtualValue::Residual(adapter(3))).validate().unwrap();
    let bad = Gradients { value: ValueGradients::Adapter(all(2)), ..gradients() };
    rejects!(
        problem.backward(saved(), upstream(), bad),
        Error::Shape { .. },
        "d_value.down_weight: shape [4, 8, 2], expected [Hq, d, r] = [4, 8, 3]"
    );
    let bad = AdapterGradients { up_bias: fresh_bf16([4, 8]), ..all(3) };
    let bad = Gradients { value: ValueGradients::Adapter(bad), ..gradients() };
    rejects!(
        problem.backward(saved(), upstream(), bad),
        Error::DType { .. },
        "d_value.up_bias: dtype bf16, expected f32, as the problem requires"
    );
}
