//! Every backend against the f64 oracle, and what holds exactly.

mod common;

use common::agreement::check;
use common::draw;
use proptest::prelude::*;

proptest! {
    #![proptest_config(draw::config_of(150))]

    #[test]
    fn backends_agree_with_the_oracle(case in draw::case()) {
        check(&case).map_err(TestCaseError::fail)?;
    }
}
