//! Every mistake that C can make and Rust's types exclude: a message that names the argument, and nothing written.

mod common;

use std::ptr;

use common::{Adapter, Tensor, Zeroed, last_error};
use inducer_attention_c::call::{AttentionCall, GradientTensors, OutputTensors};
use inducer_attention_c::tensor::{DLDevice, DLTensor};
use inducer_attention_c::{Status, ia_backward, ia_forward, ia_forward_workspace, ia_set_threads};

const H: usize = 2;
const N: usize = 3;
const D: usize = 4;

struct World {
    q: Tensor<f32>,
    k: Tensor<f32>,
    v: Tensor<f32>,
    o: Tensor<f32>,
    lse: Tensor<f32>,
    list: Tensor<i32>,
    adapter: Adapter<f32>,
    logit: Tensor<f32>,
}

fn world() -> World {
    World {
        q: Tensor::noise(1, &[1, H, N, D]),
        k: Tensor::noise(2, &[1, H, N, D]),
        v: Tensor::noise(3, &[1, H, N, D]),
        o: Tensor::room(&[1, H, N, D]),
        lse: Tensor::room(&[1, H, N]),
        list: Tensor::new(vec![2], &[1]),
        adapter: Adapter::noise(4, [H, D, 1]),
        logit: Tensor::noise(5, &[H]),
    }
}

impl World {
    fn call(&self) -> AttentionCall {
        AttentionCall { q: self.q.ptr(), k: self.k.ptr(), v: self.v.ptr(), ..AttentionCall::zeroed() }
    }

    fn outputs(&self) -> OutputTensors {
        OutputTensors { o: self.o.ptr(), lse: self.lse.ptr(), ..OutputTensors::zeroed() }
    }

    fn gradients(&self) -> GradientTensors {
        GradientTensors {
            o: self.o.ptr(),
            lse: self.lse.ptr(),
            d_o: self.o.ptr(),
            ..GradientTensors::zeroed()
        }
    }

    /// The forward must say this and leave O alone.
    fn forward_says(&self, call: &AttentionCall, outputs: &OutputTensors, message: &str) {
        // SAFETY: all tensors live; what is wrong with them is what the library must find.
        let status = unsafe { ia_forward(call, outputs, ptr::null_mut()) };
        assert_eq!((status, last_error().as_str()), (Status::Invalid, message));
        assert!(self.o.data.iter().all(|&x| x.to_bits() == 99f32.to_bits()), "O was written");
    }

    fn says(&self, change: impl FnOnce(&mut AttentionCall), message: &str) {
        let mut call = self.call();
        change(&mut call);
        self.forward_says(&call, &self.outputs(), message);
    }

    /// The forward with another DLTensor for K.
    fn k_says(&self, change: impl FnOnce(&mut DLTensor), message: &str) {
        let mut k = Tensor::<f32>::noise(2, &[1, H, N, D]);
        change(&mut k.dl);
        self.says(|call| call.k = k.ptr(), message);
    }
}

#[test]
fn structs_and_pointers() {
    let w = world();
    let (call, outputs) = (w.call(), w.outputs());
    // SAFETY: null is allowed everywhere.
    let status = unsafe { ia_forward(ptr::null(), &raw const outputs, ptr::null_mut()) };
    assert_eq!((status, last_error().as_str()), (Status::Invalid, "attention: null"));
    // SAFETY: as above.
    let status = unsafe { ia_forward(&raw const call, ptr::null(), ptr::null_mut()) };
    assert_eq!((status, last_error().as_str()), (Status::Invalid, "outputs: null"));
    // SAFETY: as above.
    let status = unsafe { ia_forward_workspace(&raw const call, ptr::null_mut()) };
    assert_eq!((status, last_error().as_str()), (Status::Invalid, "bytes: null"));
    w.says(|c| c.q = ptr::null(), "q: null");
    let size = size_of::<AttentionCall>();
    w.says(
        |c| c.struct_size = 8,
        &format!("attention.struct_size: 8, expected {size}; is the header that of this library?"),
    );
    w.forward_says(&w.call(), &OutputTensors { o: ptr::null(), ..w.outputs() }, "o: null");
}

