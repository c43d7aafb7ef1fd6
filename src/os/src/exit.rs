//! What an error means to whoever started the program, and how the kernel's reason reads.

use std::{fmt, io};

/// Which exit code an error asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ExitClass {
    /// It failed.
    Failed,
    /// A capability, a device or a file's permission is missing.
    NotPermitted,
    /// Nothing answers, or nothing runs.
    Unreachable,
    /// The command line or a file is wrong.
    Wrong,
}

impl ExitClass {
    /// The class of a failed system call.
    pub(crate) fn of(why: &Why) -> Self {
        match why.0.kind() {
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => Self::NotPermitted,
            io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::HostUnreachable
            | io::ErrorKind::NetworkUnreachable
            | io::ErrorKind::TimedOut => Self::Unreachable,
            _ => Self::Failed,
        }
    }
}

/// The kernel's reason, printed as part of a sentence: no capital, no error number.
#[derive(Debug)]
pub struct Why(pub io::Error);

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.0.to_string();
        let text = text.split(" (os error").next().unwrap_or(&text);
        // "TLS..." and "I/O error" keep their capitals.
        let mut letters = text.chars();
        match (letters.next(), letters.next()) {
            (Some(first), Some(second)) if second.is_lowercase() || second == ' ' => {
                write!(f, "{}{second}{}", first.to_lowercase(), letters.as_str())
            }
            _ => f.write_str(text),
        }
    }
}

impl From<io::Error> for Why {
    fn from(error: io::Error) -> Self {
        Self(error)
    }
}

impl From<rustix::io::Errno> for Why {
    fn from(error: rustix::io::Errno) -> Self {
        Self(error.into())
    }
}

/// A parser's complaint about a text as part of a sentence: one line, with the number of the line it is about.
pub fn located(text: &str, span: Option<std::ops::Range<usize>>, message: &str) -> String {
    let start = span.map_or(0, |span| span.start);
    let line = text.bytes().take(start).filter(|byte| *byte == b'\n').count() + 1;
    format!("line {line}: {}", message.trim_end().replace('\n', ", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parsers_complaint_is_one_line_that_names_the_line() {
        assert_eq!(
            located("a = 1\nb = \n", Some(10..11), "invalid\nexpected a value"),
            "line 2: invalid, expected a value"
        );
        assert_eq!(located("a", None, "odd\n"), "line 1: odd");
    }

    #[test]
    fn a_reason_reads_as_part_of_a_sentence() {
        assert_eq!(Why::from(rustix::io::Errno::NOSPC).to_string(), "no space left on device");
        assert_eq!(Why(io::Error::other("TLS is odd")).to_string(), "TLS is odd");
    }
}
