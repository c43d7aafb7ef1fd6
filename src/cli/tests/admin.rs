//! The admin's commands, run as an operator runs them: the real binary, in a directory of its own.
//!
//! Where hubs take part, they are real ones on loopback. Every refusal is held by its full message.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

mod admin {
    pub(crate) mod alone;
    pub(crate) mod check;
    pub(crate) mod machine;
    pub(crate) mod recover;
    pub(crate) mod token;
    pub(crate) mod with_hubs;
}
