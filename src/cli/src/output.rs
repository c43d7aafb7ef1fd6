//! The two ways to say something: results for scripts, words for people.

#![expect(clippy::print_stderr, reason = "this is where the program prints")]

use std::fmt;

/// A result, for scripts: one line on stdout. A reader that went away is no error.
pub(crate) fn result(line: impl fmt::Display) {
    use std::io::Write as _;
    let _ = writeln!(std::io::stdout(), "{line}");
}

/// Progress, for people: one line on stderr.
pub(crate) fn say(line: impl fmt::Display) {
    eprintln!("{line}");
}

/// Why the command failed.
pub(crate) fn error(failure: &impl fmt::Display) {
    eprintln!("error: {failure}");
}
