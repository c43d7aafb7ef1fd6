//! The files of a node's state directory that this machine reads at start and has written.
//!
//! | file | holds | written |
//! |------|-------|---------|
//! | [`EPOCH`] | the boot epoch in use | by the driver before the machine starts, and before each rise |
//! | [`ROSTER`] | the roster in use, as published | before [`RATCHET`] |
//! | [`RATCHET`] | the greatest head ever seen | before the roster is used |
//! | [`PEERS`] | per peer, the last good endpoints and the greatest epoch | now and then, and at the end |
//! | `fork-SERIAL` | two heads of which one should not exist | when seen |
//! | `FILE.damaged-HASH` | [`ROSTER`] or [`RATCHET`] as they were found, of no use: each contents once | at the start that found them |
//!
//! Formats are CBOR with a version in front. A later version's file is never overwritten, nor is one of a
//! known format that holds what this version may not ignore: the driver asks [`check`] about each before
//! anything is written, and does not start. This module reads and writes bytes; the driver owns the files.

use flatlan_roster::{DecodeError, Ratchet, VerifiedRoster};
use flatlan_types::{BootEpoch, Endpoint, MemberId, UnixTime};
use minicbor::{Decode, Decoder, Encode, bytes::ByteVec};
use sha2::{Digest, Sha256};

/// The file with the boot epoch.
pub const EPOCH: &str = "epoch";
/// The file with the roster in use.
pub const ROSTER: &str = "roster";
/// The file with the greatest head seen.
pub const RATCHET: &str = "ratchet";
/// The file with what is remembered of peers.
pub const PEERS: &str = "peers";

/// What the state directory held when the node started: each file's bytes, where there is one.
#[derive(Debug, Default)]
pub struct Persisted {
    /// [`ROSTER`].
    pub roster: Option<Vec<u8>>,
    /// [`RATCHET`].
    pub ratchet: Option<Vec<u8>>,
    /// [`PEERS`].
    pub peers: Option<Vec<u8>>,
}

/// Whether this version knows a file well enough to write it anew. Damage is no reason against that: what
/// is to be kept of it is set aside.
///
/// # Errors
/// A later version wrote it.
pub fn check(file: &str, bytes: &[u8]) -> Result<(), LaterVersion> {
    let error = match file {
        ROSTER => VerifiedRoster::later(bytes),
        RATCHET => Ratchet::later(bytes),
        _ => {
            let got = Decoder::new(bytes).u64().ok().filter(|got| *got > VERSION.into());
            got.map(|got| DecodeError::Version { got })
        }
    };
    error.map_or(Ok(()), |error| Err(LaterVersion { file: file.to_owned(), error }))
}

/// The name under which a file that is of no use is kept.
pub(crate) fn set_aside(file: &str, bytes: &[u8]) -> String {
    let hash: String = Sha256::digest(bytes).iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    format!("{file}.damaged-{hash}")
}

/// The epoch of this start, and the bytes that must be in [`EPOCH`] before it is used. A file that
/// cannot be read counts as none: the clock alone then decides, and a hub or peer that knows better says so.
pub fn next_epoch(file: Option<&[u8]>, unix: UnixTime) -> (BootEpoch, Vec<u8>) {
    let persisted = file.and_then(|bytes| versioned::<BootEpoch>(bytes).ok()).unwrap_or_default();
    let epoch = BootEpoch::next(persisted, unix);
    (epoch, encode_epoch(epoch))
}

/// The contents of [`EPOCH`].
pub(crate) fn encode_epoch(epoch: BootEpoch) -> Vec<u8> {
    encode(&epoch)
}

/// What is remembered of one peer.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct RememberedPeer {
    /// Whom.
    #[n(0)]
    pub id: MemberId,
    /// The greatest epoch it spoke under.
    #[n(1)]
    pub epoch: BootEpoch,
    /// Its own statement of that epoch, encoded: for handing back.
    #[n(2)]
    pub statement: Option<ByteVec>,
    /// Where it answered directly, the last one first.
    #[n(3)]
    pub endpoints: Vec<Endpoint>,
    /// Whether a session was up.
    #[n(4)]
    pub open: bool,
}

/// The contents of [`PEERS`].
pub(crate) fn encode_peers(peers: &Vec<RememberedPeer>) -> Vec<u8> {
    encode(peers)
}

/// Reads [`PEERS`].
///
/// # Errors
/// It is damaged, or of a later version.
pub fn decode_peers(bytes: &[u8]) -> Result<Vec<RememberedPeer>, PersistError> {
    versioned(bytes)
}

fn encode<T: Encode<()>>(value: &T) -> Vec<u8> {
    let mut bytes = minicbor::to_vec(VERSION).expect("a Vec takes every byte");
    minicbor::encode(value, &mut bytes).expect("a Vec takes every byte");
    bytes
}

