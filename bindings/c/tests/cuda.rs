//! Calls for CUDA tensors, on the emulated driver: what they compute is what the calls for host memory compute.

#![cfg(all(feature = "cuda", target_os = "linux"))]

mod common;
#[allow(dead_code, reason = "tests of the crate itself use all of it")]
#[path = "../../../tests/cuda_emulated_driver/world.rs"]
mod world;

use std::ffi::c_void;
use std::ptr;
use std::sync::Arc;

use common::{Adapter, Tensor, Zeroed, last_error};
use inducer_attention::cuda::cudarc::driver::{
    CudaContext, CudaSlice, CudaStream, DevicePtr, DevicePtrMut, result, sys,
};
use inducer_attention_c::call::{AdapterTensors, AttentionCall, GradientTensors, OutputTensors};
use inducer_attention_c::cuda::{
    ia_cuda_backward, ia_cuda_backward_workspace, ia_cuda_forward, ia_cuda_load, share,
};
use inducer_attention_c::tensor::{DLDevice, DLTensor};
use inducer_attention_c::{Status, ia_backward, ia_forward};
use world::{context, emulated, engine};

const B: usize = 2;
const H: usize = 4;
const H_KV: usize = 2;
const N: usize = 21;
const M: usize = 37;
const D: usize = 16;
const R: usize = 3;
const L: usize = 2;

const FORWARD: [&str; 4] = ["o", "lse", "u", "attn"];
const BACKWARD: [&str; 14] = [
    "d_q",
    "d_k",
    "d_v",
    "d_prefix_k",
    "d_prefix_v",
    "d_key_adapter.down_weight",
    "d_key_adapter.down_bias",
    "d_key_adapter.up_weight",
    "d_key_adapter.up_bias",
    "d_value_adapter.down_weight",
    "d_value_adapter.down_bias",
    "d_value_adapter.up_weight",
    "d_value_adapter.up_bias",
    "d_logit",
];

/// Copies of a call's tensors in the memory of device 0.
struct Device {
    stream: Arc<CudaStream>,
    memory: Vec<CudaSlice<u8>>,
    #[allow(clippy::vec_box, reason = "structs point to them while others are added")]
    tensors: Vec<Box<DLTensor>>,
}

/// Bytes of a tensor; those of the tests are dense.
fn bytes(t: &DLTensor) -> usize {
    // SAFETY: the tests' tensors have as many sizes as they say.
    let shape = unsafe { std::slice::from_raw_parts(t.shape, t.ndim as usize) };
    shape.iter().product::<i64>() as usize * usize::from(t.dtype.bits / 8)
}

impl Device {
    fn new(context: &Arc<CudaContext>) -> Self {
        // SAFETY: all that happens is on one stream.
        unsafe { context.disable_event_tracking() };
        let stream = context.new_stream().expect("a stream");
        Self { stream, memory: Vec::new(), tensors: Vec::new() }
    }

    fn copy(&mut self, tensor: &mut *const DLTensor) {
        // SAFETY: null or a tensor of the test.
        let Some(host) = (unsafe { tensor.as_ref() }) else { return };
        // SAFETY: as above.
        let content = unsafe { std::slice::from_raw_parts(host.data.cast::<u8>(), bytes(host)) };
        let memory = self.stream.clone_htod(content).expect("memory of the device");
        let address = memory.device_ptr(&self.stream).0;
        self.memory.push(memory);
        self.tensors.push(Box::new(DLTensor {
            data: ptr::without_provenance_mut::<c_void>(address as usize),
            device: DLDevice { device_type: 2, device_id: 0 },
            ..*host
        }));
        *tensor = &raw const **self.tensors.last().expect("just added");
    }

    /// Copies all that are there, and returns where they were before and where their copies are.
    fn copy_all(&mut self, tensors: Vec<&mut *const DLTensor>) -> Vec<(*const DLTensor, usize)> {
        let mut copied = Vec::new();
        for tensor in tensors.into_iter().filter(|t| !t.is_null()) {
            let before = *tensor;
            self.copy(tensor);
            copied.push((before, self.memory.len() - 1));
        }
        copied
    }

