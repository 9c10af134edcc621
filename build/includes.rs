//! What a CUDA source includes, so that it is compiled again when, and only when, that changes.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// A source and all headers that it includes by `#include "..."`, directly or not.
///
/// Conditions are not looked at: headers that only the host's compiler sees are left out by `skip`, a folder.
pub fn closure(source: &Path, skip: &Path) -> BTreeSet<PathBuf> {
    let mut seen = BTreeSet::new();
    let mut open = vec![source.to_path_buf()];
    while let Some(file) = open.pop() {
        let Ok(text) = std::fs::read_to_string(&file) else { continue };
        let folder = file.parent().unwrap_or(Path::new("")).to_path_buf();
        if !seen.insert(file) {
            continue;
        }
        let quoted = text.lines().filter_map(|line| {
            let rest = line.trim().strip_prefix('#')?.trim_start().strip_prefix("include")?;
            rest.trim_start().strip_prefix('"')?.split('"').next()
        });
        open.extend(quoted.map(|name| normal(&folder.join(name))).filter(|path| !path.starts_with(skip)));
    }
    seen
}

/// `a/b/../c` as `a/c`.
fn normal(path: &Path) -> PathBuf {
    let mut parts = PathBuf::new();
    for part in path.components() {
        if part == std::path::Component::ParentDir {
            parts.pop();
        } else {
            parts.push(part);
        }
    }
    parts
}
