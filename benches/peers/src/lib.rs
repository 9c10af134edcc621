//! The CPU engine behind a small C interface, so that a Python script can time it with ctypes.
//!
//! Every function returns 0, or −1 with a message for [`peers_last_error`]; none panics across the boundary.

use std::cell::RefCell;
use std::ffi::{c_char, c_int};
use std::panic::{AssertUnwindSafe, catch_unwind};

use inducer_attention::cpu::{Engine, Workspace};
use inducer_attention::{
    Activation, Adapter, AdapterGradients, Attention, DType, Gradients, Inducer, KeyGradients, Outputs,
    Problem, Saved, SavedOutput, TensorMut, TensorRef, Upstream, ValueGradients, VirtualKey, VirtualValue,
};

/// One forward or backward call, with as many keys as queries. Q, K, V, O and their gradients are `[B, H, N, d]`, in memory
/// row-major or `[B, N, H, d]`; all else is row-major.
///
/// Ranks of 0 mean no inducer; otherwise virtual key and virtual value both come from residual adapters.
#[repr(C)]
#[derive(Debug)]
pub struct Call {
    /// Size of this struct as the caller knows it.
    pub struct_size: usize,
    /// B.
    pub batch: usize,
    /// H, of queries and of keys.
    pub heads: usize,
    /// N, and M.
    pub rows: usize,
    /// d.
    pub head_dim: usize,
    /// `r_k`.
    pub key_rank: usize,
    /// `r_v`.
    pub value_rank: usize,
    /// 0 f32, 1 f16, 2 bf16.
    pub dtype: u32,
    /// 0 full, else causal.
    pub causal: u32,
    /// 0 for `[B, H, N, d]` in memory, else `[B, N, H, d]`.
    pub token_major: u32,
    /// Q.
    pub q: *const u8,
    /// K.
    pub k: *const u8,
    /// V.
    pub v: *const u8,
    /// O; the forward writes it, the backward reads it.
    pub o: *mut u8,
    /// lse, f32 `[B, H, N]`; as O.
    pub lse: *mut u8,
    /// dO.
    pub d_o: *const u8,
    /// dQ.
    pub d_q: *mut u8,
    /// dK.
    pub d_k: *mut u8,
    /// dV.
    pub d_v: *mut u8,
    /// The key's adapter: A `[H, d, r]`, a `[H, r]`, B `[H, r, d]`, b `[H, d]`, of Q's dtype.
    pub key: [*const u8; 4],
    /// The value's adapter.
    pub value: [*const u8; 4],
    /// Gradients of the key's adapter, f32.
    pub d_key: [*mut u8; 4],
    /// Gradients of the value's adapter, f32.
    pub d_value: [*mut u8; 4],
}

type Result<T> = std::result::Result<T, String>;

