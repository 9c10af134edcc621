//! The table of kernels: from `kernels/list.h`, which names each one once, to Rust.

use std::fmt::Write;
use std::path::Path;

const LIST: &str = "kernels/list.h";

/// Ends the names of passes with wide tiles, and of those for Hopper.
const WIDE: &str = "_wide";
const HOPPER: &str = "_hopper";

/// Writes `$OUT_DIR/kernels.rs`, an array of `Kernel`.
pub fn generate() {
    println!("cargo::rerun-if-changed={LIST}");
    let mut table = String::from("[\n");
    for kernel in kernels() {
        table.push_str(&entry(&kernel).unwrap_or_else(|| panic!("{LIST}: cannot read {kernel:?}")));
    }
    table.push_str("]\n");
    let out = std::env::var("OUT_DIR").expect("cargo sets OUT_DIR");
    std::fs::write(Path::new(&out).join("kernels.rs"), table).expect("OUT_DIR is writable");
}

/// Kernels that no device asks for whose code is a target's: of two for the same problems, the one that those devices have too
/// little shared memory for, or the one that they leave for the other. The rule is that of `Kernel::find`, and the static gates
/// hold it against that.
#[cfg(feature = "cuda")]
pub fn unused(target: u32) -> Vec<String> {
    let wide = kernels().into_iter().filter_map(|kernel| {
        let base = kernel[0].strip_suffix(WIDE)?;
        Some((base.to_owned(), format!("{}_d{}", kernel[1], kernel[2])))
    });
    match target {
        // 227 KB a block, all of them.
        90 | 100 | 103 => wide.map(|(pass, of)| format!("{pass}_{of}")).collect(),
        // 99 KB.
        86 | 89 | 120 | 121 => wide.map(|(pass, of)| format!("{pass}{WIDE}_{of}")).collect(),
        // Code for sm_80 also runs where there are 99 KB.
        _ => Vec::new(),
    }
}

/// `[pass, type, head_dim, rows, keys, warps, blocks]` of every line `X(pass, type, …) \`.
fn kernels() -> Vec<Vec<String>> {
    let list = std::fs::read_to_string(LIST).unwrap_or_else(|e| panic!("{LIST}: {e}"));
    let lines = list.lines().map(str::trim).filter_map(|line| line.strip_prefix("X("));
    lines
        .map(|rest| {
            let (fields, _) = rest.split_once(')').unwrap_or_else(|| panic!("{LIST}: cannot read {rest:?}"));
            fields.split(',').map(|field| field.trim().to_owned()).collect()
        })
        .collect()
}

fn entry(kernel: &[String]) -> Option<String> {
    let [pass, dtype, sizes @ ..] = kernel else { return None };
    let sizes: Vec<u32> = sizes.iter().map(|s| s.parse().ok()).collect::<Option<_>>()?;
    let [head_dim, rows, keys, warps, blocks] = sizes.as_slice() else { return None };
    let (base, tier) = if let Some(base) = pass.strip_suffix(WIDE) {
        (base, "Wide")
    } else if let Some(base) = pass.strip_suffix(HOPPER) {
        (base, "Hopper")
    } else {
        (pass.as_str(), "Common")
    };
    let variant: String = base.split('_').map(|word| word[..1].to_uppercase() + &word[1..]).collect();
    let mut entry = String::new();
    writeln!(
        entry,
        "    Kernel {{ name: \"{pass}_{dtype}_d{head_dim}\", pass: Pass::{variant}, dtype: DType::{}, \
         head_dim: {head_dim}, rows: {rows}, keys: {keys}, warps: {warps}, blocks: {blocks}, tier: Tier::{tier} }},",
        dtype.to_uppercase()
    )
    .ok()?;
    Some(entry)
}
