//! Where the sources lie that cargo has fetched.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};

/// A package's sources.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Package {
    pub(crate) name: String,
    pub(crate) directory: PathBuf,
}

/// This workspace, then each package of its lock file that has been fetched, in the order of the names; the newest of
/// several versions, since they repeat each other. Other projects' packages in the same registry are left out, so that
/// every machine gathers the same.
pub(crate) fn packages() -> Vec<Package> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let locked =
        fs::read_to_string(workspace.join("Cargo.lock")).map(|lock| locked(&lock)).unwrap_or_default();
    let own = Package { name: "inducer-attention".into(), directory: workspace };
    let fetched = locked.into_iter().filter_map(|(name, version)| {
        let directory = registries().into_iter().map(|registry| registry.join(format!("{name}-{version}")));
        Some(Package { directory: directory.into_iter().find(|directory| directory.is_dir())?, name })
    });
    std::iter::once(own).chain(fetched).collect()
}

/// Name and newest version of each package in a lock file that comes from a registry.
fn locked(lock: &str) -> BTreeMap<String, String> {
    let mut newest: BTreeMap<String, String> = BTreeMap::new();
    for package in lock.split("[[package]]").skip(1) {
        let field = |name: &str| {
            let line = package.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(" = "))?;
            Some(line.trim_matches('"').to_owned())
        };
        let (Some(name), Some(version), Some(_)) = (field("name"), field("version"), field("source")) else {
            continue;
        };
        match newest.get(&name) {
            Some(present) if order(present) >= order(&version) => {}
            _ => {
                newest.insert(name, version);
            }
        }
    }
    newest
}

/// The numbers of a version, for comparison.
fn order(version: &str) -> Vec<u64> {
    version.split(['.', '-', '+']).map_while(|part| part.parse().ok()).collect()
}

/// The folders below `$CARGO_HOME/registry/src` (by default `~/.cargo`), one for each registry.
fn registries() -> Vec<PathBuf> {
    let home = env::var_os("CARGO_HOME").map(PathBuf::from).or_else(|| Some(env::home_dir()?.join(".cargo")));
    let Some(Ok(entries)) = home.map(|home| fs::read_dir(home.join("registry/src"))) else {
        return Vec::new();
    };
    let mut folders: Vec<_> =
        entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir()).collect();
    folders.sort();
    folders
}

#[cfg(test)]
mod tests {
    use super::{locked, order};

    #[test]
    fn the_newest_version_of_each_fetched_package_is_taken() {
        let lock = "version = 4\n\n[[package]]\nname = \"a\"\nversion = \"0.9.1\"\nsource = \"registry\"\n\n\
                    [[package]]\nname = \"a\"\nversion = \"0.10.0\"\nsource = \"registry\"\n\n\
                    [[package]]\nname = \"own\"\nversion = \"0.1.0\"\n";
        let found: Vec<_> = locked(lock).into_iter().collect();
        assert_eq!(found, [("a".to_owned(), "0.10.0".to_owned())]);
    }

    #[test]
    fn versions_compare_by_number() {
        assert!(order("0.10.0") > order("0.9.12"));
        assert!(order("1.0.0+build") >= order("1.0.0"));
    }
}