fn versioned<'b, T: Decode<'b, ()>>(bytes: &'b [u8]) -> Result<T, PersistError> {
    let mut decoder = Decoder::new(bytes);
    let version: u8 = decoder.decode().map_err(PersistError::Malformed)?;
    if version > VERSION {
        return Err(PersistError::Version { got: version });
    }
    let value = decoder.decode().map_err(PersistError::Malformed)?;
    if decoder.position() != bytes.len() {
        return Err(PersistError::Trailing);
    }
    Ok(value)
}

/// A file of the state directory that only a later version can read.
#[derive(Debug, thiserror::Error)]
#[error(
    "file `{file}` of the state directory was written by a later version of flatlan ({}): upgrade flatlan",
    unknown(.error)
)]
pub struct LaterVersion {
    /// Which.
    pub file: String,
    /// What of it only a later version understands.
    pub error: DecodeError,
}

fn unknown(error: &DecodeError) -> String {
    match error {
        DecodeError::Critical { key } => format!("field {key}"),
        DecodeError::Version { got } => format!("format {got}"),
        DecodeError::Cbor(_) | DecodeError::NotCanonical | DecodeError::TooLong { .. } | DecodeError::Trailing => {
            error.to_string()
        }
    }
}

/// Why a file cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum PersistError {
    /// Damaged.
    #[error("damaged")]
    Malformed(#[source] minicbor::decode::Error),
    /// Bytes behind the end.
    #[error("bytes behind the end")]
    Trailing,
    /// Of a later version.
    #[error("written by a later version ({got}; this one reads up to {VERSION})")]
    Version {
        /// Which.
        got: u8,
    },
}

const VERSION: u8 = 1;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_epoch_rises_with_every_start_even_when_the_clock_is_set_back() {
        let (first, file) = next_epoch(None, UnixTime(1000));
        assert_eq!(first, BootEpoch(1000));
        let (second, file) = next_epoch(Some(&file), UnixTime(10));
        assert_eq!(second, BootEpoch(1001));
        let (third, _) = next_epoch(Some(&file), UnixTime(5000));
        assert_eq!(third, BootEpoch(5000));
        assert_eq!(next_epoch(Some(b"\xff\xff"), UnixTime(7)).0, BootEpoch(7));
    }

    fn remembered() -> Vec<RememberedPeer> {
        vec![RememberedPeer {
            id: MemberId::from_bytes([1; 32]),
            epoch: BootEpoch(5),
            statement: Some(vec![1, 2, 3].into()),
            endpoints: vec![Endpoint::new(([192, 0, 2, 1], 9).into())],
            open: true,
        }]
    }

    #[test]
    fn remembered_peers_survive_the_file_and_a_later_version_is_refused() {
        let peers = remembered();
        let mut bytes = encode_peers(&peers);
        assert_eq!(decode_peers(&bytes).unwrap(), peers);
        bytes.push(0);
        assert!(matches!(decode_peers(&bytes), Err(PersistError::Trailing)));
        bytes[0] = VERSION + 1;
        assert!(matches!(decode_peers(&bytes), Err(PersistError::Version { .. })));
        assert!(matches!(decode_peers(&[]), Err(PersistError::Malformed(_))));
    }

    /// The files under `golden` are of a version that was released or may have been: they are read for ever.
    #[test]
    fn the_state_is_written_and_read_as_in_the_golden_files() {
        let peers = remembered();
        let golden = crate::golden(include_str!("../tests/golden/peers-v1.hex"));
        assert_eq!(encode_peers(&peers), golden);
        assert_eq!(decode_peers(&golden).unwrap(), peers);
        let golden = crate::golden(include_str!("../tests/golden/epoch-v1.hex"));
        assert_eq!(encode_epoch(BootEpoch(1_800_000_000)), golden);
        assert_eq!(next_epoch(Some(&golden), UnixTime(7)).0, BootEpoch(1_800_000_001));
    }

    fn later(file: &str, bytes: &[u8]) -> DecodeError {
        check(file, bytes).unwrap_err().error
    }

    #[test]
    fn a_later_versions_file_may_not_be_written_and_a_damaged_one_may() {
        for file in [ROSTER, RATCHET] {
            assert!(check(file, b"\x83\x01\xf6\xf6").is_ok());
            assert!(matches!(later(file, b"\x85\x02\xf6"), DecodeError::Version { got: 2 }));
        }
        for file in [EPOCH, PEERS] {
            assert!(check(file, &encode_epoch(BootEpoch(7))).is_ok());
            assert!(matches!(later(file, b"\x18\x63\x01"), DecodeError::Version { got: 99 }));
        }
        for file in [ROSTER, RATCHET, EPOCH, PEERS] {
            for bytes in [&b""[..], b"\xff", b"garbage"] {
                assert!(check(file, bytes).is_ok());
            }
        }
    }

    #[test]
    fn the_first_version_of_the_files_is_still_read() {
        // Committed bytes: a later version must read them.
        assert_eq!(encode_epoch(BootEpoch(1_700_000_000)), [0x01, 0x1a, 0x65, 0x53, 0xf1, 0x00]);
    }
}
