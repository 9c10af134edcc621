//! The GPU bench's arithmetic and command line, which need no GPU.

#[path = "../benches/gpu/grid.rs"]
#[cfg_attr(feature = "cuda", allow(dead_code, reason = "only some of it is tested here"))]
mod grid;
#[path = "../benches/gpu/options.rs"]
#[allow(dead_code, reason = "only some of it is tested here")]
mod options;
#[path = "../benches/gpu/ptxas.rs"]
mod ptxas;
#[path = "../benches/gpu/roofline.rs"]
mod roofline;
#[path = "../benches/gpu/steadiness.rs"]
#[allow(dead_code, reason = "only some of it is tested here")]
mod steadiness;
#[path = "../benches/support/mod.rs"]
#[allow(dead_code, reason = "only some of it is tested here")]
mod support;

use std::time::Duration;

use grid::Extent;
use inducer_attention::DType;
use options::{Options, Task, selects, words};
use roofline::{Bound, Card, floor};
use steadiness::{End, end, noise, slowdown};
use support::shapes::{Mask, Pass};

fn parse(line: &str) -> Result<Options, String> {
    Options::parse(line.split(' ').filter(|a| !a.is_empty()).map(str::to_owned))
}

/// A card with the data sheet's figures of an H100 SXM.
fn card() -> Card {
    Card {
        name: "NVIDIA H100 80GB HBM3".into(),
        capability: (9, 0),
        multiprocessors: 132,
        clock: 1.83e9,
        bandwidth: 3.35e12,
        l2_bytes: 50 << 20,
        memory_bytes: 80 << 30,
        threads_per_multiprocessor: 2048,
    }
}

#[test]
fn every_problem_fills_a_gpu_with_as_much_work_as_the_field_measures() {
    for extent in [Extent::Quick, Extent::Standard, Extent::Full] {
        for case in extent.cases(8) {
            assert_eq!(case.batch * case.n, 16384, "{case:?}");
            assert_eq!(case.heads * case.head_dim, 2048, "{case:?}");
        }
    }
}

#[test]
fn labels_of_the_smaller_grids_are_labels_of_the_full_one() {
    // `--once` and `--serve` look there.
    let full = Extent::Full.cases(8);
    for extent in [Extent::Quick, Extent::Standard] {
        for case in extent.cases(8) {
            assert!(full.contains(&case), "{}", case.label(Pass::Forward));
        }
    }
}

#[test]
fn every_tensor_is_moved_once() {
    let case = grid::case(DType::BF16, Mask::Full, 128, 4096, 8);
    let tensor = 16384.0 * 2048.0 * 2.0;
    let lse = 16384.0 * 16.0 * 4.0;
    let got = grid::bytes(&case, Pass::Forward, false);
    assert!((got - (4.0 * tensor + lse)).abs() < 1.0, "{got}");
    let got = grid::bytes(&case, Pass::Backward, false);
    assert!((got - (8.0 * tensor + lse)).abs() < 1.0, "{got}");
    // Two adapters of f32: A, a, B, b.
    let adapters = 2.0 * 16.0 * 4.0 * (2.0 * 128.0 * 8.0 + 8.0 + 128.0);
    let got = grid::bytes(&case, Pass::Forward, true);
    assert!((got - (4.0 * tensor + lse + adapters)).abs() < 1.0, "{got}");
}

#[test]
fn ceilings_are_those_of_the_data_sheets() {
    // Dense 16-bit TFLOP/s with sums in f32: H100 SXM 989, A100 312, RTX 4090 165, L40S 362.
    let other = |name: &str, capability, multiprocessors, clock| Card {
        name: name.into(),
        capability,
        multiprocessors,
        clock,
        ..card()
    };
    for (card, tflops) in [
        (card(), 989.0),
        (other("NVIDIA A100-SXM4-80GB", (8, 0), 108, 1.41e9), 312.0),
        (other("NVIDIA GeForce RTX 4090", (8, 9), 128, 2.52e9), 165.0),
        (other("NVIDIA L40S", (8, 9), 142, 2.49e9), 362.0),
    ] {
        let peak = card.peak(DType::BF16).unwrap() / 1e12;
        assert!((peak / tflops - 1.0).abs() < 0.01, "{}: {peak}", card.name);
    }
    assert_eq!(other("something new", (13, 0), 100, 1e9).peak(DType::F16), None);
}

#[test]
fn the_higher_ceiling_bounds() {
    let card = card();
    let (seconds, bound) = floor(&card, DType::BF16, 989e9, 1e6).unwrap();
    assert!((seconds - 1e-3).abs() < 1e-5 && bound == Bound::Tensor);
    let (seconds, bound) = floor(&card, DType::BF16, 1e6, 3.35e9).unwrap();
    assert!((seconds - 1e-3).abs() < 1e-5 && bound == Bound::Bandwidth);
    assert_eq!(floor(&card, DType::F32, 1e12, 1.0).unwrap().1.name(), "fma");
}

