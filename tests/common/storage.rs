//! Memory for views of every layout, with canaries in all that no view covers.

use half::{bf16, f16};
use inducer_attention::reference::Tensor;
use inducer_attention::{DType, TensorMut, TensorRef};

/// What lies between and around the views: a NaN, so that reading it shows, with a payload, so that writing it shows.
const CANARY: [(DType, u32); 3] = [(DType::F32, 0x7fc0_dead), (DType::F16, 0x7ead), (DType::BF16, 0x7fdd)];

/// A NaN that views for results are filled with: what is not overwritten is found.
const UNWRITTEN: [(DType, u32); 3] = [(DType::F32, 0xffc0_0bad), (DType::F16, 0xfe0b), (DType::BF16, 0xffcb)];

fn pattern(table: [(DType, u32); 3], dtype: DType) -> u32 {
    table.into_iter().find(|&(d, _)| d == dtype).expect("every dtype is in the table").1
}

/// Rounds to a dtype.
pub fn round_to(dtype: DType, x: f64) -> f64 {
    match dtype {
        DType::F32 => f64::from(x as f32),
        DType::F16 => f16::from_f64(x).to_f64(),
        DType::BF16 => bf16::from_f64(x).to_f64(),
    }
}

/// One allocation of elements of one dtype.
#[derive(Clone)]
struct Buffer {
    dtype: DType,
    len: usize,
    words: Vec<u64>,
}

impl Buffer {
    fn new(dtype: DType, len: usize) -> Self {
        let mut buffer = Self { dtype, len, words: vec![0; (len * dtype.size()).div_ceil(8)] };
        for i in 0..len {
            buffer.set_bits(i, pattern(CANARY, dtype));
        }
        buffer
    }

    fn bits(&self, i: usize) -> u32 {
        match self.dtype {
            DType::F32 => bytemuck::cast_slice::<u64, u32>(&self.words)[i],
            DType::F16 | DType::BF16 => bytemuck::cast_slice::<u64, u16>(&self.words)[i].into(),
        }
    }

    fn set_bits(&mut self, i: usize, bits: u32) {
        match self.dtype {
            DType::F32 => bytemuck::cast_slice_mut::<u64, u32>(&mut self.words)[i] = bits,
            DType::F16 | DType::BF16 => {
                bytemuck::cast_slice_mut::<u64, u16>(&mut self.words)[i] = bits as u16;
            }
        }
    }

    fn get(&self, i: usize) -> f64 {
        match self.dtype {
            DType::F32 => f32::from_bits(self.bits(i)).into(),
            DType::F16 => f16::from_bits(self.bits(i) as u16).to_f64(),
            DType::BF16 => bf16::from_bits(self.bits(i) as u16).to_f64(),
        }
    }

    fn set(&mut self, i: usize, x: f64) {
        let bits = match self.dtype {
            DType::F32 => (x as f32).to_bits(),
            DType::F16 => f16::from_f64(x).to_bits().into(),
            DType::BF16 => bf16::from_f64(x).to_bits().into(),
        };
        self.set_bits(i, bits);
    }
}

/// How a tensor lies in its buffer.
#[derive(Clone, Copy, Debug, Default)]
pub struct Placing {
    /// Elements before the view.
    pub offset: usize,
    /// Elements between the end of one innermost row and the next.
    pub row_pad: usize,
    /// Distance of neighbours in the innermost dimension less 1.
    pub gap: usize,
}

/// A tensor's place in an [`Arena`].
#[derive(Clone, Debug)]
pub struct Slot {
    pub buffer: usize,
    pub dtype: DType,
    pub offset: usize,
    pub shape: Vec<usize>,
    pub strides: Vec<usize>,
}

impl Slot {
    /// The part `start..start + size` of a dimension.
    #[must_use]
    pub fn narrow(&self, dimension: usize, start: usize, size: usize) -> Self {
        let mut part = self.clone();
        part.offset += start * self.strides[dimension];
        part.shape[dimension] = size;
        part
    }

    /// Every index, with its place in the buffer.
    fn places(&self) -> impl Iterator<Item = usize> + '_ {
        let count: usize = self.shape.iter().product();
        (0..count).map(|flat| {
            let mut rest = flat;
            let mut place = self.offset;
            for (&n, &stride) in self.shape.iter().zip(&self.strides).rev() {
                place += rest % n * stride;
                rest /= n;
            }
            place
        })
    }
}

/// Buffers that views are made of.
#[derive(Clone, Default)]
pub struct Arena {
    buffers: Vec<Buffer>,
}