    /// Copies results to where they came from.
    fn fetch(&self, copied: &[(*const DLTensor, usize)]) {
        for &(tensor, index) in copied {
            let content = self.stream.clone_dtoh(&self.memory[index]).expect("results");
            // SAFETY: a tensor of the test, with as many bytes.
            unsafe { ptr::copy_nonoverlapping(content.as_ptr(), (*tensor).data.cast(), content.len()) };
        }
    }

    fn raw_stream(&self) -> *mut c_void {
        self.stream.cu_stream().cast()
    }
}

fn adapter(a: &mut AdapterTensors) -> [&mut *const DLTensor; 4] {
    [&mut a.down_weight, &mut a.down_bias, &mut a.up_weight, &mut a.up_bias]
}

fn inputs(c: &mut AttentionCall) -> Vec<&mut *const DLTensor> {
    let mut all = vec![
        &mut c.q,
        &mut c.k,
        &mut c.v,
        &mut c.prefix_k,
        &mut c.prefix_v,
        &mut c.query_lengths,
        &mut c.key_lengths,
        &mut c.key_starts,
        &mut c.cu_seqlens_q,
        &mut c.cu_seqlens_k,
        &mut c.alibi_slopes,
        &mut c.logit,
        &mut c.positions,
    ];
    all.extend(adapter(&mut c.key_adapter));
    all.extend(adapter(&mut c.value_adapter));
    all
}

/// In the order of [`FORWARD`].
fn outputs(o: &mut OutputTensors) -> Vec<&mut *const DLTensor> {
    vec![&mut o.o, &mut o.lse, &mut o.u, &mut o.attn]
}

/// What the backward reads, and what it writes in the order of [`BACKWARD`].
fn gradients(g: &mut GradientTensors) -> [Vec<&mut *const DLTensor>; 2] {
    let mut written = vec![&mut g.d_q, &mut g.d_k, &mut g.d_v, &mut g.d_prefix_k, &mut g.d_prefix_v];
    written.extend(adapter(&mut g.d_key_adapter));
    written.extend(adapter(&mut g.d_value_adapter));
    written.push(&mut g.d_logit);
    [vec![&mut g.o, &mut g.attn, &mut g.lse, &mut g.d_o, &mut g.d_lse, &mut g.d_u], written]
}

/// Room for all results of a problem.
struct Room {
    forward: [Tensor<f32>; 4],
    plain: [Tensor<f32>; 5],
    adapters: [Adapter<f32>; 2],
    d_logit: Tensor<f32>,
    upstream: [Tensor<f32>; 3],
}

impl Room {
    fn new(call: &AttentionCall) -> Self {
        // SAFETY: a tensor of four dimensions.
        let batch = unsafe { *(*call.q).shape } as usize;
        let (rows, heads) = ([batch, H, N, D], [batch, H, N]);
        let (keys, prefix) = ([batch, H_KV, M, D], [H_KV, L, D]);
        let logit: &[usize] = if call.key == 3 { &[H] } else { &heads };
        let room = Tensor::<f32>::room;
        Self {
            forward: [room(&rows), room(&heads), room(&[batch, H, N, R]), room(&rows)],
            plain: [room(&rows), room(&keys), room(&keys), room(&prefix), room(&prefix)],
            adapters: [1, 2].map(|seed| Adapter::noise(seed, [H, D, R])),
            d_logit: room(logit),
            upstream: [
                Tensor::noise(40, &rows),
                Tensor::noise(41, &heads),
                Tensor::noise(42, &[batch, H, N, R]),
            ],
        }
    }

    fn outputs(&self, call: &AttentionCall) -> OutputTensors {
        let [o, lse, u, attn] = self.forward.each_ref().map(Tensor::ptr);
        let u = if call.value == 3 { u } else { ptr::null() };
        OutputTensors { o, lse, u, attn, ..OutputTensors::zeroed() }
    }

