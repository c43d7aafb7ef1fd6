//! What an example tells, and what it makes sure of on the way: it fails where one thing that it claims is not so.

#![allow(dead_code, reason = "every example takes what it needs")]

use std::process::ExitCode;
use std::time::Duration;

/// An example's story so far.
#[derive(Debug, Default)]
pub(crate) struct Story {
    untrue: Vec<String>,
}

impl Story {
    /// A line.
    pub(crate) fn say(&self, line: impl AsRef<str>) {
        println!("{}", line.as_ref());
    }

    /// A claim, and whether it holds.
    pub(crate) fn claim(&mut self, claim: impl Into<String>, holds: bool) {
        let claim = claim.into();
        println!("  {} {claim}", if holds { "yes:" } else { "NOT SO:" });
        if !holds {
            self.untrue.push(claim);
        }
    }

    /// A claim that something took at most `limit`.
    pub(crate) fn claim_within(&mut self, what: &str, took: Duration, limit: Duration) {
        self.claim(format!("{what} after {} ms, at most {} ms", took.as_millis(), limit.as_millis()), took <= limit);
    }

    /// How the program ends.
    pub(crate) fn end(self) -> ExitCode {
        if self.untrue.is_empty() {
            println!("everything that is claimed here was so");
            return ExitCode::SUCCESS;
        }
        eprintln!("error: not so: {}", self.untrue.join("; "));
        ExitCode::FAILURE
    }
}
