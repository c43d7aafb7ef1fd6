//! How a command fails: one line on stderr, and an exit code that scripts can act on.

use std::{fmt, process::ExitCode};

use flatlan_os::ExitClass;

/// A failed command: `error: what failed: why: what to do`.
#[derive(Debug)]
pub(crate) struct Failure {
    class: ExitClass,
    text: String,
}

impl Failure {
    /// It failed (exit code 1).
    pub(crate) fn failed(text: impl fmt::Display) -> Self {
        Self::new(ExitClass::Failed, text)
    }

    /// The command line or a file is wrong (exit code 2).
    pub(crate) fn wrong(text: impl fmt::Display) -> Self {
        Self::new(ExitClass::Wrong, text)
    }

    /// Not running, or not reachable (exit code 4).
    pub(crate) fn unreachable(text: impl fmt::Display) -> Self {
        Self::new(ExitClass::Unreachable, text)
    }

    /// A word of the contract that this version does not have (exit code 2).
    pub(crate) fn not_in_this_version(what: &str) -> Self {
        Self::wrong(format!("{what}: not in this version"))
    }

    pub(crate) fn new(class: ExitClass, text: impl fmt::Display) -> Self {
        Self { class, text: text.to_string() }
    }

    /// The same, with one more thing to do.
    pub(crate) fn with_remedy(self, remedy: &str) -> Self {
        Self { text: format!("{}, {remedy}", self.text), ..self }
    }

    /// The exit code that says so.
    pub(crate) fn exit_code(&self) -> ExitCode {
        ExitCode::from(match self.class {
            ExitClass::Failed => 1,
            ExitClass::Wrong => 2,
            ExitClass::NotPermitted => 3,
            ExitClass::Unreachable => 4,
        })
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

macro_rules! failures {
    ($($error:ty),* $(,)?) => {
        $(impl From<$error> for Failure {
            fn from(error: $error) -> Self {
                Self::new(error.exit_class(), &error)
            }
        })*
    };
}

failures!(
    flatlan::NodeError,
    flatlan::hub_client::HubClientError,
    flatlan::join::JoinError,
    flatlan::state::StateError,
    flatlan_os::file::FileError,
    flatlan_os::route::RouteError,
    flatlan_hubd::HubError,
);