impl Arena {
    /// Makes room for a tensor of `shape` whose dimensions lie in memory in the order `order`, outermost first.
    /// Dimensions named in `broadcast` get stride 0.
    pub fn add(
        &mut self,
        dtype: DType,
        shape: &[usize],
        order: &[usize],
        broadcast: &[usize],
        placing: Placing,
    ) -> Slot {
        let mut strides = vec![0; shape.len()];
        let mut next = 1 + placing.gap;
        for (level, &dimension) in order.iter().rev().enumerate() {
            if broadcast.contains(&dimension) {
                continue;
            }
            strides[dimension] = next;
            next *= shape[dimension].max(1);
            if level == 0 {
                next += placing.row_pad;
            }
        }
        let buffer = Buffer::new(dtype, placing.offset + next + 5);
        self.buffers.push(buffer);
        Slot { buffer: self.buffers.len() - 1, dtype, offset: placing.offset, shape: shape.to_vec(), strides }
    }

    /// Fills a slot from a function of the flat row-major index.
    pub fn fill(&mut self, slot: &Slot, mut value: impl FnMut(usize) -> f64) {
        let places: Vec<usize> = slot.places().collect();
        for (flat, place) in places.into_iter().enumerate() {
            self.buffers[slot.buffer].set(place, value(flat));
        }
    }

    /// Marks a slot as not written yet.
    pub fn fill_unwritten(&mut self, slot: &Slot) {
        let places: Vec<usize> = slot.places().collect();
        for place in places {
            self.buffers[slot.buffer].set_bits(place, pattern(UNWRITTEN, slot.dtype));
        }
    }

    /// The elements, widened.
    pub fn read(&self, slot: &Slot) -> Tensor {
        let buffer = &self.buffers[slot.buffer];
        Tensor::new(&slot.shape, slot.places().map(|place| buffer.get(place)).collect())
    }

    /// A shared view.
    pub fn view<const R: usize>(&self, slot: &Slot) -> TensorRef<'_, R> {
        let (words, o) = (&self.buffers[slot.buffer].words, slot.offset);
        let shape = slot.shape.as_slice().try_into().expect("the slot has R dimensions");
        let strides = slot.strides.as_slice().try_into().expect("the slot has R dimensions");
        match slot.dtype {
            DType::F32 => TensorRef::strided(&bytemuck::cast_slice::<u64, f32>(words)[o..], shape, strides),
            DType::F16 => TensorRef::strided(&bytemuck::cast_slice::<u64, f16>(words)[o..], shape, strides),
            DType::BF16 => TensorRef::strided(&bytemuck::cast_slice::<u64, bf16>(words)[o..], shape, strides),
        }
        .expect("a slot lies inside its buffer")
    }

    /// The addresses of the buffers, from which any number of exclusive views can be made at a time.
    pub fn exclusive(&mut self) -> Exclusive<'_> {
        Exclusive {
            pointers: self.buffers.iter_mut().map(|b| b.words.as_mut_ptr().cast()).collect(),
            arena: std::marker::PhantomData,
        }
    }

    /// Names the first element outside all `slots` that is no canary any more.
    pub fn trespass(&self, slots: &[&Slot]) -> Option<String> {
        for (index, buffer) in self.buffers.iter().enumerate() {
            let mut covered = vec![false; buffer.len];
            for slot in slots.iter().filter(|s| s.buffer == index) {
                slot.places().for_each(|place| covered[place] = true);
            }
            let canary = pattern(CANARY, buffer.dtype);
            if let Some(place) = (0..buffer.len).find(|&i| !covered[i] && buffer.bits(i) != canary) {
                return Some(format!(
                    "element {place} of buffer {index}, of {}, which no view covers",
                    buffer.len
                ));
            }
        }
        None
    }

    /// True if both hold the same bits.
    pub fn same_bits(&self, other: &Self) -> bool {
        self.buffers.len() == other.buffers.len()
            && self.buffers.iter().zip(&other.buffers).all(|(a, b)| a.words == b.words)
    }
}

/// See [`Arena::exclusive`].
pub struct Exclusive<'a> {
    pointers: Vec<*mut u8>,
    arena: std::marker::PhantomData<&'a mut Arena>,
}

impl<'a> Exclusive<'a> {
    /// An exclusive view. The caller asks once for each slot, and its slots do not overlap.
    pub fn view<const R: usize>(&self, slot: &Slot) -> TensorMut<'a, R> {
        let shape = slot.shape.as_slice().try_into().expect("the slot has R dimensions");
        let strides = slot.strides.as_slice().try_into().expect("the slot has R dimensions");
        let start = self.pointers[slot.buffer].wrapping_add(slot.offset * slot.dtype.size());
        // SAFETY: the slot lies inside its buffer, which is borrowed exclusively for 'a, and is aligned to 8 bytes;
        // slots of one buffer are disjoint, and each is viewed once.
        unsafe { TensorMut::from_raw_parts(start, slot.dtype, shape, strides) }
            .expect("slots are well formed")
    }
}
