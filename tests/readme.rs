//! What README says stays true where the compiler does not see to it.

use std::fs;
use std::path::Path;

fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The first block of code behind a fence.
fn block<'t>(text: &'t str, fence: &str) -> &'t str {
    let (_, rest) = text.split_once(fence).unwrap_or_else(|| panic!("no block {fence:?}"));
    rest.split_once("```").expect("the block ends").0
}

/// README's candle example cannot be a doctest of this crate, which does not know candle. The binding's own README is one.
#[test]
fn candle_example_is_the_one_that_the_binding_compiles() {
    assert_eq!(
        block(&read("README.md"), "```rs\n"),
        block(&read("bindings/candle/README.md"), "```rust,no_run\n")
    );
}

/// Links within the repository lead somewhere.
#[test]
fn relative_links_exist() {
    for (file, folder) in [
        ("README.md", ""),
        ("ARCHITECTURE.md", ""),
        ("bindings/candle/README.md", "bindings/candle/"),
        ("bindings/python/README.md", "bindings/python/"),
    ] {
        let text = read(file);
        let targets = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
        for target in targets.filter(|target| !target.contains("://") && !target.starts_with('#')) {
            let (name, anchor) = target.split_once('#').map_or((target, None), |(name, a)| (name, Some(a)));
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder).join(name);
            assert!(path.exists(), "{file} links to {target}, which does not exist");
            if let Some(anchor) = anchor {
                let there = fs::read_to_string(&path).unwrap_or_default();
                let mut headings = there.lines().filter_map(|line| line.strip_prefix('#'));
                let slug = |heading: &str| heading.trim_matches(['#', ' ']).to_lowercase().replace(' ', "-");
                assert!(headings.any(|h| slug(h) == anchor), "{file} links to {target}: no such heading");
            }
        }
    }
}
