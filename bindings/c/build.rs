//! Tells the tests for which target they are compiled, which they compile C for, too.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-env=TEST_TARGET={}", std::env::var("TARGET").expect("cargo sets it"));
}
