//! What the CUDA compiler says of the kernels: no spills, no local memory, registers and shared memory within the budget, tensor
//! core instructions where they belong. Runs wherever nvcc was there when the crate was built.

#![cfg(feature = "cuda")]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::Path;

use inducer_attention::DType;
use inducer_attention::cuda::compiler_report;
use inducer_attention::cuda::kernels::{Abilities, KERNELS, Kernel, Pass, Tier};

const BUDGET: &str = "kernels/budget.txt";

/// Set it to write the budget anew, from what the kernels take now.
const UPDATE: &str = "UPDATE_KERNEL_BUDGET";

/// Registers of a multiprocessor.
const REGISTER_FILE: u32 = 65536;

/// What ptxas says of one kernel for one target.
#[derive(Debug, Default)]
struct Usage {
    registers: u32,
    stack: u32,
    spill_stores: u32,
    spill_loads: u32,
    static_shared: u32,
}

type Report = BTreeMap<(&'static str, u32), Usage>;

/// The kernels that the report is about; `None`, with a line that says so, where there is no report.
fn report() -> Option<Report> {
    let text = compiler_report();
    if text.is_empty() {
        eprintln!(
            "left out: no nvcc was found when this crate was built, so there is no report on its kernels"
        );
        return None;
    }
    let mut report = Report::new();
    let mut at = None;
    for line in text.lines() {
        if let Some(rest) = line.split("Compiling entry function '").nth(1) {
            let mut quoted = rest.split('\'');
            let name = quoted.next().expect("a name");
            let target = quoted
                .nth(1)
                .and_then(|t| t.strip_prefix("sm_")?.trim_end_matches('a').parse().ok())
                .expect("a target");
            let kernel = KERNELS.iter().find(|k| k.name == name);
            let kernel = kernel.unwrap_or_else(|| panic!("{name} is not in kernels/list.h"));
            at = Some((kernel.name, target));
        }
        let Some(usage) = at.map(|key| report.entry(key).or_default()) else { continue };
        // "Used 168 registers, ..., 40 bytes smem", "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads"
        for part in line.split(',').map(|p| p.trim().trim_start_matches("ptxas info    : ").trim()) {
            let number = part.split_whitespace().find_map(|word| word.parse().ok()).unwrap_or(0);
            match part {
                p if p.ends_with("stack frame") => usage.stack = number,
                p if p.ends_with("spill stores") => usage.spill_stores = number,
                p if p.ends_with("spill loads") => usage.spill_loads = number,
                p if p.ends_with("registers") => usage.registers = number,
                p if p.ends_with("bytes smem") => usage.static_shared = number,
                _ => {}
            }
        }
    }
    Some(report)
}

fn kernel(name: &str) -> &'static Kernel {
    KERNELS.iter().find(|k| k.name == name).expect("the report holds kernels of the list")
}

#[test]
fn nothing_spills() {
    let bad: Vec<_> = report()
        .into_iter()
        .flatten()
        .filter(|(_, u)| u.stack + u.spill_stores + u.spill_loads + u.static_shared > 0)
        .collect();
    assert!(bad.is_empty(), "kernels that use local or static shared memory: {bad:#?}");
}

#[test]
fn as_many_blocks_fit_as_the_list_says() {
    for ((name, target), usage) in report().into_iter().flatten() {
        let k = kernel(name);
        // Registers are dealt out to warps in units of 256, 8 a thread.
        let block = usage.registers.next_multiple_of(8) * k.threads();
        assert!(
            block * k.blocks <= REGISTER_FILE,
            "{name} on sm_{target}: {} blocks of {} threads with {} registers",
            k.blocks,
            k.threads(),
            usage.registers
        );
    }
}

/// Rows of the budget: shared memory, and registers by target.
type Budget = BTreeMap<String, (u32, BTreeMap<u32, u32>)>;

/// In the budget, instead of registers: code for that target does not hold the kernel.
const LEFT_OUT: &str = "-";

fn read_budget() -> Budget {
    let text = std::fs::read_to_string(BUDGET).unwrap_or_else(|e| panic!("{BUDGET}: {e}"));
    let mut lines = text.lines().filter(|l| !l.starts_with('#') && !l.trim().is_empty());
    let header: Vec<&str> = lines.next().expect("a header").split_whitespace().collect();
    let targets: Vec<u32> = header[2..].iter().filter_map(|t| t.strip_prefix("sm_")?.parse().ok()).collect();
    lines
        .map(|line| {
            let mut cells = line.split_whitespace();
            let name = cells.next().expect("a name").to_owned();
            let shared = cells.next().and_then(|c| c.parse().ok()).expect("bytes of shared memory");
            let registers = targets.iter().copied().zip(cells).filter(|&(_, cell)| cell != LEFT_OUT);
            (name, (shared, registers.map(|(target, c)| (target, c.parse().expect("a number"))).collect()))
        })
        .collect()
}

