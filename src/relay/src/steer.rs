//! Whose a datagram is, where several workers share one port.
//!
//! ```text
//!  byte     0      1 .. 3          4 .. 7                   8 .. 11
//!  type 1   [ 1]   zero            sender index
//!  type 2   [ 2]   zero            sender index             receiver index, little endian: 11
//!  type 3   [ 3]   zero            receiver index: 7
//!  type 4   [ 4]   zero            receiver index: 7
//!  sealed   [10]   flags           sender hint, big endian: 7
//!  sealed   [11]   lane            sender hint: 7
//!  label    [20]   hops            label, big endian: 7
//!  bind     [21..]
//! ```
//!
//! One byte of each names the worker by its low bits; what has no such byte is the first worker's: type 1 comes
//! plain from stock peers only, and bindings are made once for all workers. Indices and labels are drawn by who
//! owns them, and a hint is the same for all that a peer says.

use flatlan_types::{WorkerId, Workers};

/// Where the byte stands that names the worker, in datagrams that begin with `kind`.
#[inline]
pub const fn owner_byte(kind: u8) -> Option<u8> {
    match kind {
        2 => Some(11),
        3 | 4 | 0x10 | 0x11 | crate::frame::KIND => Some(7),
        _ => None,
    }
}

/// The worker for which a datagram is.
#[inline]
pub fn worker_of(datagram: &[u8], workers: Workers) -> WorkerId {
    let byte = datagram.first().and_then(|kind| owner_byte(*kind)).and_then(|at| datagram.get(usize::from(at)));
    byte.map_or(WorkerId::FIRST, |byte| workers.of_byte(*byte))
}

#[cfg(test)]
mod tests {
    use flatlan_types::Label;

    use super::*;
    use crate::frame::Header;

    #[test]
    fn a_frame_goes_to_the_worker_of_its_label_and_what_is_cut_off_to_the_first() {
        let workers = Workers::new(8).unwrap();
        for generation in 0..16 {
            let label = Label::new(5, generation);
            let frame = Header::new(label).to_bytes();
            assert_eq!(worker_of(&frame, workers), workers.of_label(label));
            assert_eq!(worker_of(frame.get(..7).unwrap(), workers), WorkerId::FIRST);
        }
        for other in [0, 1, 0x21, 0x22, 0xff] {
            assert_eq!(worker_of(&[other; 32], workers), WorkerId::FIRST);
        }
        assert_eq!(worker_of(&[], workers), WorkerId::FIRST);
    }
}
