//! What this crate's build has made elsewhere: with other features or in another profile. A change of either gives a build a folder of
//! its own, and the emulator and the kernels take minutes to compile.

use std::path::{Path, PathBuf};

/// The other `OUT_DIR`s of this crate in the same target folder (`…/<profile>/build/<package>-<hash>/out`), as cargo lays them out; none if
/// it comes to do so otherwise.
pub fn folders(out: &Path) -> Vec<PathBuf> {
    let package = concat!(env!("CARGO_PKG_NAME"), "-");
    let Some(target) = out.ancestors().nth(4) else { return Vec::new() };
    let entries = |folder: &Path| {
        std::fs::read_dir(folder).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()))
    };
    let is_of_package =
        |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(package));
    entries(target)
        .flat_map(|profile| entries(&profile.join("build")))
        .filter(is_of_package)
        .map(|build| build.join("out"))
        .filter(|folder| folder != out && folder.is_dir())
        .collect()
}

/// Copies a file, which is there whole or not at all.
pub fn copy(from: &Path, to: &Path) -> Result<(), String> {
    let unfinished = to.with_extension("copy");
    std::fs::copy(from, &unfinished)
        .and_then(|_| std::fs::rename(&unfinished, to))
        .map_err(|e| format!("{} to {}: {e}", from.display(), to.display()))
}