/// What this build has no report on keeps its budget.
fn write_budget(report: &Report) {
    let old = std::fs::exists(BUDGET).is_ok_and(|e| e).then(read_budget).unwrap_or_default();
    let old = |name: &str, target: u32| old.get(name).and_then(|line| line.1.get(&target).copied());
    let mut targets: BTreeSet<u32> = report.keys().map(|k| k.1).collect();
    let seen: BTreeSet<u32> = targets.clone();
    let known = |k: &&Kernel, target: u32| {
        let kept = || old(k.name, target).filter(|_| !seen.contains(&target));
        report.get(&(k.name, target)).map(|u| u.registers).or_else(kept)
    };
    targets
        .extend([80, 90, 100, 120].into_iter().filter(|&t| KERNELS.iter().any(|k| old(k.name, t).is_some())));
    let mut text = format!(
        "# What a kernel may take: bytes of shared memory a block, registers a thread for each target. A test holds the\n\
         # compiler's report against it; {UPDATE}=1 writes it anew.\n{:28}{:>8}",
        "kernel", "shared"
    );
    for target in &targets {
        write!(text, "{:>8}", format!("sm_{target}")).unwrap();
    }
    for k in KERNELS.iter().filter(|k| targets.iter().any(|&t| known(k, t).is_some())) {
        write!(text, "\n{:28}{:>8}", k.name, k.shared_bytes()).unwrap();
        for &target in &targets {
            let registers = known(&k, target).map_or(LEFT_OUT.to_owned(), |n| n.to_string());
            write!(text, "{registers:>8}").unwrap();
        }
    }
    std::fs::write(BUDGET, text + "\n").unwrap();
}

#[test]
fn registers_and_shared_memory_stay_within_the_budget() {
    let Some(report) = report() else { return };
    if std::env::var_os(UPDATE).is_some() {
        write_budget(&report);
    }
    let budget = read_budget();
    let mut over = String::new();
    for (&(name, target), usage) in &report {
        let Some((shared, registers)) = budget.get(name) else {
            writeln!(over, "{name} has no line").unwrap();
            continue;
        };
        let needs = kernel(name).shared_bytes();
        if needs > *shared {
            writeln!(over, "{name}: {needs} bytes of shared memory, budget {shared}").unwrap();
        }
        match registers.get(&target) {
            None if budget.values().any(|line| line.1.contains_key(&target)) => {
                writeln!(over, "{name} on sm_{target}: the budget leaves it out").unwrap();
            }
            None => eprintln!("left out: {BUDGET} has no column for sm_{target}"),
            Some(&most) if usage.registers > most => {
                writeln!(over, "{name} on sm_{target}: {} registers, budget {most}", usage.registers)
                    .unwrap();
            }
            Some(_) => {}
        }
    }
    assert!(over.is_empty(), "over {BUDGET}:\n{over}");
}

/// What the devices that run code for a target have; both kinds where there are both, and for targets that are not known here. On
/// Hopper, its own kernels run if they are asked for.
fn devices_of(target: u32) -> &'static [Abilities] {
    const MUCH: Abilities = Abilities { hopper: false, ..Abilities::HOPPER };
    match target {
        86 | 89 | 120 | 121 => &[Abilities::COMMON],
        90 => &[MUCH, Abilities::HOPPER],
        100 | 103 => &[MUCH],
        _ => &[Abilities::COMMON, Abilities::WIDE],
    }
}

#[test]
fn every_device_finds_its_kernels_and_code_holds_no_others() {
    let Some(report) = report() else { return };
    for target in report.keys().map(|key| key.1).collect::<BTreeSet<_>>() {
        let chosen = |k: &Kernel, device| Kernel::find(k.pass, k.dtype, k.head_dim as usize, device).unwrap();
        let devices = devices_of(target).iter();
        let needed: BTreeSet<&str> =
            devices.flat_map(|&device| KERNELS.iter().map(move |k| chosen(k, device).name)).collect();
        let held: BTreeSet<&str> = report.keys().filter(|key| key.1 == target).map(|key| key.0).collect();
        assert_eq!(held, needed, "sm_{target}");
    }
}

