//! Real text that is there without a download: the sources of this workspace and of the dependencies that cargo fetched
//! to build it. Rust code is one domain, the prose of its documentation the other.

use crate::sources::{Package, packages};
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};

/// One domain's text, apart by package: no held-out package is trained on.
#[derive(Default)]
pub(crate) struct Text {
    pub(crate) train: String,
    pub(crate) held_out: String,
}

/// The two domains.
pub(crate) struct Corpus {
    pub(crate) code: Text,
    pub(crate) prose: Text,
    /// Packages that text came from.
    pub(crate) packages: usize,
}

/// No package gives more than this to a domain, so that none dominates it.
const CODE_PER_PACKAGE: usize = 160 << 10;
const PROSE_PER_PACKAGE: usize = 64 << 10;
/// Longer files are generated tables rather than what somebody wrote.
const LONGEST_FILE: u64 = 256 << 10;
/// Every so many packages, one is held out.
const HELD_OUT_EVERY: u64 = 8;

/// Reads the packages' files in a fixed order.
pub(crate) fn gather() -> Corpus {
    let mut corpus = Corpus { code: Text::default(), prose: Text::default(), packages: 0 };
    for package in packages() {
        let (code, prose) = read(&package);
        corpus.packages += usize::from(!code.is_empty() || !prose.is_empty());
        let held_out = hash(&package.name).is_multiple_of(HELD_OUT_EVERY);
        for (text, new, limit) in
            [(&mut corpus.code, code, CODE_PER_PACKAGE), (&mut corpus.prose, prose, PROSE_PER_PACKAGE)]
        {
            let part = if held_out { &mut text.held_out } else { &mut text.train };
            part.push_str(truncated(&new, limit));
        }
    }
    corpus
}

/// A text of the user's own: its last tenth is held out.
pub(crate) fn from_file(path: &Path) -> Result<Text> {
    let bytes = fs::read(path).with_context(|| format!("cannot read the text {}", path.display()))?;
    let text = String::from_utf8_lossy(&bytes);
    if text.trim().is_empty() {
        bail!("the text {} is empty", path.display());
    }
    let train = truncated(&text, text.len() - text.len() / 10);
    Ok(Text { train: train.to_owned(), held_out: text[train.len()..].to_owned() })
}

impl Text {
    /// Keeps the beginning of each part.
    pub(crate) fn shorten(&mut self, limit: usize) {
        for part in [&mut self.train, &mut self.held_out] {
            let end = truncated(part, limit).len();
            part.truncate(end);
        }
    }
}

/// A package's code and prose.
fn read(package: &Package) -> (String, String) {
    let (mut code, mut prose) = (String::new(), String::new());
    let mut files = Vec::new();
    list(&package.directory, &mut files);
    for file in files {
        if code.len() >= CODE_PER_PACKAGE && prose.len() >= PROSE_PER_PACKAGE {
            break;
        }
        let Ok(text) = fs::read_to_string(&file) else { continue };
        if file.extension().is_some_and(|extension| extension == "rs") {
            split_source(&text, &mut code, &mut prose);
        } else {
            prose_of_markdown(&text, &mut prose);
        }
    }
    (code, prose)
}

/// Rust and Markdown files below a directory, in the order of their names; hidden and generated folders are left out.
fn list(directory: &Path, files: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    let mut paths: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    for path in paths {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
        if metadata.is_dir() {
            if !name.starts_with('.') && name != "target" && name != "out" {
                list(&path, files);
            }
        } else if metadata.is_file()
            && metadata.len() <= LONGEST_FILE
            && path.extension().is_some_and(|extension| extension == "rs" || extension == "md")
            && !name.to_ascii_lowercase().starts_with("license")
        {
            files.push(path);
        }
    }
}

/// Puts the documentation comments of a source into `prose`, without marks and fenced examples, and the rest into `code`.
fn split_source(source: &str, code: &mut String, prose: &mut String) {
    let mut documentation = String::new();
    for line in source.lines() {
        let trimmed = line.trim_start();
        if let Some(text) = trimmed.strip_prefix("///").or_else(|| trimmed.strip_prefix("//!")) {
            documentation.push_str(text.strip_prefix(' ').unwrap_or(text));
            documentation.push('\n');
        } else {
            if !documentation.is_empty() {
                prose_of_markdown(&std::mem::take(&mut documentation), prose);
            }
            code.push_str(line.trim_end());
            code.push('\n');
        }
    }
    prose_of_markdown(&documentation, prose);
}

/// Markdown without fenced code, badges and link definitions.
fn prose_of_markdown(markdown: &str, prose: &mut String) {
    let mut fenced = false;
    let start = prose.len();
    for line in markdown.lines() {
        let trimmed = line.trim_start();
        let badge = trimmed.starts_with("[!");
        let link = trimmed.starts_with('[') && trimmed.contains("]: ");
        if trimmed.starts_with("```") || trimmed.starts_with("~~~") {
            fenced = !fenced;
        } else if !(fenced || badge || link) {
            prose.push_str(line.trim_end());
            prose.push('\n');
        }
    }
    if prose.len() > start {
        prose.push('\n');
    }
}

/// At most `limit` bytes, cut between characters.
fn truncated(text: &str, limit: usize) -> &str {
    let end = (0..=limit.min(text.len())).rev().find(|&end| text.is_char_boundary(end));
    &text[..end.unwrap_or(0)]
}

/// FNV-1a: the same on every machine and in every release.
fn hash(name: &str) -> u64 {
    name.bytes()
        .fold(0xCBF2_9CE4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3))
}

#[cfg(test)]
mod tests {
    use super::{from_file, gather, hash, split_source, truncated};

    #[test]
    fn code_and_prose_are_told_apart() {
        let source = "//! A crate.\n\n/// Adds.\n/// ```\n/// add(1, 2);\n/// ```\n/// Never fails.\nfn add() {} // why\n";
        let (mut code, mut prose) = (String::new(), String::new());
        split_source(source, &mut code, &mut prose);
        assert_eq!(code, "\nfn add() {} // why\n");
        assert_eq!(prose, "A crate.\n\nAdds.\nNever fails.\n\n");
    }

    #[test]
    fn the_corpus_is_the_same_twice_and_its_parts_differ() {
        let (first, second) = (gather(), gather());
        assert_eq!(first.code.train, second.code.train);
        assert_eq!(first.prose.held_out, second.prose.held_out);
        assert!(first.packages > 0);
        assert!(first.code.train.contains("fn "));
        assert!(!first.code.train.lines().any(|line| line.trim_start().starts_with("///")));
        assert!(!first.prose.train.lines().any(|line| line.trim_start().starts_with("```")));
    }

    #[test]
    fn truncation_keeps_characters_whole() {
        assert_eq!(truncated("aéb", 2), "a");
        assert_eq!(truncated("aéb", 3), "aé");
        assert_eq!(truncated("aéb", 9), "aéb");
    }

    #[test]
    fn the_split_does_not_depend_on_the_platform() {
        assert_eq!(hash("a"), 0xAF63_DC4C_8601_EC8C);
    }

    #[test]
    fn an_empty_or_absent_text_is_an_error() {
        let path = std::env::temp_dir().join(format!("tune-empty-{}", std::process::id()));
        std::fs::write(&path, " \n").unwrap();
        let message = from_file(&path).err().unwrap().to_string();
        std::fs::remove_file(&path).unwrap();
        assert!(message.contains("is empty"), "{message}");
        assert!(from_file(&path).err().unwrap().to_string().contains("cannot read the text"));
    }
}