#[test]
fn tensors() {
    let w = world();
    w.k_says(|k| k.data = ptr::null_mut(), "k: null");
    w.k_says(|k| k.shape = ptr::null_mut(), "k: null");
    w.k_says(|k| k.ndim = 3, "k: 3 dimensions, expected 4");
    w.k_says(
        |k| k.device.device_type = 2,
        "k: on CUDA device 0, expected the host (DLPack's types 1 and 3); ia_cuda_forward and ia_cuda_backward take tensors of CUDA \
         devices",
    );
    w.k_says(
        |k| k.device = DLDevice { device_type: 10, device_id: 1 },
        "k: on a device of DLPack's type 10, number 1, expected the host (DLPack's types 1 and 3); ia_cuda_forward and \
         ia_cuda_backward take tensors of CUDA devices",
    );
    w.k_says(
        |k| k.dtype.bits = 64,
        "k: DLPack's type code 2, 64 bits, 1 lanes, expected float 32, float 16 or bfloat 16",
    );
    w.k_says(
        |k| k.dtype.lanes = 4,
        "k: DLPack's type code 2, 32 bits, 4 lanes, expected float 32, float 16 or bfloat 16",
    );
    w.k_says(|k| (k.dtype.code, k.dtype.bits) = (4, 16), "k: dtype bf16, expected f32, that of q");
    let mut negative = [1, -1, 3, 4];
    w.k_says(
        |k| k.shape = negative.as_mut_ptr(),
        "k: sizes and strides [1, -1, 3, 4], expected none below 0",
    );
    let mut strided = [24, 12, 4, 2];
    w.k_says(
        |k| k.strides = strided.as_mut_ptr(),
        "k: the last dimension has stride 2, it must be contiguous (stride 1)",
    );
    let mut huge = [1, i64::MAX, i64::MAX, 4];
    let mut k = Tensor::<f32>::noise(2, &[1, H, N, D]);
    k.dl.shape = huge.as_mut_ptr();
    let mut call = w.call();
    call.k = k.ptr();
    // SAFETY: the sizes overflow, so that nothing may be read.
    let status = unsafe { ia_forward(&raw const call, &w.outputs(), ptr::null_mut()) };
    assert_eq!(status, Status::Invalid);
    assert!(last_error().starts_with("k: tensor: sizes "), "{}", last_error());
    let mut k = Tensor::<f32>::noise(2, &[1, H, N, D]);
    k.dl.byte_offset = 2;
    let address = k.data.as_ptr().addr() + 2;
    w.says(|call| call.k = k.ptr(), &format!("k: address {address:#x}, expected a multiple of 4"));
    w.forward_says(
        &w.call(),
        &OutputTensors { o: w.q.ptr(), ..w.outputs() },
        "o: overlaps q; an output must share no element with another view",
    );
}

#[test]
fn numbers() {
    let w = world();
    w.says(|c| c.options = 128, "options: 128, expected bits of IA_ALL_OPTIONS");
    w.says(|c| (c.key, c.logit) = (5, w.logit.ptr()), "key: 5, expected IA_KEY_..., 0 to 4");
    w.says(|c| c.value = 99, "value: 99, expected IA_VALUE_..., 0 to 3");
    w.says(|c| (c.dropout_p, c.options) = (2.0, 32), "dropout_p: 2, expected 0 <= p < 1");
    w.says(|c| (c.key, c.value) = (1, 4), "value: 4, expected IA_VALUE_..., 0 to 3");
    w.says(
        |c| (c.key, c.key_activation) = (1, 2),
        "key_activation: 2, expected IA_TANH (0) or IA_IDENTITY (1)",
    );
    w.says(
        |c| (c.window_left, c.options) = (-1, 4),
        "window_left: -1, expected 0 or more, or none for no limit",
    );
    // Without its bit a field counts for nothing.
    let mut bytes = 0;
    let call = AttentionCall { window_left: -1, softcap: -1.0, dropout_p: 7.0, ..w.call() };
    // SAFETY: all tensors live.
    let status = unsafe { ia_forward_workspace(&raw const call, &raw mut bytes) };
    assert_eq!(status, Status::Ok, "{}", last_error());
}

