//! Looking for numbers that are not finite.

use crate::cpu::simd::pack::Natural;
use crate::cpu::simd::vector::Vector;
use crate::tensor::{DType, read};

/// Sets `finite` to whether every element is.
///
/// # Safety
/// The contract of [`Vector`]; the rows are readable, `finite` writable.
#[inline(always)]
pub(crate) unsafe fn all_finite<V: Vector>(rows: &Natural, finite: *mut bool) {
    // Zero times anything finite is zero, times anything else NaN.
    let mut sum = V::zero();
    let mut tail = 0.0_f32;
    for r in 0..rows.rows {
        let row = rows.data.offset(r as isize * rows.stride);
        let mut c = 0;
        while c + V::LANES <= rows.cols {
            let x = match rows.dtype {
                DType::F32 => V::load(row.cast::<f32>().add(c)),
                DType::F16 => V::load_f16(row.cast::<u16>().add(c)),
                DType::BF16 => V::load_bf16(row.cast::<u16>().add(c)),
            };
            sum = V::fma(x, V::zero(), sum);
            c += V::LANES;
        }
        while c < rows.cols {
            tail += read(rows.dtype, row.add(c * rows.dtype.size())) * 0.0;
            c += 1;
        }
    }
    *finite = V::all(V::eq(sum, V::zero())) && tail == 0.0;
}
