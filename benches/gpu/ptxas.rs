//! The table that needs no GPU: what the compiler says that each kernel takes.

use crate::support::table::{self, Column};

/// What ptxas says of one kernel for one target.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    /// The kernel.
    pub(crate) kernel: String,
    /// 80 for sm_80.
    pub(crate) target: u32,
    /// Of a thread.
    pub(crate) registers: u32,
    /// Bytes written to and read from local memory for want of registers, each.
    pub(crate) spilled: [u32; 2],
    /// Bytes of local memory of a thread.
    pub(crate) stack: u32,
}

/// Reads `ptxas -v`'s report.
pub(crate) fn parse(report: &str) -> Vec<Usage> {
    let mut all: Vec<Usage> = Vec::new();
    for line in report.lines() {
        if let Some(rest) = line.split("Compiling entry function '").nth(1) {
            let mut quoted = rest.split('\'');
            let kernel = quoted.next().unwrap_or_default().to_owned();
            let target =
                quoted.nth(1).and_then(|t| t.strip_prefix("sm_")?.trim_end_matches('a').parse().ok());
            all.push(Usage { kernel, target: target.unwrap_or_default(), ..Usage::default() });
        }
        let Some(usage) = all.last_mut() else { continue };
        // "Used 168 registers, …", "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads"
        for part in line.split(',') {
            let number = part.split_whitespace().find_map(|word| word.parse().ok()).unwrap_or(0);
            match part.trim() {
                p if p.ends_with("stack frame") => usage.stack = number,
                p if p.ends_with("spill stores") => usage.spilled[0] = number,
                p if p.ends_with("spill loads") => usage.spilled[1] = number,
                p if p.ends_with("registers") => usage.registers = number,
                _ => {}
            }
        }
    }
    all
}

/// The table: one row per kernel, one column of registers per target. `shared` gives a kernel's bytes of shared memory.
pub(crate) fn print(usages: &[Usage], shared: impl Fn(&str) -> Option<u32>) -> String {
    let mut targets: Vec<u32> = usages.iter().map(|u| u.target).collect();
    targets.sort_unstable();
    targets.dedup();
    let titles: Vec<String> = targets.iter().map(|t| format!("sm_{t}")).collect();
    let mut columns = vec![
        Column { group: "", title: "kernel", width: 26 },
        Column { group: "bytes of", title: "shared", width: 8 },
        Column { group: "", title: "spilled", width: 7 },
    ];
    columns.extend(titles.iter().enumerate().map(|(i, title)| Column {
        group: if i == 0 { "registers" } else { "" },
        title,
        width: 6,
    }));
    let mut text = table::header(&columns);
    let mut kernels: Vec<&str> = Vec::new();
    for usage in usages {
        if !kernels.contains(&usage.kernel.as_str()) {
            kernels.push(&usage.kernel);
        }
    }
    for kernel in kernels {
        let own = || usages.iter().filter(|u| u.kernel == kernel);
        let spilled: u32 = own().map(|u| u.stack.max(u.spilled[0]).max(u.spilled[1])).max().unwrap_or(0);
        let mut cells = vec![
            kernel.to_owned(),
            shared(kernel).map_or_else(String::new, |bytes| bytes.to_string()),
            spilled.to_string(),
        ];
        cells.extend(targets.iter().map(|&target| {
            own().find(|u| u.target == target).map_or_else(String::new, |u| u.registers.to_string())
        }));
        text.push('\n');
        text.push_str(&table::row(&columns, &cells));
    }
    text
}
