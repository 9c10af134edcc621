//! Every backend against the f64 oracle on cases in which each feature meets each other one.

mod common;

use common::agreement::check;
#[cfg(feature = "emulator")]
use common::agreement::check_on;
#[cfg(feature = "emulator")]
use common::case::Case;
#[cfg(feature = "emulator")]
use common::emulated::Emulated;
use common::pairwise;
#[cfg(feature = "emulator")]
use inducer_attention::DType;
#[cfg(feature = "emulator")]
use inducer_attention::cuda::kernels::Abilities;
#[cfg(feature = "emulator")]
use inducer_attention::cuda::plan::{Settings, SumOrder};

#[test]
fn backends_agree_where_any_two_features_meet() {
    for (i, case) in pairwise::cases(1).iter().enumerate() {
        check(case).unwrap_or_else(|e| panic!("case {i}: {e}\n{case:#?}"));
    }
}

/// Kernels for Hopper.
#[cfg(feature = "emulator")]
#[test]
fn emulated_kernels_of_warpgroups_agree() {
    let orders = [SumOrder::Fixed, SumOrder::Fixed, SumOrder::Fixed, SumOrder::Any];
    let cases = pairwise::cases(4).into_iter().filter(|case| case.dtype != DType::F32);
    for (i, case) in cases.enumerate() {
        // Few, so that blocks take several tiles.
        let device = Abilities { multiprocessors: 1 + i as u32 % 3, ..Abilities::HOPPER };
        let settings = Settings { device, order: orders[i % 4] };
        let emulated = Emulated { settings, ..Emulated::default() };
        check_on(&emulated, &case).unwrap_or_else(|e| panic!("case {i}, {settings:?}: {e}\n{case:#?}"));
    }
}

/// dQ summed as tiles come, and tiles for more shared memory than every GPU has.
#[cfg(feature = "emulator")]
#[test]
fn emulated_kernels_agree_with_other_settings() {
    let any_order = Settings { order: SumOrder::Any, ..Settings::default() };
    let wide = Settings { device: Abilities::WIDE, ..Settings::default() };
    let is_wide = |case: &Case| case.dtype != DType::F32 && case.head_dim > 64;
    let cases = pairwise::cases(2);
    for (i, case) in cases.iter().enumerate() {
        let settings = if is_wide(case) {
            wide
        } else if i % 4 == 0 {
            any_order
        } else {
            continue;
        };
        let emulated = Emulated { settings, ..Emulated::default() };
        check_on(&emulated, case).unwrap_or_else(|e| panic!("case {i}, {settings:?}: {e}\n{case:#?}"));
    }
    assert!(cases.iter().filter(|case| is_wide(case)).count() > 10);
}
