//! Every backend against the f64 oracle on cases in which each feature meets each other one.

mod common;

use common::agreement::check;
#[cfg(feature = "emulator")]
use common::agreement::check_on;
#[cfg(feature = "emulator")]
use common::emulated::Emulated;
use common::pairwise;
#[cfg(feature = "emulator")]
use inducer_attention::cuda::plan::SumOrder;

#[test]
fn backends_agree_where_any_two_features_meet() {
    for (i, case) in pairwise::cases(1).iter().enumerate() {
        check(case).unwrap_or_else(|e| panic!("case {i}: {e}\n{case:#?}"));
    }
}

/// dQ summed as tiles come.
#[cfg(feature = "emulator")]
#[test]
fn emulated_kernels_agree_in_any_order_of_sums() {
    let emulated = Emulated { order: SumOrder::Any, ..Emulated::default() };
    for (i, case) in pairwise::cases(2).iter().enumerate().step_by(4) {
        check_on(&emulated, case).unwrap_or_else(|e| panic!("case {i}: {e}\n{case:#?}"));
    }
}