#[test]
fn what_does_not_go_together() {
    let w = world();
    let positions = Tensor::<i32>::new(vec![1; N], &[1, N]);
    w.says(|c| c.logit = w.logit.ptr(), "logit: given, but the key of this kind has none");
    w.says(|c| c.key_adapter = w.adapter.tensors(), "key_adapter: given, but the key of this kind has none");
    w.says(
        |c| (c.key, c.value_adapter) = (1, w.adapter.tensors()),
        "value_adapter: given, but there is no virtual value with an adapter",
    );
    w.says(|c| c.value = 1, "value: given, but key is IA_KEY_NONE: there is no virtual token");
    w.says(
        |c| c.options = 64,
        "IA_ADAPTIVE_LENGTH: given, but key is IA_KEY_NONE: there is no virtual token",
    );
    w.says(
        |c| c.positions = positions.ptr(),
        "positions: given, but key is IA_KEY_NONE: there is no virtual token",
    );
    w.says(|c| c.key = 2, "key_adapter.down_weight: null");
    w.says(|c| (c.key, c.key_adapter) = (2, w.adapter.down()), "key_adapter.up_weight: null");
    w.says(
        |c| (c.key, c.value, c.value_adapter) = (1, 3, w.adapter.tensors()),
        "value_adapter.up_weight: given, but the extended value's up projection is the caller's",
    );
    w.says(|c| c.prefix_k = w.k.ptr(), "prefix_k: 4 dimensions, expected 3");
    w.says(|c| c.cu_seqlens_q = w.list.ptr(), "cu_seqlens_k: null");
    w.says(
        |c| (c.cu_seqlens_q, c.key_lengths) = (w.list.ptr(), w.list.ptr()),
        "key_lengths: given, but packed sequences have cu_seqlens instead",
    );
    w.says(
        |c| c.key_lengths = w.logit.ptr(),
        "key_lengths: DLPack's type code 2, 32 bits, 1 lanes, expected int 32",
    );
    let mut apart = [2];
    let mut list = Tensor::<i32>::new(vec![1, 2, 3], &[2]);
    list.dl.strides = apart.as_mut_ptr();
    w.says(|c| c.key_starts = list.ptr(), "key_starts: expected a contiguous list");
}

#[test]
fn the_backward() {
    let w = world();
    let [d_q, d_k, d_v] = [0; 3].map(|_| Tensor::<f32>::room(&[1, H, N, D]));
    let says = |change: &dyn Fn(&mut GradientTensors), message: &str| {
        let mut gradients =
            GradientTensors { d_q: d_q.ptr(), d_k: d_k.ptr(), d_v: d_v.ptr(), ..w.gradients() };
        change(&mut gradients);
        let call = w.call();
        // SAFETY: all tensors live.
        let status = unsafe { ia_backward(&raw const call, &raw const gradients, ptr::null_mut()) };
        assert_eq!((status, last_error().as_str()), (Status::Invalid, message));
        assert!(d_q.data.iter().all(|&x| x.to_bits() == 99f32.to_bits()), "dQ was written");
    };
    says(&|g| g.o = ptr::null(), "o: null");
    says(
        &|g| g.attn = w.o.ptr(),
        "attn: given, but one of o and attn is enough, and decides how D' is formed",
    );
    says(&|g| g.lse = ptr::null(), "lse: null");
    says(&|g| g.d_v = ptr::null(), "d_v: null");
    says(&|g| g.d_logit = w.logit.ptr(), "d_logit: given, but the key of this kind has none");
    says(
        &|g| g.d_key_adapter = w.adapter.tensors(),
        "d_key_adapter: given, but the key of this kind has none",
    );
    says(
        &|g| g.d_value_adapter = w.adapter.tensors(),
        "d_value_adapter: given, but there is no virtual value with an adapter",
    );
    says(&|g| g.d_prefix_k = w.k.ptr(), "d_prefix_k: 4 dimensions, expected 3");
}