    fn gradients(&self, call: &AttentionCall) -> GradientTensors {
        let [o, lse, ..] = self.forward.each_ref().map(Tensor::ptr);
        let [d_q, d_k, d_v, d_prefix_k, d_prefix_v] = self.plain.each_ref().map(Tensor::ptr);
        let [d_o, d_lse, d_u] = self.upstream.each_ref().map(Tensor::ptr);
        let mut all = GradientTensors { o, lse, d_o, d_lse, d_q, d_k, d_v, ..GradientTensors::zeroed() };
        if call.value == 3 {
            all.d_u = d_u;
        }
        if !call.prefix_k.is_null() {
            (all.d_prefix_k, all.d_prefix_v) = (d_prefix_k, d_prefix_v);
        }
        if call.key == 2 {
            all.d_key_adapter = self.adapters[0].tensors();
        }
        if call.value != 0 {
            let value = &self.adapters[1];
            all.d_value_adapter = if call.value == 3 { value.down() } else { value.tensors() };
        }
        if call.key > 2 {
            all.d_logit = self.d_logit.ptr();
        }
        all
    }
}

/// A tensor's numbers.
fn numbers(t: *const DLTensor) -> Vec<f32> {
    // SAFETY: a dense tensor of f32 of the test.
    unsafe { std::slice::from_raw_parts((*t).data.cast::<f32>(), bytes(&*t) / 4) }.to_vec()
}

