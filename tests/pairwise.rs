//! Every backend against the f64 oracle on cases in which each feature meets each other one.

mod common;

use common::agreement::check;
#[cfg(feature = "emulator")]
use common::agreement::check_on;
#[cfg(feature = "emulator")]
use common::case::{Case, InducerCase, KeyCase, ValueCase};
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

/// dQ summed as tiles come, and tiles for more shared memory than every GPU has.
#[cfg(feature = "emulator")]
#[test]
fn emulated_kernels_agree_with_other_settings() {
    let any_order = Settings { order: SumOrder::Any, ..Settings::default() };
    let wide = Settings { device: Abilities::WIDE, ..Settings::default() };
    let hopper = Settings { device: Emulated::hopper().settings.device, ..any_order };
    let is_wide = |case: &Case| case.dtype != DType::F32 && case.head_dim > 64;
    let cases = pairwise::cases(2);
    for (i, case) in cases.iter().enumerate() {
        let settings = if is_wide(case) {
            if i % 3 == 0 { hopper } else { wide }
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

/// Loops over tiles that need no mask, which smaller cases do not come to: keys in a row, a prefix before them, and what a causal mask or
/// a window leaves between masked tiles.
#[cfg(feature = "emulator")]
#[test]
fn emulated_kernels_agree_over_many_tiles() {
    let inducer = Some(InducerCase::new(KeyCase::Residual { rank: 8 }, ValueCase::Residual { rank: 8 }));
    for (dtype, head_dim) in [(DType::BF16, 64), (DType::BF16, 128), (DType::F16, 128), (DType::F16, 256)] {
        let full = Case {
            dtype,
            parameter_dtype: dtype,
            head_dim,
            kv_heads: 1,
            rows: 100,
            keys: 660,
            inducer,
            ..Case::default()
        };
        let mut causal = Case { rows: 200, ..full.clone() };
        causal.config.causal = true;
        let mut window = causal.clone();
        window.config.window_left = Some(390);
        let prefix = Case { prefix: Some(400), keys: 270, ..full.clone() };
        for case in [full, causal, window, prefix] {
            for backend in [Emulated::default(), Emulated::hopper()] {
                let device = backend.settings.device;
                check_on(&backend, &case).unwrap_or_else(|e| panic!("{device:?}: {e}\n{case:#?}"));
            }
        }
    }
}

/// Blocks that stay on their multiprocessor take tiles of causal sequences by twos; more twos than blocks, also where they do not come
/// out even.
#[test]
fn emulated_kernels_agree_where_tiles_are_taken_by_twos() {
    let mut case = Case {
        dtype: DType::BF16,
        parameter_dtype: DType::BF16,
        head_dim: 64,
        kv_heads: 3,
        ..Case::default()
    };
    case.config.causal = true;
    case.inducer = Some(InducerCase::new(KeyCase::Residual { rank: 8 }, ValueCase::Residual { rank: 8 }));
    for (batch, rows, multiprocessors) in [(2, 200, 2), (1, 500, 1), (2, 500, 3), (17, 130, 4)] {
        let case = Case { batch, rows, keys: rows, ..case.clone() };
        let mut backend = Emulated::hopper();
        backend.settings.device.multiprocessors = multiprocessors;
        check_on(&backend, &case)
            .unwrap_or_else(|e| panic!("{multiprocessors} multiprocessors: {e}\n{case:#?}"));
    }
}