thread_local! {
    static LAST_ERROR: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Runs `f`, keeping its error or panic for [`peers_last_error`].
fn guard(f: impl FnOnce() -> Result<()>) -> c_int {
    let message = match catch_unwind(AssertUnwindSafe(f)) {
        Ok(Ok(())) => return 0,
        Ok(Err(message)) => message,
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
            format!("panic: {}", text.unwrap_or("no message"))
        }
    };
    LAST_ERROR.set(message);
    -1
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

impl Call {
    fn dtype(&self) -> Result<DType> {
        match self.dtype {
            0 => Ok(DType::F32),
            1 => Ok(DType::F16),
            2 => Ok(DType::BF16),
            other => Err(format!("dtype: got {other}, expected 0 (f32), 1 (f16) or 2 (bf16)")),
        }
    }

    fn shape(&self) -> [usize; 4] {
        [self.batch, self.heads, self.rows, self.head_dim]
    }

    /// Of Q, K, V, O and their gradients.
    fn strides(&self) -> Result<[usize; 4]> {
        if self.token_major == 0 {
            return row_major(self.shape());
        }
        let [b, n, h, d] = row_major([self.batch, self.rows, self.heads, self.head_dim])?;
        Ok([b, h, n, d])
    }

    /// Q, K, V, O or dO.
    ///
    /// # Safety
    /// See [`peers_forward`].
    unsafe fn rows(&self, ptr: *const u8, name: &str) -> Result<TensorRef<'_, 4>> {
        // SAFETY: the caller's promise.
        unsafe { strided(ptr, name, self.dtype()?, self.shape(), self.strides()?) }
    }

    /// O, dQ, dK or dV.
    ///
    /// # Safety
    /// See [`peers_forward`].
    unsafe fn rows_mut(&self, ptr: *mut u8, name: &str) -> Result<TensorMut<'_, 4>> {
        // SAFETY: the caller's promise.
        unsafe { strided_mut(ptr, name, self.dtype()?, self.shape(), self.strides()?) }
    }

    /// The problem that the call describes.
    ///
    /// # Safety
    /// See [`peers_forward`].
    unsafe fn problem(&self) -> Result<Problem<'_>> {
        let dtype = self.dtype()?;
        // SAFETY: the caller's promise about q, k, v and the adapters.
        let mut attention = unsafe {
            Attention::new(self.rows(self.q, "q")?, self.rows(self.k, "k")?, self.rows(self.v, "v")?)
        };
        attention.config.causal = self.causal != 0;
        if self.key_rank > 0 || self.value_rank > 0 {
            // SAFETY: as above.
            let (key, value) = unsafe {
                (
                    self.adapter(&self.key, self.key_rank, dtype)?,
                    self.adapter(&self.value, self.value_rank, dtype)?,
                )
            };
            attention.inducer = Some(Inducer::new(VirtualKey::Residual(key), VirtualValue::Residual(value)));
        }
        attention.validate().map_err(text)
    }

    unsafe fn adapter(&self, tensors: &[*const u8; 4], rank: usize, dtype: DType) -> Result<Adapter<'_>> {
        let (h, d) = (self.heads, self.head_dim);
        // SAFETY: the caller's promise about the adapters.
        unsafe {
            Ok(Adapter {
                down_weight: view(tensors[0], "down weight", dtype, [h, d, rank])?,
                down_bias: view(tensors[1], "down bias", dtype, [h, rank])?,
                up_weight: view(tensors[2], "up weight", dtype, [h, rank, d])?,
                up_bias: view(tensors[3], "up bias", dtype, [h, d])?,
                activation: Activation::Tanh,
            })
        }
    }

    unsafe fn adapter_gradients(&self, tensors: &[*mut u8; 4], rank: usize) -> Result<AdapterGradients<'_>> {
        let (h, d) = (self.heads, self.head_dim);
        // SAFETY: the caller's promise about the adapters' gradients.
        unsafe {
            Ok(AdapterGradients {
                down_weight: view_mut(tensors[0], "d down weight", DType::F32, [h, d, rank])?,
                down_bias: view_mut(tensors[1], "d down bias", DType::F32, [h, rank])?,
                up_weight: view_mut(tensors[2], "d up weight", DType::F32, [h, rank, d])?,
                up_bias: view_mut(tensors[3], "d up bias", DType::F32, [h, d])?,
            })
        }
    }
}

/// A shared view.
///
/// # Safety
/// Unless null, `ptr` points to as many elements as `shape` has, densely, which nobody writes for `'a`.
unsafe fn strided<'a, const R: usize>(
    ptr: *const u8,
    name: &str,
    dtype: DType,
    shape: [usize; R],
    strides: [usize; R],
) -> Result<TensorRef<'a, R>> {
    if ptr.is_null() {
        return Err(format!("{name}: got null"));
    }
    // SAFETY: the caller's promise; not null.
    unsafe { TensorRef::from_raw_parts(ptr, dtype, shape, strides) }.map_err(text)
}

/// An exclusive view.
///
/// # Safety
/// Unless null, `ptr` points to as many elements as `shape` has, densely, which nobody else uses for `'a`.
unsafe fn strided_mut<'a, const R: usize>(
    ptr: *mut u8,
    name: &str,
    dtype: DType,
    shape: [usize; R],
    strides: [usize; R],
) -> Result<TensorMut<'a, R>> {
    if ptr.is_null() {
        return Err(format!("{name}: got null"));
    }
    // SAFETY: the caller's promise; not null.
    unsafe { TensorMut::from_raw_parts(ptr, dtype, shape, strides) }.map_err(text)
}

/// A shared row-major view.
///
/// # Safety
/// As for [`strided`].
unsafe fn view<'a, const R: usize>(
    ptr: *const u8,
    name: &str,
    dtype: DType,
    shape: [usize; R],
) -> Result<TensorRef<'a, R>> {
    // SAFETY: the caller's promise.
    unsafe { strided(ptr, name, dtype, shape, row_major(shape)?) }
}

/// An exclusive row-major view.
///
/// # Safety
/// As for [`strided_mut`].
unsafe fn view_mut<'a, const R: usize>(
    ptr: *mut u8,
    name: &str,
    dtype: DType,
    shape: [usize; R],
) -> Result<TensorMut<'a, R>> {
    // SAFETY: the caller's promise.
    unsafe { strided_mut(ptr, name, dtype, shape, row_major(shape)?) }
}

fn row_major<const R: usize>(shape: [usize; R]) -> Result<[usize; R]> {
    let mut strides = [1usize; R];
    for i in (1..R).rev() {
        strides[i - 1] =
            strides[i].checked_mul(shape[i]).ok_or_else(|| format!("shape {shape:?} overflows"))?;
    }
    Ok(strides)
}

