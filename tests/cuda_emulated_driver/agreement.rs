//! Results against the oracle.

use std::sync::Arc;

use inducer_attention::DType;
use inducer_attention::cuda::kernels::{KERNELS, MOST_SHARED, Pass, Tier};
use inducer_attention::cuda::plan::SumOrder;

use crate::call::{Call, assert_close, on_cpu, values};
use crate::common::agreement::check_on;
use crate::common::case::{Case, LengthsCase, Slopes};
use crate::common::gpu::Gpu;
use crate::common::pairwise;
use crate::world::{calls, context, emulated, engine};

/// What an emulated Hopper device says of itself.
const HOPPER: [(&str, &str); 2] = [("EMULATED_CUDA_SHARED_KB", "227"), ("EMULATED_CUDA_CAPABILITY", "90")];

/// The first device.
fn gpu() -> Gpu {
    let context = context(0);
    Gpu::new(Arc::new(engine(&context)), context.default_stream())
}

/// A share of the pairwise cases, in which every dtype, mask and member of the family is.
fn agree_on_every(gpu: &Gpu, step: usize, wanted: impl Fn(DType, usize) -> bool) {
    let cases = pairwise::cases(3);
    let chosen: Vec<_> =
        cases.iter().filter(|case| wanted(case.dtype, case.head_dim)).step_by(step).collect();
    for case in &chosen {
        check_on(gpu, case).unwrap_or_else(|e| panic!("{e}\n{case:#?}"));
    }
    assert!(chosen.len() >= 5, "{} cases", chosen.len());
    // A forward is one launch, a backward three.
    let cases = chosen.iter().filter(|case| case.rows > 0).count();
    assert!(calls("cuLaunchKernel") >= 4 * cases as u64);
}

#[test]
fn results_agree_with_the_oracle() {
    emulated(&[("EMULATED_CUDA_SHARED_KB", "99"), ("EMULATED_CUDA_CAPABILITY", "89")], || {
        agree_on_every(&gpu(), 6, |_, _| true);
    });
}

#[test]
fn results_with_the_wide_tiles_agree_with_the_oracle() {
    emulated(&[("EMULATED_CUDA_SHARED_KB", "163")], || {
        agree_on_every(&gpu(), 6, |dtype, head_dim| dtype != DType::F32 && head_dim > 64);
    });
}

/// What the engine found: kernels that a block of the device has room for, and what they take. `tier`: the best there are.
fn resources(tier: Tier) {
    let context = context(0);
    let engine = engine(&context).with_hopper_kernels();
    for kernel in KERNELS {
        let resources = engine.resources(kernel);
        let fits = match kernel.tier {
            Tier::Hopper => tier == Tier::Hopper,
            _ => tier > Tier::Common || kernel.shared_bytes() <= MOST_SHARED,
        };
        assert_eq!(resources.is_ok(), fits, "{}: {resources:?}", kernel.name);
        let Ok(resources) = resources else { continue };
        assert_eq!(resources.shared_bytes, kernel.shared_bytes());
        assert!(resources.blocks_per_multiprocessor > 0, "{}: {resources:?}", kernel.name);
    }
    for pass in [Pass::Forward, Pass::Backward] {
        let chosen = engine.kernel(pass, DType::BF16, 128).expect("a kernel");
        assert_eq!(chosen.tier, tier);
    }
}

#[test]
fn a_device_with_little_shared_memory_has_the_narrow_table() {
    emulated(&[("EMULATED_CUDA_SHARED_KB", "99"), ("EMULATED_CUDA_CAPABILITY", "86")], || {
        resources(Tier::Common);
    });
}

#[test]
fn a_device_with_much_shared_memory_has_the_wide_table() {
    emulated(&[], || resources(Tier::Wide));
}

#[test]
fn a_hopper_device_has_the_kernels_of_warpgroups() {
    emulated(&HOPPER, || resources(Tier::Hopper));
}

/// They are chosen only if they are asked for.
#[test]
fn a_hopper_device_runs_the_kernels_of_all_others_as_well() {
    emulated(&HOPPER, || {
        let context = context(0);
        let chosen = engine(&context).kernel(Pass::Forward, DType::BF16, 128).expect("a kernel");
        assert_eq!(chosen.tier, Tier::Wide);
    });
}

#[test]
fn results_of_warpgroups_agree_with_the_oracle() {
    emulated(&HOPPER, || {
        let context = context(0);
        let engine = engine(&context).with_hopper_kernels();
        agree_on_every(&Gpu::new(Arc::new(engine), context.default_stream()), 6, |dtype, _| {
            dtype != DType::F32
        });
    });
}

/// Lists without entries are not copied to the device, and are not missed there.
#[test]
fn a_batch_of_no_entries_is_no_error() {
    emulated(&[], || {
        let case = Case {
            batch: 0,
            alibi: Some(Slopes::PerEntry),
            lengths: LengthsCase::Padded {
                query_lengths: Some(Vec::new()),
                key_lengths: Some(Vec::new()),
                key_starts: Some(Vec::new()),
            },
            ..Case::default()
        };
        check_on(&gpu(), &case).unwrap_or_else(|e| panic!("{e}"));
    });
}

#[test]
fn sums_of_d_q_in_any_order_agree_with_the_cpu() {
    emulated(&[], || {
        let context = context(0);
        let engine = engine(&context).with_sum_order(SumOrder::Any);
        let stream = context.default_stream();
        let mut call = Call::new(&stream, &values(1), [70, 50]);
        call.run(&engine, &stream);
        assert_close(&call.results(&stream), &on_cpu(&values(1), [70, 50]));
    });
}