#[test]
fn empty_tensors_may_be_null() {
    let mut q = Tensor::<f32>::new(Vec::new(), &[0, H, N, D]);
    q.dl.data = ptr::null_mut();
    let w = world();
    let call = AttentionCall { q: q.ptr(), k: q.ptr(), v: q.ptr(), ..w.call() };
    let mut lse = Tensor::<f32>::new(Vec::new(), &[0, H, N]);
    lse.dl.data = ptr::null_mut();
    let outputs = OutputTensors { o: q.ptr(), lse: lse.ptr(), ..OutputTensors::zeroed() };
    // SAFETY: there is nothing to read or write.
    let status = unsafe { ia_forward(&raw const call, &raw const outputs, ptr::null_mut()) };
    assert_eq!(status, Status::Ok, "{}", last_error());
}

#[test]
fn messages_are_of_the_thread_that_made_the_mistake() {
    let w = world();
    w.says(|c| c.q = ptr::null(), "q: null");
    std::thread::spawn(|| assert_eq!(last_error(), "")).join().expect("the other thread");
    assert_eq!(last_error(), "q: null");
}

#[test]
fn threads_are_set_before_the_first_call_or_never() {
    for (threads, message) in [(0, "0"), (usize::MAX, "18446744073709551615")] {
        assert_eq!(ia_set_threads(threads), Status::Invalid);
        assert_eq!(last_error(), format!("threads: {message}, expected 1 to 4096"));
    }
    // Another test may have come first; the second is refused in any case.
    let first = ia_set_threads(1);
    let second = ia_set_threads(1);
    assert_eq!(second, Status::Invalid);
    assert_eq!(last_error(), "threads: already set, or started by a call");
    assert!(first == Status::Ok || first == Status::Invalid);
}

#[test]
fn an_output_over_a_list() {
    let w = world();
    let mut list = Tensor::<i32>::new(vec![2; 64], &[1]);
    list.data[0] = 2;
    // O over the memory of the list.
    let mut o = Tensor::<f32>::room(&[1, H, N, D]);
    o.dl.data = list.data.as_mut_ptr().cast();
    let over = |change: &dyn Fn(&mut AttentionCall), name: &str| {
        let mut call = w.call();
        change(&mut call);
        let message = format!("o: overlaps {name}; an output must share no element with another view");
        w.forward_says(&call, &OutputTensors { o: o.ptr(), ..w.outputs() }, &message);
        assert_eq!(list.data[0], 2, "the list was written");
    };
    over(&|c| c.query_lengths = list.ptr(), "query_lengths");
    over(&|c| c.key_lengths = list.ptr(), "key_lengths");
    over(&|c| c.key_starts = list.ptr(), "key_starts");
    let mut bounds = Tensor::<i32>::new(vec![0, 2], &[2]);
    let mut o = Tensor::<f32>::room(&[1, H, N, D]);
    bounds.data.resize(64, 0);
    bounds.dl.data = bounds.data.as_mut_ptr().cast();
    o.dl.data = bounds.dl.data;
    for (name, other) in [("cu_seqlens_q", true), ("cu_seqlens_k", false)] {
        let fine = Tensor::<i32>::new(vec![0, 2], &[2]);
        let (q, k) = if other { (&bounds, &fine) } else { (&fine, &bounds) };
        let call = AttentionCall { cu_seqlens_q: q.ptr(), cu_seqlens_k: k.ptr(), ..w.call() };
        let message = format!("o: overlaps {name}; an output must share no element with another view");
        w.forward_says(&call, &OutputTensors { o: o.ptr(), ..w.outputs() }, &message);
    }
    let mut slopes = Tensor::<f32>::new(vec![0.5; 64], &[H]);
    slopes.dl.shape = slopes.shape.as_mut_ptr();
    let mut o = Tensor::<f32>::room(&[1, H, N, D]);
    o.dl.data = slopes.data.as_mut_ptr().cast();
    let call = AttentionCall { alibi_slopes: slopes.ptr(), ..w.call() };
    let message = "o: overlaps alibi_slopes; an output must share no element with another view";
    w.forward_says(&call, &OutputTensors { o: o.ptr(), ..w.outputs() }, message);
    let positions = Tensor::<i32>::new(vec![1; 64], &[1, N]);
    let mut o = Tensor::<f32>::room(&[1, H, N, D]);
    o.dl.data = positions.dl.data;
    let call = AttentionCall { positions: positions.ptr(), options: 64, key: 1, ..w.call() };
    let message = "o: overlaps positions; an output must share no element with another view";
    w.forward_says(&call, &OutputTensors { o: o.ptr(), ..w.outputs() }, message);
}

