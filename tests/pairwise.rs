//! Every backend against the f64 oracle on cases in which each feature meets each other one.

mod common;

use common::agreement::check;
use common::pairwise;

#[test]
fn backends_agree_where_any_two_features_meet() {
    for (i, case) in pairwise::cases(1).iter().enumerate() {
        check(case).unwrap_or_else(|e| panic!("case {i}: {e}\n{case:#?}"));
    }
}