#[test]
fn sixteen_bit_kernels_use_tensor_cores() {
    let Some(report) = report() else { return };
    // Rounding and sums need none.
    for (name, target) in report.into_keys().filter(|k| kernel(k.0).pass != Pass::BackwardFinish) {
        let code = code(name, target);
        let count = |wanted: u64| code.iter().filter(|words| words.0 & 0xfff == wanted).count();
        let (products, of_warpgroups) = (count(HMMA), count(HGMMA[0]) + count(HGMMA[1]));
        let uses = (products > 0, of_warpgroups > 0);
        let expected = match kernel(name) {
            Kernel { dtype: DType::F32, .. } => (false, false),
            // Single warps make what the virtual token is made of.
            Kernel { tier: Tier::Hopper, pass, .. } => (*pass == Pass::Forward, true),
            _ => (true, false),
        };
        assert_eq!(
            uses, expected,
            "{name} on sm_{target}: {products} HMMA and {of_warpgroups} HGMMA instructions"
        );
    }
}

/// In the forward for Hopper, exponentials are computed while O += P V is under way: all of a tile's, between the wait for its scores
/// and the wait for O. (The assembler would rather compute them behind the second wait; see the source.)
#[test]
fn exponentials_are_computed_while_products_are_under_way() {
    let Some(report) = report() else { return };
    let hopper = |k: &Kernel| k.tier == Tier::Hopper && k.pass == Pass::Forward;
    for (name, target) in report.into_keys().filter(|key| hopper(kernel(key.0))) {
        let code = code(name, target);
        let is_wait = |i: &usize| code[*i].0 & 0xfff == DEPBAR && code[*i].0 >> 32 == DEPBAR_OF_GROUPS;
        let waits: Vec<usize> = (0..code.len()).filter(is_wait).collect();
        // Groups that a wait leaves under way.
        let first =
            waits.iter().position(|&i| code[i].1 >> 8 & 0xff == 1).expect("a wait for one of two groups");
        let between = &code[waits[first]..waits[first + 1]];
        let exponentials = between.iter().filter(|words| words.0 & 0xfff == MUFU).count();
        let needed = (kernel(name).keys / 2) as usize;
        assert!(exponentials >= needed, "{name} on sm_{target}: {exponentials} of {needed}");
    }
}

/// Opcode of MUFU, exponentials and reciprocals.
const MUFU: u64 = 0x308;

/// Opcode of DEPBAR, and what is in the upper half of its first word where it waits for products of warpgroups.
const DEPBAR: u64 = 0x9c5;
const DEPBAR_OF_GROUPS: u64 = 0x8000;

/// Opcode of HMMA, the product of 16-bit matrices, since Volta.
const HMMA: u64 = 0x23c;

/// Opcodes of HGMMA, the same of a warpgroup: the left matrix in registers, or in shared memory.
const HGMMA: [u64; 2] = [0x9f0, 0xdf0];

/// The code of a kernel: instructions, two words each, of which the first's low 12 bits are the opcode.
fn code(name: &str, target: u32) -> Vec<(u64, u64)> {
    let entries = std::fs::read_dir(env!("OUT_DIR")).unwrap();
    let mut cubins = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.to_string_lossy().ends_with(&format!(".sm_{target}.cubin")));
    cubins
        .find_map(|path| instructions(&path, name))
        .unwrap_or_else(|| panic!("no cubin for sm_{target} holds {name}"))
}

/// The same from one cubin, an ELF file; `None` if it does not hold the kernel.
fn instructions(cubin: &Path, name: &str) -> Option<Vec<(u64, u64)>> {
    let elf = std::fs::read(cubin).unwrap();
    let word = |at: usize, bytes: usize| -> usize {
        elf[at..at + bytes].iter().rev().fold(0, |n, &b| n << 8 | usize::from(b))
    };
    let (headers, size, count, names) = (word(40, 8), word(58, 2), word(60, 2), word(62, 2));
    let section = |i: usize| {
        let at = headers + i * size;
        (word(at, 4), word(at + 24, 8), word(at + 32, 8))
    };
    let (_, names, _) = section(names);
    let wanted = format!(".text.{name}");
    (0..count).map(section).find_map(|(name_at, start, length)| {
        let text = &elf[names + name_at..];
        let end = text.iter().position(|&b| b == 0)?;
        (&text[..end] == wanted.as_bytes())
            .then(|| {
                (start..start + length).step_by(16).map(|at| (word(at, 8) as u64, word(at + 8, 8) as u64))
            })
            .map(Iterator::collect)
    })
}
