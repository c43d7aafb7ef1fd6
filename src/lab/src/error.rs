//! Why something in the lab failed, in words for whoever runs it.

use std::io;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

use crate::permission::Missing;

/// What can go wrong while a lab is built, driven or taken down.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// A lab of this name stays up already.
    #[error("a lab called {0} is up already: `flatlan lab down` ends it")]
    AlreadyUp(String),
    /// A program ran and failed.
    #[error("`{command}` failed with {status}: {stderr}")]
    Command {
        /// The command line.
        command: String,
        /// How it ended.
        status: ExitStatus,
        /// What it wrote to standard error, trimmed.
        stderr: String,
    },
    /// A process ended while something was still expected of it.
    #[error("{name} ended with {status} before {awaited:?} was seen; its last lines:\n{tail}")]
    Ended {
        /// The process.
        name: String,
        /// How it ended.
        status: ExitStatus,
        /// The text that was waited for.
        awaited: String,
        /// The end of its log.
        tail: String,
    },
    /// A file, a mount or a socket refused.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The kernel refused a link, an address or a route.
    #[error("cannot {action} in {namespace}")]
    Netlink {
        /// What was tried.
        action: String,
        /// Where.
        namespace: String,
        /// Why not.
        #[source]
        source: rtnetlink::Error,
    },
    /// The machine does not let this user make a lab.
    #[error("not permitted: {0}")]
    NotPermitted(#[source] Missing),
    /// No lab of this name stays up.
    #[error("no lab called {0} is up: `flatlan lab up` starts one")]
    NotUp(String),
    /// A program that the lab needs is not installed.
    #[error("`{program}` is not installed: it is in the Debian package {package}")]
    ProgramMissing {
        /// The program.
        program: String,
        /// The Debian package that holds it.
        package: &'static str,
    },
    /// The lab that stays did not do what it was told, or did not come up.
    #[error("the lab refused: {why}")]
    Refused {
        /// In its own words.
        why: String,
        /// The exit code of its error.
        code: u8,
    },
    /// A condition did not come true in time.
    #[error("{what} did not happen within {within:?}{tail}")]
    Timeout {
        /// The condition.
        what: String,
        /// How long it was waited for.
        within: Duration,
        /// The end of the log that was watched, or nothing.
        tail: String,
    },
    /// The answer of a program is not what its contract says.
    #[error("`{command}` answered something unexpected: {answer}")]
    Unexpected {
        /// The command line.
        command: String,
        /// What it answered.
        answer: String,
    },
    /// No hub, site, host or router has this name.
    #[error("this lab has no {0:?}")]
    UnknownName(String),
}

impl LabError {
    /// Wraps an IO error with what was being done.
    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { action, path, source }
    }

    /// The whole of it in one line: what, why, and what to do where that is known.
    #[must_use]
    pub fn explained(&self) -> String {
        let mut text = self.to_string();
        let mut source = std::error::Error::source(self);
        while let Some(cause) = source {
            let cause_text = cause.to_string();
            // what the kernel's number is called is enough
            let words = cause_text.split(" (os error").next().unwrap_or_default();
            // `not permitted: ...` holds it already
            if !text.contains(words) {
                text = format!("{text}: {words}");
            }
            source = cause.source();
        }
        match self {
            Self::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => text + ": run it as root",
            Self::Io { .. } | Self::Netlink { .. } => text + ": `flatlan lab down` removes what is left of a lab",
            Self::UnknownName(_) => text + ": `flatlan lab show` lists what there is",
            Self::AlreadyUp(_)
            | Self::Command { .. }
            | Self::Ended { .. }
            | Self::NotPermitted(_)
            | Self::NotUp(_)
            | Self::ProgramMissing { .. }
            | Self::Refused { .. }
            | Self::Timeout { .. }
            | Self::Unexpected { .. } => text,
        }
    }

    /// The exit code of the command line for this error: 2 where a name is wrong, 3 where a permission or a program is
    /// missing, 4 where no lab is up, that of the lab's own error where it refused, else 1.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::NotPermitted(_) | Self::ProgramMissing { .. } => 3,
            Self::NotUp(_) => 4,
            Self::Refused { code, .. } => *code,
            Self::UnknownName(_) => 2,
            Self::AlreadyUp(_)
            | Self::Command { .. }
            | Self::Ended { .. }
            | Self::Io { .. }
            | Self::Netlink { .. }
            | Self::Timeout { .. }
            | Self::Unexpected { .. } => 1,
        }
    }
}
