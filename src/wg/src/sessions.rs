//! What the rest of flatlan sees of WireGuard.
//!
//! The trait is shaped for the packet path: no call allocates, reads a clock or takes a lock of ours, a
//! lane is found by its place in a table, and results are lengths in the caller's buffer, which may leave
//! room in front for a label.

use std::time::{Duration, Instant};

use flatlan_types::{Endpoint, LaneKey, PeerSlot, SessionKey};

use crate::message::{DATA_OVERHEAD, PADDING};

/// The WireGuard sessions of one worker, by lane.
///
/// Mutate, drain, mutate: after any call [`Sessions::poll_timeout`] may have changed.
pub trait Sessions {
    /// Makes the lane's session state, in place of any there was. No handshake is sent: a lane with a
    /// persistent keepalive starts one at its next timeout, any other when the caller initiates.
    ///
    /// Call it again when a boot epoch rises at either end, and not otherwise: the state remembers the
    /// newest initiation it has seen, which is what stops replays.
    fn open_lane(&mut self, lane: LaneKey, peer: PeerSession, now: Instant);

    /// Forgets a lane, its keys and its index.
    fn close_lane(&mut self, lane: LaneKey);

    /// Forgets all lanes of a peer.
    fn close_peer(&mut self, peer: PeerSlot);

    /// Puts all lanes of a peer to rest: their sessions and keys are dropped and their timers stand still,
    /// but each remembers the newest initiation that it has seen. The next handshake, ours or the peer's,
    /// wakes a lane.
    fn rest_peer(&mut self, peer: PeerSlot);

    /// Writes a handshake initiation (a plain WireGuard type 1) for the lane at `out[0..]`, and revives a
    /// lane whose attempts were given up.
    ///
    /// `None` where one went out less than the retry interval ago (250 ms; 5 s to a stock peer), the lane is
    /// unknown, or `out` is shorter than [`crate::HANDSHAKE_MAX`]. The interval is a floor: only the last two
    /// initiations can be answered, so a caller that asks again must back off, or a peer more than two
    /// intervals away is never reached.
    fn initiate(&mut self, lane: LaneKey, now: Instant, out: &mut [u8]) -> Option<usize>;

    /// Seals one IP packet as a type 4 datagram at `out[0..]`; `out` must hold [`sealed_len`] bytes.
    ///
    /// The packet is padded to 16 with zeros. A caller whose slice is already so padded saves a copy: the
    /// receiver cuts the padding off by the packet's own length. An empty packet is a keepalive.
    ///
    /// # Errors
    /// Nothing was sealed and nothing was kept: see [`SealError`].
    fn seal(&mut self, lane: LaneKey, packet: &[u8], now: Instant, out: &mut [u8]) -> Result<usize, SealError>;

    /// Opens one type 4 datagram into `out[0..]`, which must be at least as long as the datagram. The lane
    /// is found by the receiver index.
    ///
    /// # Errors
    /// The datagram is to be dropped; [`OpenError::NoSession`], [`OpenError::WrongIndex`] and
    /// [`OpenError::UnknownIndex`] from a known sender call for an initiation.
    fn open(&mut self, datagram: &[u8], now: Instant, out: &mut [u8]) -> Result<Opened, OpenError>;

    /// Handles a type 1, 2 or 3 message that is for `lane`: authenticated by its seal, or admitted by
    /// [`Sessions::stock_lane`]. The reply, plain WireGuard too, is at `out[0..]`; `out` must hold
    /// [`crate::HANDSHAKE_MAX`] bytes.
    ///
    /// # Errors
    /// The message is to be dropped.
    fn handle_handshake(
        &mut self,
        lane: LaneKey,
        message: &[u8],
        now: Instant,
        out: &mut [u8],
    ) -> Result<Handshake, OpenError>;

    /// Which stock peer's lane a plain type 1, 2 or 3 message belongs to, behind a limiter: by its static
    /// key for a type 1 (one scalar multiplication), by receiver index for the others.
    fn stock_lane(&mut self, message: &[u8], from: Endpoint, now: Instant, out: &mut [u8]) -> Admission;

    /// Runs the timers that are due; what they send (initiations, keepalives: tell by the first byte) goes
    /// to `emit`, to be sent on the lane's path.
    fn handle_timeout(&mut self, now: Instant, emit: &mut dyn FnMut(LaneKey, &[u8]));

    /// When [`Sessions::handle_timeout`] wants to be called.
    fn poll_timeout(&self) -> Option<Instant>;