#[test]
fn noise_is_the_standard_deviation_over_the_mean() {
    assert_eq!(noise(&[1.0]), None);
    assert!((noise(&[1.0, 3.0]).unwrap() - 2f64.sqrt() / 2.0).abs() < 1e-12);
    assert_eq!(noise(&[2.0; 5]), Some(0.0));
}

#[test]
fn a_measurement_ends_when_it_is_steady_or_late() {
    let (budget, early, late) = (Duration::from_secs(1), Duration::ZERO, Duration::from_secs(2));
    let steady = vec![1.0; 20];
    let wild: Vec<f64> = (0..20).map(|i| 1.0 + f64::from(i % 2)).collect();
    assert_eq!(end(&[&steady, &steady], early, budget), Some(End::Steady));
    assert_eq!(end(&[&steady, &wild], early, budget), None);
    assert_eq!(end(&[&steady, &wild], late, budget), Some(End::TimeLimit));
    assert_eq!(end(&[&steady[..3]], early, budget), None, "three rounds are too few");
    // A slow beginning is forgotten.
    let settled: Vec<f64> = (0..20).map(|i| if i < 5 { 2.0 } else { 1.0 }).collect();
    assert_eq!(end(&[&settled], early, budget), Some(End::Steady));
}

#[test]
fn a_card_that_slows_down_is_noticed() {
    assert_eq!(slowdown(&[1.0; 30]), None);
    let throttled: Vec<f64> = (0..30).map(|i| if i < 15 { 1.0 } else { 1.2 }).collect();
    assert!((slowdown(&throttled).unwrap() - 0.2).abs() < 1e-12);
    assert_eq!(slowdown(&[1.0]), None);
}

const REPORT: &str = "\
== forward_sm80 sm_80
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'forward_bf16_d64' for 'sm_80'
ptxas info    : Function properties for forward_bf16_d64
    16 bytes stack frame, 12 bytes spill stores, 8 bytes spill loads
ptxas info    : Used 217 registers, used 1 barriers, 16 bytes cumulative stack size, 904 bytes cmem[0]
ptxas info    : Compile time = 1.000 ms
== forward_sm80 sm_90
ptxas info    : Compiling entry function 'forward_bf16_d64' for 'sm_90'
ptxas info    : Function properties for forward_bf16_d64
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 224 registers, used 1 barriers
";

#[test]
fn the_compilers_report_becomes_a_table() {
    let usages = ptxas::parse(REPORT);
    let first = ptxas::Usage {
        kernel: "forward_bf16_d64".into(),
        target: 80,
        registers: 217,
        spilled: [12, 8],
        stack: 16,
    };
    assert_eq!(usages[0], first);
    assert_eq!((usages.len(), usages[1].target, usages[1].registers), (2, 90, 224));
    let table = ptxas::print(&usages, |kernel| (kernel == "forward_bf16_d64").then_some(32768));
    let row = table.lines().last().unwrap();
    assert_eq!(row.split_whitespace().collect::<Vec<_>>(), ["forward_bf16_d64", "32768", "16", "217", "224"]);
    assert!(ptxas::parse("").is_empty());
}

#[test]
fn the_command_line_is_understood() {
    let options =
        parse("--bench --full --rank=4 --filter fwd d64 --json out.json --gpu 1 --require-gpu").unwrap();
    assert_eq!((options.extent, options.rank, options.gpu), (Extent::Full, 4, 1));
    assert!(options.require_gpu && options.task == Task::Measure);
    assert!(selects(&options.filter, "fwd bf16 full d64 n512"));
    assert!(!selects(&options.filter, "fwd bf16 full d640 n512"));
    assert_eq!(parse("").unwrap().budget, Duration::from_secs(2));
    let once: Vec<String> = words("BWD d128  n4096 off").collect();
    let options = Options::parse(["--once", "BWD d128  n4096 off"].map(str::to_owned)).unwrap();
    assert_eq!(options.task, Task::Once(once));
}

#[test]
fn mistakes_on_the_command_line_name_the_argument() {
    for (line, part) in [
        ("--qiuck", "--qiuck is not an option"),
        ("--quick --full", "exclude each other"),
        ("--smoke --serve", "only one at a time"),
        ("--quick=yes", "--quick takes no value"),
        ("--json", "--json needs a value"),
        ("--once=", "--once needs a value"),
        ("--gpu x", "--gpu x"),
        ("--rank 65", "--rank 65: expected a whole number from 1 to 64"),
        ("--seconds 0", "--seconds 0"),
    ] {
        let mistake = parse(line).unwrap_err();
        assert!(mistake.contains(part), "{line}: {mistake}");
    }
}