fn named<const K: usize>(
    names: [&'static str; K],
    tensors: Vec<&mut *const DLTensor>,
) -> Vec<(&'static str, Vec<f32>)> {
    let there = names.into_iter().zip(tensors).filter(|(_, t)| !t.is_null());
    there.map(|(name, t)| (name, numbers(*t))).collect()
}

fn ok(status: Status) {
    assert_eq!(status, Status::Ok, "{}", last_error());
}

/// Every result, computed in host memory.
fn on_host(call: &AttentionCall) -> Vec<(&'static str, Vec<f32>)> {
    let room = Room::new(call);
    let (mut out, mut grad) = (room.outputs(call), room.gradients(call));
    // SAFETY: all tensors are dense and live; nobody else uses them.
    unsafe {
        ok(ia_forward(call, &raw const out, ptr::null_mut()));
        ok(ia_backward(call, &raw const grad, ptr::null_mut()));
    }
    let mut results = named(FORWARD, outputs(&mut out));
    results.extend(named(BACKWARD, gradients(&mut grad).into_iter().nth(1).expect("what is written")));
    results
}

/// Every result, computed on the emulated device. `longest`: what is said of packed sequences.
fn on_device(
    context: &Arc<CudaContext>,
    call: &AttentionCall,
    longest: i64,
) -> Vec<(&'static str, Vec<f32>)> {
    let room = Room::new(call);
    let (mut out, mut grad) = (room.outputs(call), room.gradients(call));
    let mut device = Device::new(context);
    // SAFETY: numbers and pointers, which may be copied.
    let mut on_device = unsafe { ptr::read(call) };
    (on_device.max_seqlen_q, on_device.max_seqlen_k) = (longest, longest);
    device.copy_all(inputs(&mut on_device));
    // SAFETY: all tensors are copies in the device's memory, which live until the results were fetched.
    unsafe {
        let copied = device.copy_all(outputs(&mut out));
        ok(ia_cuda_forward(&raw const on_device, &raw const out, device.raw_stream()));
        device.fetch(&copied);
        let [read, written] = gradients(&mut grad);
        device.copy_all(read);
        let copied = device.copy_all(written);
        let mut needed = 0;
        ok(ia_cuda_backward_workspace(&raw const on_device, &raw mut needed));
        let mut workspace = device.stream.alloc::<u8>(needed.max(1)).expect("memory of the device");
        let address = workspace.device_ptr_mut(&device.stream).0;
        ok(ia_cuda_backward(
            &raw const on_device,
            &raw const grad,
            ptr::without_provenance_mut(address as usize),
            needed,
            device.raw_stream(),
        ));
        device.fetch(&copied);
    }
    let (mut out, mut grad) = (room.outputs(call), room.gradients(call));
    let mut results = named(FORWARD, outputs(&mut out));
    results.extend(named(BACKWARD, gradients(&mut grad).into_iter().nth(1).expect("what is written")));
    results
}

/// Both agree, but for rounding.
fn check(context: &Arc<CudaContext>, call: &AttentionCall, longest: i64) {
    let (expected, got) = (on_host(call), on_device(context, call, longest));
    assert_eq!(expected.len(), got.len());
    for ((name, x), (other, y)) in expected.iter().zip(&got) {
        assert_eq!((name, x.len()), (other, y.len()));
        let scale = x.iter().filter(|x| x.is_finite()).fold(1e-3f32, |m, x| m.max(x.abs()));
        for (i, (x, y)) in x.iter().zip(y).enumerate() {
            assert!(
                x.to_bits() == y.to_bits() || (x - y).abs() <= 2e-5 * scale,
                "{name}[{i}]: {y}, expected {x}"
            );
        }
    }
}

struct World {
    q: Tensor<f32>,
    k: Tensor<f32>,
    v: Tensor<f32>,
    adapters: [Adapter<f32>; 2],
}

impl World {
    fn new(batch: usize) -> Self {
        Self {
            // As a projection writes it, [B, N, H, d].
            q: Tensor::noise(1, &[batch, N, H, D]).middle_exchanged(),
            k: Tensor::noise(2, &[batch, H_KV, M, D]),
            v: Tensor::noise(3, &[batch, H_KV, M, D]),
            adapters: [10, 20].map(|seed| Adapter::noise(seed, [H, D, R])),
        }
    }

    fn call(&self) -> AttentionCall {
        AttentionCall { q: self.q.ptr(), k: self.k.ptr(), v: self.v.ptr(), ..AttentionCall::zeroed() }
    }
}

/// Device 0, whose kernels the library finds.
fn device() -> Arc<CudaContext> {
    let context = context(0);
    share(engine(&context));
    context
}

#[test]
fn every_virtual_token_and_list() {
    emulated(&[], || {
        let context = device();
        let w = World::new(B);
        let list = |data: &[i32]| Tensor::new(data.to_vec(), &[data.len()]);
        let lists = [list(&[17, 21]), list(&[37, 30]), list(&[2, 0])];
        let positions = Tensor::new((1..=(B * N) as i32).collect(), &[B, N]);
        let slopes = Tensor::new((1..=B * H).map(|i| 0.5 / i as f32).collect(), &[B, H]);
        let prefix = [Tensor::<f32>::noise(4, &[H_KV, L, D]), Tensor::noise(5, &[H_KV, L, D])];
        let logits = [Tensor::<f32>::noise(30, &[H]), Tensor::noise(31, &[B, H, N])];

        check(&context, &w.call(), 0);
        let mut call = w.call();
        (call.key, call.value, call.options) = (2, 1, 1 | 64);
        (call.key_adapter, call.value_adapter) = (w.adapters[0].tensors(), w.adapters[1].tensors());
        [call.query_lengths, call.key_lengths, call.key_starts] = lists.each_ref().map(Tensor::ptr);
        (call.positions, call.alibi_slopes) = (positions.ptr(), slopes.ptr());
        check(&context, &call, 0);
        let mut call = w.call();
        (call.key, call.value, call.options, call.window_left) = (3, 3, 4, 9);
        (call.logit, call.value_adapter) = (logits[0].ptr(), w.adapters[1].down());
        [call.prefix_k, call.prefix_v] = prefix.each_ref().map(Tensor::ptr);
        check(&context, &call, 0);
        let mut call = w.call();
        (call.key, call.value, call.options) = (4, 2, 16 | 32);
        (call.softcap, call.dropout_p, call.dropout_seed) = (0.7, 0.3, 7);
        (call.logit, call.value_adapter) = (logits[1].ptr(), w.adapters[1].tensors());
        check(&context, &call, 0);
    });
}

#[test]
fn packed_sequences() {
    emulated(&[], || {
        let context = device();
        let w = World::new(1);
        let list = |data: &[i32]| Tensor::new(data.to_vec(), &[data.len()]);
        let cu_seqlens = [list(&[0, 4, 19]), list(&[0, 20, 37])];
        let slopes = Tensor::new((1..=H).map(|i| 0.5 / i as f32).collect(), &[H]);
        let mut call = w.call();
        (call.key, call.value, call.options) = (1, 1, 1);
        call.value_adapter = w.adapters[1].tensors();
        [call.cu_seqlens_q, call.cu_seqlens_k] = cu_seqlens.each_ref().map(Tensor::ptr);
        call.alibi_slopes = slopes.ptr();
        check(&context, &call, 0);
        check(&context, &call, 20);
    });
}

/// What the forward says; nothing was launched.
fn says(call: &AttentionCall, outputs: &OutputTensors, status: Status, message: &str) {
    let before = world::calls("cuLaunchKernel");
    // SAFETY: what is wrong with the tensors is what the library must find.
    let got = unsafe { ia_cuda_forward(call, outputs, ptr::null_mut()) };
    assert_eq!((got, last_error().as_str()), (status, message));
    assert_eq!(world::calls("cuLaunchKernel"), before);
}

#[test]
fn mistakes() {
    emulated(&[], || {
        let context = device();
        let w = World::new(1);
        let room = Room::new(&w.call());
        let lengths = Tensor::new(vec![3], &[1]);
        let (host, host_out) = (w.call(), room.outputs(&w.call()));
        let expected = "q: on the host, expected a CUDA device (DLPack's type 2)";
        says(&host, &host_out, Status::Invalid, expected);

        let mut device = Device::new(&context);
        let (mut call, mut out) = (w.call(), room.outputs(&w.call()));
        device.copy_all(inputs(&mut call));
        says(
            &call,
            &host_out,
            Status::Invalid,
            "o: on the host, expected CUDA device 0, as q is (DLPack's type 2)",
        );
        device.copy_all(outputs(&mut out));
        call.key_lengths = lengths.ptr();
        let expected = "key_lengths: on the host, expected CUDA device 0, as q is (DLPack's type 2)";
        says(&call, &out, Status::Invalid, expected);
        call.key_lengths = ptr::null();
        call.max_seqlen_k = -1;
        says(&call, &out, Status::Invalid, "max_seqlen_k: -1, expected 0 (not known) or more");
        call.max_seqlen_k = 0;
        // SAFETY: the copy lives.
        let elsewhere =
            DLTensor { device: DLDevice { device_type: 2, device_id: 9 }, ..unsafe { ptr::read(call.k) } };
        let k = std::mem::replace(&mut call.k, &raw const elsewhere);
        let expected = "k: on CUDA device 9, expected CUDA device 0, as q is (DLPack's type 2)";
        says(&call, &out, Status::Invalid, expected);
        call.k = k;
        let [mut q, o] = [call.q, out.o].map(|t| {
            // SAFETY: the copies live.
            DLTensor { device: DLDevice { device_type: 2, device_id: 9 }, ..unsafe { ptr::read(t) } }
        });
        // All of them on a device that is not there.
        let other =
            AttentionCall { q: &raw const q, k: &raw const q, v: &raw const q, ..AttentionCall::zeroed() };
        let other_out = OutputTensors { o: &raw const o, ..OutputTensors::zeroed() };
        says(&other, &other_out, Status::Device, "no CUDA device 9: the driver sees 2");
        // A row that does not begin at a multiple of 16 bytes.
        q.device.device_id = 0;
        q.byte_offset = 4;
        let other = AttentionCall { q: &raw const q, ..call };
        // SAFETY: as above.
        let status = unsafe { ia_cuda_forward(&raw const other, &raw const out, ptr::null_mut()) };
        assert_eq!(status, Status::Invalid, "{}", last_error());
        assert!(last_error().starts_with("q: ") && last_error().contains("16"), "{}", last_error());

        // Slopes and positions the other way round.
        let slopes = Tensor::new(vec![0.5; H], &[H, 1]);
        let positions = Tensor::new(vec![1; N], &[N, 1]);
        let mut call = AttentionCall { key: 1, options: 64, alibi_slopes: slopes.ptr(), ..call };
        device.copy(&mut call.alibi_slopes);
        says(&call, &out, Status::Invalid, "alibi_slopes: shape [4, 1], expected [1, 4]");
        (call.alibi_slopes, call.positions) = (ptr::null(), positions.ptr());
        device.copy(&mut call.positions);
        says(&call, &out, Status::Invalid, "positions: shape [21, 1], expected [1, 21]");
        (call.key, call.options, call.positions) = (0, 0, ptr::null());

        assert_eq!(ia_cuda_load(-1), Status::Invalid);
        assert_eq!(last_error(), "device: -1, expected the number of a CUDA device, 0 to 65535");
        assert_eq!(ia_cuda_load(9), Status::Device);
        ok(ia_cuda_load(0));

        let mut grad = room.gradients(&w.call());
        let [read, written] = gradients(&mut grad);
        device.copy_all(read);
        device.copy_all(written);
        let before = world::calls("cuLaunchKernel");
        // SAFETY: as above.
        let backward = |address, bytes| unsafe {
            let workspace = ptr::without_provenance_mut(address);
            ia_cuda_backward(&raw const call, &raw const grad, workspace, bytes, ptr::null_mut())
        };
        assert_eq!(backward(0, 1 << 30), Status::Invalid);
        assert_eq!(last_error(), "workspace: null");
        assert_eq!(backward(256, 16), Status::Invalid);
        assert!(last_error().starts_with("workspace: "), "{}", last_error());
        assert_eq!(world::calls("cuLaunchKernel"), before);
    });
}

#[test]
fn the_current_context_stays_what_it_was() {
    emulated(&[], || {
        let first = context(0);
        share(engine(&first));
        let second = context(1);
        let current =
            |context: &CudaContext| result::ctx::get_current().expect("a driver") == Some(context.cu_ctx());
        second.bind_to_thread().expect("a context");
        ok(ia_cuda_load(0));
        assert!(current(&second) && !current(&first));
        let w = World::new(1);
        let room = Room::new(&w.call());
        let (mut call, mut out) = (w.call(), room.outputs(&w.call()));
        let mut device = Device::new(&first);
        device.copy_all(inputs(&mut call));
        device.copy_all(outputs(&mut out));
        second.bind_to_thread().expect("a context");
        // SAFETY: all tensors are copies in the device's memory.
        ok(unsafe { ia_cuda_forward(&raw const call, &raw const out, device.raw_stream()) });
        assert!(current(&second));
        device.stream.synchronize().expect("a forward");
        std::thread::spawn(move || {
            ok(ia_cuda_load(0));
            assert_eq!(result::ctx::get_current().expect("a driver"), None);
        })
        .join()
        .expect("a thread without a context");
    });
}

#[test]
fn a_call_is_captured_into_a_graph() {
    emulated(&[], || {
        let context = device();
        let w = World::new(1);
        let call = w.call();
        let expected = on_host(&call);
        let room = Room::new(&call);
        let (mut on_device, mut out) = (w.call(), room.outputs(&call));
        let mut device = Device::new(&context);
        device.copy_all(inputs(&mut on_device));
        let copied = device.copy_all(outputs(&mut out));
        let stream = &device.stream;
        stream.begin_capture(sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_GLOBAL).expect("a capture");
        // SAFETY: all tensors are copies in the device's memory.
        ok(unsafe { ia_cuda_forward(&raw const on_device, &raw const out, device.raw_stream()) });
        let graph = stream.end_capture(sys::CUgraphInstantiate_flags(0)).expect("a graph").expect("a launch");
        graph.launch().expect("a launch");
        device.fetch(&copied);
        for ((name, x), y) in expected.iter().zip(&room.forward) {
            let most = x.iter().zip(&y.data).map(|(x, y)| (x - y).abs()).fold(0f32, f32::max);
            assert!(*name != "o" || most < 1e-5, "{name}: {most}");
        }
    });
}

#[test]
fn without_a_gpu_calls_say_so() {
    emulated(&[("EMULATED_CUDA_DEVICES", "0")], || {
        assert_eq!(
            (ia_cuda_load(0), last_error().as_str()),
            (Status::Device, "no CUDA device 0: the driver sees 0")
        );
    });
}
