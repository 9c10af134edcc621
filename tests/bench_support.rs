//! The benches' arithmetic and command line.

#[path = "../benches/support/mod.rs"]
#[allow(dead_code, reason = "only some of it is tested here")]
mod support;

use std::time::Duration;

use inducer_attention::DType;
use inducer_attention::cpu::InstructionSet;
use support::machine::utc;
use support::options::{Options, set_name};
use support::shapes::{Case, Extent, Mask, Pass};
use support::statistics::Summary;
use support::table::{Column, header, row};
use support::timing::compare;

fn parse(line: &str) -> Result<Options, String> {
    Options::parse(line.split(' ').filter(|a| !a.is_empty()).map(str::to_owned))
}

#[test]
fn work_is_counted_as_the_field_counts_it() {
    let case = |mask, n| Case { heads: 3, batch: 2, ..Case::new(DType::F32, mask, 64, n, 8) };
    let full = 4.0 * 1000.0 * 1000.0 * 64.0 * 3.0 * 2.0;
    for (mask, pass, expected) in [
        (Mask::Full, Pass::Forward, full),
        (Mask::Full, Pass::Backward, 2.5 * full),
        (Mask::Causal, Pass::Forward, full / 2.0),
        (Mask::Causal, Pass::Backward, 1.25 * full),
    ] {
        let got = case(mask, 1000).attention_flop(pass);
        assert!((got / expected - 1.0).abs() < 1e-12, "{mask} {pass}: {got}, not {expected}");
    }
    // 8·d·r per query and head.
    let got = case(Mask::Full, 1000).inducer_flop(Pass::Forward);
    assert!((got / (8.0 * 64.0 * 8.0 * 1000.0 * 3.0 * 2.0) - 1.0).abs() < 1e-12, "{got}");
}

#[test]
fn a_window_counts_the_pairs_that_the_setting_makes_visible() {
    for n in [1, 100, 256, 257, 1000] {
        let config = Mask::Window.config();
        assert!(config.causal);
        let left = config.window_left.unwrap() as usize;
        let visible: usize = (0..n).map(|i: usize| i - i.saturating_sub(left) + 1).sum();
        let got = Mask::Window.pairs(n);
        assert!((got - visible as f64).abs() < 1e-6, "n {n}: {got}, not {visible}");
    }
}

#[test]
fn every_length_makes_about_the_same_number_of_rows() {
    for extent in [Extent::Quick, Extent::Standard, Extent::Full] {
        for case in extent.cases(8) {
            let rows = case.n * case.heads * case.batch;
            assert!(rows == 8192 || (case.n > 8192 && rows == case.n), "{case:?}");
        }
    }
}

#[test]
fn medians_and_spreads_withstand_outliers() {
    let summary = Summary::of(&[3.0, 1.0, 2.0, 1000.0, 4.0]).unwrap();
    assert_eq!(summary, Summary { median: 3.0, spread: 1.0, samples: 5 });
    let summary = Summary::of(&[2.0, 1.0]).unwrap();
    assert_eq!(summary, Summary { median: 1.5, spread: 0.25, samples: 2 });
    assert_eq!(Summary::of(&[]), None);
}

#[test]
fn contestants_take_turns() {
    let calls = std::cell::RefCell::new(String::new());
    let call = |name| {
        let calls = &calls;
        move || -> Result<(), std::convert::Infallible> {
            calls.borrow_mut().push(name);
            Ok(())
        }
    };
    let times = compare(Duration::ZERO, call('a'), call('b')).unwrap();
    // A warm-up, then rounds that alternate who is first.
    let calls = calls.borrow();
    assert!(calls.starts_with("abab"), "{calls}");
    assert_eq!(calls.len(), 2 + 2 * times.ratio.samples);
    assert_eq!(compare(Duration::from_millis(1), || Err("first"), || Ok(())).unwrap_err(), "first");
}

#[test]
fn dates_are_those_of_the_calendar() {
    for (seconds, date) in [
        (0, "1970-01-01T00:00:00Z"),
        (951_827_696, "2000-02-29T12:34:56Z"),
        (1_709_251_199, "2024-02-29T23:59:59Z"),
        (4_107_542_400, "2100-03-01T00:00:00Z"),
    ] {
        assert_eq!(utc(seconds), date);
    }
}

#[test]
fn the_command_line_is_understood() {
    let options = parse("--bench --full --threads 1,2 --rank=4 --set PORTABLE --filter fwd d64").unwrap();
    assert_eq!(options.extent, Extent::Full);
    assert_eq!((options.threads.as_slice(), options.rank), (&[1, 2][..], 4));
    assert_eq!(options.set, Some(InstructionSet::Portable));
    assert_eq!(options.budget, Duration::from_secs(3));
    assert!(options.selects("fwd f32 full d64 n512"));
    assert!(!options.selects("bwd f32 full d64 n512"));
    assert!(!options.selects("fwd f32 full d640 n512"));
    let options = parse("--bench").unwrap();
    assert_eq!((options.extent, options.json), (Extent::Standard, None));
    assert!(parse("--help").unwrap().help);
}

#[test]
fn mistakes_on_the_command_line_name_the_argument() {
    for (line, part) in [
        ("--qiuck", "--qiuck is not an option"),
        ("--fast=3", "--fast is not an option"),
        ("-x", "-x is not an option"),
        ("--quick --full", "exclude each other"),
        ("--quick=yes", "--quick takes no value"),
        ("--json", "--json needs a value"),
        ("--json=", "--json needs a value"),
        ("--threads 0", "--threads 0"),
        ("--threads 2,", "--threads 2,"),
        ("--threads 99999999999999999999", "expected whole numbers"),
        ("--rank 65", "--rank 65: expected a whole number from 1 to 64"),
        ("--seconds nan", "--seconds nan"),
        ("--seconds -1", "--seconds -1"),
        ("--set sse9", "--set sse9: expected one of avx512bf16, avx512, avx2, portable"),
    ] {
        let mistake = parse(line).unwrap_err();
        assert!(mistake.contains(part), "{line}: {mistake}");
    }
    for set in InstructionSet::ALL {
        assert_eq!(parse(&format!("--set {}", set_name(set))).is_ok(), set.is_available());
    }
}

#[test]
fn tables_align_titles_and_cells() {
    let column = |group, title, width| Column { group, title, width };
    let columns = [column("", "N", 4), column("on", "ms", 6), column("", "x", 3)];
    assert_eq!(header(&columns), "          on\n   N      ms    x\n-----------------");
    let cells = ["12", "3.456", "7"].map(str::to_owned);
    assert_eq!(row(&columns, &cells), "  12   3.456    7");
}
