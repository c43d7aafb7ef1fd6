//! What happened, as one number and as text.
//!
//! The number is a hash over every event with its time, so that two runs of one seed can be compared; the text is for
//! reading, and kept only where it is asked for.

use std::{fmt, time::Duration};

use crate::party::Party;

/// What happened so far.
#[derive(Debug, Default)]
pub struct Trace {
    hash: u64,
    events: u64,
    text: Option<Vec<String>>,
}

impl Trace {
    /// One that keeps the text too.
    pub fn with_text() -> Self {
        Self { text: Some(Vec::new()), ..Self::default() }
    }

    /// The hash over all of it.
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// How many events there were.
    pub fn events(&self) -> u64 {
        self.events
    }

    /// The lines kept.
    pub fn lines(&self) -> &[String] {
        self.text.as_deref().unwrap_or_default()
    }

    /// Something happened.
    pub(crate) fn note(&mut self, at: Duration, party: Party, bytes: &[u8], text: fmt::Arguments<'_>) {
        self.events += 1;
        self.mix(at.as_nanos() as u64);
        self.mix(match party {
            Party::Hub(n) => n as u64,
            Party::Node(n) => n as u64 | 1 << 32,
            Party::Outside => 1 << 33,
        });
        self.mix(bytes.len() as u64);
        let (words, rest) = bytes.as_chunks::<8>();
        for word in words {
            self.mix(u64::from_le_bytes(*word));
        }
        for byte in rest {
            self.mix(u64::from(*byte));
        }
        if let Some(lines) = &mut self.text {
            // the end of the hash shows where two traces part
            lines.push(format!("{:>11.6} {:04x} {party:<4} {text}", at.as_secs_f64(), self.hash & 0xffff));
        }
    }

    /// The same of a datagram: its length and how it begins. The rest is a matter of the engine, which may have a clock
    /// that all runs of a process share.
    pub(crate) fn note_datagram(&mut self, at: Duration, party: Party, datagram: &[u8], text: fmt::Arguments<'_>) {
        self.mix(datagram.len() as u64);
        self.note(at, party, datagram.get(..SEEN).unwrap_or(datagram), text);
    }

    fn mix(&mut self, word: u64) {
        self.hash = (self.hash.rotate_left(5) ^ word).wrapping_mul(0x517c_c1b7_2722_0a95);
    }
}

/// Bytes of a datagram that count: its kind, and a label.
const SEEN: usize = 8;
