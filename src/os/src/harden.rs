//! What a process that holds keys gives up, and the one limit that it raises.
//!
//! Keys must reach no core file and no same-user debugger. Locking memory and dropping capabilities is
//! the service manager's business (`deploy/`).

use rustix::process::{DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit};

use crate::{ExitClass, Why};

/// No core files, and no attaching by other processes of the same user.
///
/// # Errors
/// Where the kernel refuses.
pub fn forbid_dumps() -> Result<(), HardenError> {
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })
        .map_err(|e| HardenError::Core(e.into()))?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(|e| HardenError::Dumpable(e.into()))
}

/// Raises the limit of open files to what the process may have, and to `wanted` where it may raise that, too; the limit
/// that holds then.
pub fn raise_open_files(wanted: u64) -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let hard = limit.maximum.unwrap_or(u64::MAX);
    for most in [wanted.max(hard), hard] {
        let raised = Rlimit { current: Some(most), maximum: Some(most) };
        if setrlimit(Resource::Nofile, raised).is_ok() {
            return most;
        }
    }
    limit.current.unwrap_or(u64::MAX)
}

/// Why a process could not be hardened.
#[derive(Debug, thiserror::Error)]
pub enum HardenError {
    /// RLIMIT_CORE.
    #[error("cannot forbid core files: {0}")]
    Core(Why),
    /// PR_SET_DUMPABLE.
    #[error("cannot forbid memory dumps: {0}")]
    Dumpable(Why),
}

impl HardenError {
    /// Which exit code it asks for.
    pub fn exit_class(&self) -> ExitClass {
        match self {
            Self::Core(why) | Self::Dumpable(why) => ExitClass::of(why),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hardened_process_leaves_no_core_file() {
        forbid_dumps().unwrap();
        assert_eq!(getrlimit(Resource::Core).current, Some(0));
        assert_eq!(rustix::process::dumpable_behavior().unwrap(), DumpableBehavior::NotDumpable);
    }

    #[test]
    fn open_files_are_raised_to_the_hard_limit_and_beyond_it_only_by_who_may() {
        let hard = getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX);
        assert_eq!(raise_open_files(1), hard);
        let raised = raise_open_files(hard.saturating_add(1));
        assert!(raised == hard || raised == hard.saturating_add(1), "{raised}");
        assert_eq!(getrlimit(Resource::Nofile).current, Some(raised));
    }
}