    /// Whether [`Sessions::seal`] would find a session.
    fn is_established(&self, lane: LaneKey) -> bool;

    /// How long ago the lane's last handshake was completed, whether its session still lives or not.
    fn last_handshake(&self, lane: LaneKey, now: Instant) -> Option<Duration>;

    /// Length of the sealed datagram for a packet of this length.
    fn sealed_len(packet_len: usize) -> usize
    where
        Self: Sized,
    {
        sealed_len(packet_len)
    }
}

/// Length of the sealed datagram for a packet of this length, padding included, so that the segments of a
/// batch can be cut equal.
pub const fn sealed_len(packet_len: usize) -> usize {
    packet_len.next_multiple_of(PADDING) + DATA_OVERHEAD
}

/// What a session with a peer is made from. Holds a secret: no `Debug`.
#[derive(Clone)]
pub struct PeerSession {
    /// The peer's static key.
    pub key: SessionKey,
    /// The pair's pre-shared key. Lanes from 1 up mix their number in, also where there is none.
    pub psk: Option<[u8; 32]>,
    /// Whether the peer runs flatlan or any WireGuard.
    pub stock: Stock,
    /// Persistent keepalive in seconds.
    pub keepalive: Option<u16>,
}

/// What a peer runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stock {
    /// flatlan: handshakes come sealed.
    No,
    /// Any WireGuard: handshakes come plain, lane 0 only.
    Yes,
}

/// One datagram was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opened {
    /// Whose session opened it.
    pub lane: LaneKey,
    /// Length of the packet in the buffer, padding cut off; 0 is a keepalive. Its version, its length and
    /// nothing else have been checked.
    pub len: usize,
    /// It confirmed a session that had carried nothing from the peer: time to flush what waited.
    pub established: bool,
}

/// One handshake message was handled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Handshake {
    /// Length of the reply in the buffer: a type 2 to an initiation, a type 4 keepalive to a response.
    /// It goes out before anything flushed.
    pub reply: Option<usize>,
    /// The lane carries data from here on: time to flush what waited. Never with a type 2 reply, whose
    /// session is not confirmed yet.
    pub established: bool,
}

/// What becomes of a plain handshake message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// For this lane: hand it to [`Sessions::handle_handshake`].
    Lane(LaneKey),
    /// Many handshakes are coming in: send this cookie reply (its length in `out`) back to the source.
    Cookie(usize),
    /// From no stock peer, or too many from there.
    Refused,
}

/// Why a packet was not sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum SealError {
    /// No session yet, or none any more.
    #[error("no session is established")]
    NoSession,
    /// The packet is longer than an IP packet can be, or its datagram than `out`.
    #[error("packet does not fit")]
    TooBig,
    /// The lane is not open.
    #[error("lane is not open")]
    UnknownLane,
}

/// Why a datagram was not opened or a handshake message not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum OpenError {
    /// `out` is shorter than this datagram could need.
    #[error("buffer is too small")]
    BufferTooSmall,
    /// The counter is above what any session may reach (WireGuard's Reject-After-Messages).
    #[error("counter is above the limit")]
    CounterTooHigh,
    /// A tag, a MAC or the static key inside is wrong.
    #[error("not authentic")]
    Forged,
    /// Too many initiations for this lane.
    #[error("too many initiations")]
    Limited,
    /// Not a message of this kind, by type or length.
    #[error("malformed")]
    Malformed,
    /// The receiver index names this lane, which has no session in that place: the peer may still use one
    /// that we have dropped.
    #[error("no session for this index")]
    NoSession {
        /// The lane.
        lane: LaneKey,
    },
    /// Authentic, but what is inside is no IP packet.
    #[error("content is no IP packet")]
    NotIp {
        /// The lane.
        lane: LaneKey,
    },
    /// The counter was seen before or is behind the window.
    #[error("replayed")]
    Replayed,
    /// The initiation is not newer than the newest seen: a replay, two that changed places, or a peer
    /// whose clock was set back.
    #[error("initiation is not newer than the last")]
    StaleInitiation,
    /// A response or cookie that answers nothing we sent.
    #[error("answers no handshake of ours")]
    Unexpected,
    /// The receiver index is of no lane.
    #[error("unknown receiver index")]
    UnknownIndex,
    /// The lane is not open.
    #[error("lane is not open")]
    UnknownLane,
    /// The receiver index names this lane, and in its place is another session: the peer uses one that we
    /// have replaced.
    #[error("receiver index is of another session")]
    WrongIndex {
        /// The lane.
        lane: LaneKey,
    },
}
