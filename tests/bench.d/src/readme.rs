//! The part of README.md that belongs to the benchmark: what stands between its two marks.

use std::path::Path;

use anyhow::{Context as _, Result};

/// Puts a text between the marks of a file, in place of what was there.
pub(crate) fn replace(file: &Path, text: &str) -> Result<()> {
    let shown = file.display();
    let old = std::fs::read_to_string(file).with_context(|| format!("cannot read {shown}"))?;
    let new = between(&old, text).with_context(|| format!("{shown} has no lines {BEGIN} and {END}"))?;
    std::fs::write(file, new).with_context(|| format!("cannot write {shown}"))
}

fn between(old: &str, text: &str) -> Option<String> {
    let (before, rest) = old.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{BEGIN}\n{}\n{END}{after}", text.trim_end()))
}

const BEGIN: &str = "<!-- tests/bench: begin -->";
const END: &str = "<!-- tests/bench: end -->";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_stands_between_the_marks_is_replaced() {
        let old = format!("one\n{BEGIN}\nold\n{END}\ntwo\n");
        let new = between(&old, "new\n").unwrap();
        assert_eq!(new, format!("one\n{BEGIN}\nnew\n{END}\ntwo\n"));
        assert_eq!(between(&new, "new"), Some(new));
    }

    #[test]
    fn a_file_without_both_marks_is_left_alone() {
        assert_eq!(between("one\ntwo\n", "new"), None);
        assert_eq!(between(&format!("one\n{BEGIN}\n"), "new"), None);
    }

    #[test]
    fn the_readme_has_both_marks() {
        let readme = std::fs::read_to_string(crate::run::root().join("README.md")).unwrap();
        assert!(between(&readme, "").is_some());
    }
}
