//! Tensors with memory of their own, as a framework would lend them.

#![allow(dead_code, reason = "each test uses some of it")]

use std::ffi::{CStr, c_void};
use std::ptr;

use inducer_attention_c::call::{AdapterTensors, AttentionCall, GradientTensors, OutputTensors};
use inducer_attention_c::ia_last_error;
use inducer_attention_c::tensor::{DLDataType, DLDevice, DLTensor};

/// Numbers of one type and how they lie; `dl` names the memory of the others.
pub(crate) struct Tensor<T> {
    pub(crate) data: Vec<T>,
    pub(crate) shape: Box<[i64]>,
    pub(crate) strides: Box<[i64]>,
    pub(crate) dl: DLTensor,
}

/// Types that tensors are made of.
pub(crate) trait Number: Copy {
    const DTYPE: DLDataType;
    fn from_f32(x: f32) -> Self;
}

impl Number for f32 {
    const DTYPE: DLDataType = DLDataType { code: 2, bits: 32, lanes: 1 };
    fn from_f32(x: f32) -> Self {
        x
    }
}
impl Number for inducer_attention::bf16 {
    const DTYPE: DLDataType = DLDataType { code: 4, bits: 16, lanes: 1 };
    fn from_f32(x: f32) -> Self {
        Self::from_f32(x)
    }
}
impl Number for i32 {
    const DTYPE: DLDataType = DLDataType { code: 0, bits: 32, lanes: 1 };
    fn from_f32(x: f32) -> Self {
        x as i32
    }
}

impl<T: Number> Tensor<T> {
    /// Row-major.
    pub(crate) fn new(data: Vec<T>, shape: &[usize]) -> Self {
        let mut strides = vec![1; shape.len()];
        for i in (1..shape.len()).rev() {
            strides[i - 1] = strides[i] * shape[i] as i64;
        }
        let shape = shape.iter().map(|&n| n as i64).collect();
        let mut tensor = Self {
            data,
            shape,
            strides: strides.into(),
            dl: DLTensor {
                data: ptr::null_mut(),
                device: DLDevice { device_type: 1, device_id: 0 },
                ndim: 0,
                dtype: T::DTYPE,
                shape: ptr::null_mut(),
                strides: ptr::null_mut(),
                byte_offset: 0,
            },
        };
        tensor.dl.data = tensor.data.as_mut_ptr().cast::<c_void>();
        tensor.dl.ndim = tensor.shape.len() as i32;
        tensor.dl.shape = tensor.shape.as_mut_ptr();
        tensor
    }

    /// Numbers from −1 to 1.
    pub(crate) fn noise(seed: u32, shape: &[usize]) -> Self {
        let mut state = seed.wrapping_mul(0x9E37_79B9) | 1;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            T::from_f32((state >> 8) as f32 / (1 << 23) as f32 - 1.0)
        };
        Self::new((0..shape.iter().product()).map(|_| next()).collect(), shape)
    }

    /// Room for results.
    pub(crate) fn room(shape: &[usize]) -> Self {
        Self::new(vec![T::from_f32(99.0); shape.iter().product()], shape)
    }

    /// The same memory, from a row-major `[a, c, b, d]` to `[a, b, c, d]`.
    pub(crate) fn middle_exchanged(mut self) -> Self {
        assert_eq!(self.shape.len(), 4);
        self.shape.swap(1, 2);
        self.strides.swap(1, 2);
        self.dl.strides = self.strides.as_mut_ptr();
        self
    }

    pub(crate) fn ptr(&self) -> *const DLTensor {
        &raw const self.dl
    }
}

/// An adapter, or room for its gradients.
pub(crate) struct Adapter<T> {
    pub(crate) down_weight: Tensor<T>,
    pub(crate) down_bias: Tensor<T>,
    pub(crate) up_weight: Tensor<T>,
    pub(crate) up_bias: Tensor<T>,
}

impl<T: Number> Adapter<T> {
    pub(crate) fn noise(seed: u32, [h, d, r]: [usize; 3]) -> Self {
        Self {
            down_weight: Tensor::noise(seed, &[h, d, r]),
            down_bias: Tensor::noise(seed + 1, &[h, r]),
            up_weight: Tensor::noise(seed + 2, &[h, r, d]),
            up_bias: Tensor::noise(seed + 3, &[h, d]),
        }
    }

    pub(crate) fn tensors(&self) -> AdapterTensors {
        AdapterTensors { up_weight: self.up_weight.ptr(), up_bias: self.up_bias.ptr(), ..self.down() }
    }

    pub(crate) fn down(&self) -> AdapterTensors {
        AdapterTensors {
            down_weight: self.down_weight.ptr(),
            down_bias: self.down_bias.ptr(),
            up_weight: ptr::null(),
            up_bias: ptr::null(),
        }
    }
}

/// A struct of the header that is zero but for its size, as C's initialisers make it.
pub(crate) trait Zeroed {
    fn zeroed() -> Self;
}

macro_rules! zeroed {
    ($($name:ident)*) => {
        $(impl Zeroed for $name {
            fn zeroed() -> Self {
                // SAFETY: pointers and numbers, all of which may be zero.
                let mut zero: Self = unsafe { std::mem::zeroed() };
                zero.struct_size = size_of::<Self>();
                zero
            }
        })*
    };
}

zeroed!(AttentionCall OutputTensors GradientTensors);

pub(crate) fn last_error() -> String {
    // SAFETY: the library promises a string that lives until the thread's next failing call.
    unsafe { CStr::from_ptr(ia_last_error()) }.to_str().expect("messages are UTF-8").to_owned()
}