unsafe fn checked<'a>(call: *const Call) -> Result<&'a Call> {
    if call.is_null() {
        return Err("call: got null".into());
    }
    // SAFETY: not null, and the caller of the entry point promises a `Call` or at least its size.
    let got = unsafe { (*call).struct_size };
    if got != size_of::<Call>() {
        return Err(format!("struct_size: got {got}, expected {}", size_of::<Call>()));
    }
    // SAFETY: the size shows that the caller means this very struct.
    Ok(unsafe { &*call })
}

thread_local! {
    /// Scratch kept between calls, as a framework would keep it.
    static WORKSPACE: RefCell<Workspace> = const { RefCell::new(Workspace::new()) };
}

/// Runs a call with a workspace of at least `bytes` bytes.
fn with_workspace<R>(bytes: usize, f: impl FnOnce(&mut Workspace) -> R) -> R {
    WORKSPACE.with_borrow_mut(|workspace| {
        workspace.reserve(bytes);
        f(workspace)
    })
}

/// Computes O and lse.
///
/// # Safety
/// `call` points to a [`Call`] whose pointers are null or aligned, and lead to as many elements as its sizes say; nobody
/// else uses those written, or writes those read, during the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn peers_forward(call: *const Call) -> c_int {
    guard(|| {
        // SAFETY: the caller's promise, here and below.
        let call = unsafe { checked(call)? };
        let [b, h, n, _] = call.shape();
        // SAFETY: as above.
        let problem = unsafe { call.problem()? };
        // SAFETY: as above.
        let outputs = unsafe {
            Outputs::with_lse(call.rows_mut(call.o, "o")?, view_mut(call.lse, "lse", DType::F32, [b, h, n])?)
        };
        let engine = Engine::detect();
        let call = problem.forward(outputs).map_err(text)?;
        with_workspace(engine.forward_workspace(&problem), |w| engine.forward(call, w).map_err(text))
    })
}

/// Computes dQ, dK, dV and the adapters' gradients from O, lse and dO.
///
/// # Safety
/// As [`peers_forward`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn peers_backward(call: *const Call) -> c_int {
    guard(|| {
        // SAFETY: the caller's promise, here and below.
        let call = unsafe { checked(call)? };
        let [b, h, n, _] = call.shape();
        // SAFETY: as above.
        let problem = unsafe { call.problem()? };
        // SAFETY: as above.
        let (saved, upstream, mut gradients) = unsafe {
            let saved = Saved {
                output: SavedOutput::Output(call.rows(call.o, "o")?),
                lse: view(call.lse, "lse", DType::F32, [b, h, n])?,
            };
            let gradients = Gradients::new(
                call.rows_mut(call.d_q, "d_q")?,
                call.rows_mut(call.d_k, "d_k")?,
                call.rows_mut(call.d_v, "d_v")?,
            );
            (saved, Upstream::new(call.rows(call.d_o, "d_o")?), gradients)
        };
        if call.key_rank > 0 || call.value_rank > 0 {
            // SAFETY: as above.
            unsafe {
                gradients.key = KeyGradients::Residual(call.adapter_gradients(&call.d_key, call.key_rank)?);
                gradients.value =
                    ValueGradients::Adapter(call.adapter_gradients(&call.d_value, call.value_rank)?);
            }
        }
        let engine = Engine::detect();
        let call = problem.backward(saved, upstream, gradients).map_err(text)?;
        with_workspace(engine.backward_workspace(&problem), |w| engine.backward(call, w).map_err(text))
    })
}

/// Sets the number of threads of the engine, once, before its first call.
#[unsafe(no_mangle)]
pub extern "C" fn peers_set_threads(threads: usize) -> c_int {
    guard(|| rayon::ThreadPoolBuilder::new().num_threads(threads).build_global().map_err(text))
}

/// Writes the last error of this thread, with a final zero.
///
/// # Safety
/// `buffer` points to `len` writable bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn peers_last_error(buffer: *mut c_char, len: usize) -> c_int {
    // SAFETY: the caller's promise.
    LAST_ERROR.with_borrow(|message| unsafe { write_text(message, buffer, len) });
    0
}

/// Writes what the engine runs on, with a final zero.
///
/// # Safety
/// `buffer` points to `len` writable bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn peers_description(buffer: *mut c_char, len: usize) -> c_int {
    guard(|| {
        let description = format!("{:?}", Engine::detect());
        // SAFETY: the caller's promise.
        unsafe { write_text(&description, buffer, len) };
        Ok(())
    })
}

unsafe fn write_text(text: &str, buffer: *mut c_char, len: usize) {
    if buffer.is_null() || len == 0 {
        return;
    }
    let n = text.len().min(len - 1);
    // SAFETY: n + 1 bytes fit in the caller's buffer, and n bytes are in the text.
    unsafe {
        std::ptr::copy_nonoverlapping(text.as_ptr().cast(), buffer, n);
        *buffer.add(n) = 0;
    }
}
