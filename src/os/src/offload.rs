//! Whether work on many packets is handed to the kernel as one piece.

use serde::{Deserialize, Serialize};

/// Whether an offload is used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Offload {
    /// Where it is there, until it is refused.
    #[default]
    Auto,
    /// Never: some kernels corrupt what they cut or join.
    Off,
    /// It must be there at the start (of a TUN: for TCP). What is refused later goes in single packets and is
    /// counted, the first of it logged as an error; it is never given up.
    On,
}