#[test]
fn shapes_of_lists() {
    let w = world();
    let slopes = Tensor::<f32>::noise(1, &[H, 1]);
    w.says(|c| c.alibi_slopes = slopes.ptr(), "alibi_slopes: shape [2, 1], expected [1, 2]");
    let positions = Tensor::<i32>::new(vec![1; N], &[N, 1]);
    w.says(
        |c| (c.key, c.options, c.positions) = (1, 64, positions.ptr()),
        "positions: shape [3, 1], expected [1, 3]",
    );
    let flat = Tensor::<i32>::new(vec![1; N], &[N]);
    w.says(|c| (c.key, c.options, c.positions) = (1, 64, flat.ptr()), "positions: 1 dimensions, expected 2");
    let twice = Tensor::<i32>::new(vec![2], &[1, 1]);
    w.says(|c| c.key_lengths = twice.ptr(), "key_lengths: 2 dimensions, expected 1");
    let mut long = [i64::MAX / 2];
    let mut list = Tensor::<i32>::new(vec![2], &[1]);
    list.dl.shape = long.as_mut_ptr();
    w.says(
        |c| c.key_lengths = list.ptr(),
        "key_lengths: shape [4611686018427387903] is more than memory can hold",
    );
}

#[test]
fn strides_that_mean_nothing() {
    let w = world();
    // Of B, which is 1.
    let mut odd = [-7, (N * D) as i64, D as i64, 1];
    let mut k = Tensor::<f32>::noise(2, &[1, H, N, D]);
    k.dl.strides = odd.as_mut_ptr();
    let call = AttentionCall { k: k.ptr(), ..w.call() };
    // SAFETY: all tensors live.
    let status = unsafe { ia_forward(&raw const call, &w.outputs(), ptr::null_mut()) };
    assert_eq!(status, Status::Ok, "{}", last_error());
    let mut odd = [9];
    let mut list = Tensor::<i32>::new(vec![2], &[1]);
    list.dl.strides = odd.as_mut_ptr();
    let call = AttentionCall { key_lengths: list.ptr(), ..w.call() };
    // SAFETY: as above.
    let status = unsafe { ia_forward(&raw const call, &w.outputs(), ptr::null_mut()) };
    assert_eq!(status, Status::Ok, "{}", last_error());
}

#[cfg(unix)]
#[test]
fn a_thread_that_ends_can_still_ask() {
    /// Asks when the thread's own memory is taken down, after whatever was made later.
    struct Last;
    impl Drop for Last {
        fn drop(&mut self) {
            assert!(!inducer_attention_c::ia_last_error().is_null());
            assert_eq!(ia_set_threads(0), Status::Invalid);
        }
    }
    thread_local!(static LAST: Last = const { Last });
    std::thread::spawn(|| {
        LAST.with(|_| ());
        assert_eq!(ia_set_threads(0), Status::Invalid);
    })
    .join()
    .expect("the thread");
}
