//! How many packet threads a daemon has, as its file says it.

use flatlan_types::Workers;
use serde::{Deserialize, Serialize};

/// How many packet threads there are, as a file or a flag says it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "usize", try_from = "usize")]
pub struct WorkersChoice(pub Workers);

/// Not a number of workers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0} is no number of workers: use 1, 2, 4, 8 or 16")]
pub struct WorkersError(usize);

impl TryFrom<usize> for WorkersChoice {
    type Error = WorkersError;

    fn try_from(count: usize) -> Result<Self, WorkersError> {
        Workers::new(count).map(Self).ok_or(WorkersError(count))
    }
}

impl From<WorkersChoice> for usize {
    fn from(choice: WorkersChoice) -> Self {
        choice.0.count()
    }
}
