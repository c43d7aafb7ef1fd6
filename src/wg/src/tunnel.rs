//! One lane's session machine, as the engine drives it: boringtun, or its stand-in without cryptography.
//!
//! The methods are boringtun's own four, with time as an argument and lengths for results; the rules of
//! their use are the engine's.

use std::{net::IpAddr, time::Instant};

use flatlan_types::{NodeSecret, SessionKey};

/// A session machine.
pub trait Tunnel: Sized {
    /// What all tunnels of a process share: our static key and the handshake gate.
    type Identity;

    /// Our side, from our secret.
    fn identity(secret: &NodeSecret, seed: u64) -> Self::Identity;

    /// Judges a plain handshake message from `from`: its MAC, and under load its cookie.
    fn admit(identity: &mut Self::Identity, message: &[u8], from: IpAddr, out: &mut [u8]) -> Admit;

    /// Lets the gate start a new second if one has passed. Called at every tick.
    fn reset_gate(identity: &mut Self::Identity, now: Instant);

    /// The static key inside an initiation that was made for us.
    fn initiator(identity: &Self::Identity, message: &[u8]) -> Option<SessionKey>;

    /// A machine without a session.
    fn new(identity: &Self::Identity, config: TunnelConfig, now: Instant) -> Self;

    /// Seals `packet`. Only with a session: without one boringtun would queue it.
    fn seal(&mut self, packet: &[u8], now: Instant, out: &mut [u8]) -> Step;

    /// Handles any message; its length and type have been checked.
    fn handle(&mut self, message: &[u8], now: Instant, out: &mut [u8]) -> Step;

    /// Advances the machine's notion of time and does what is due.
    fn tick(&mut self, now: Instant, out: &mut [u8]) -> Step;

    /// Writes an initiation, whether one is under way or not.
    fn initiate(&mut self, now: Instant, out: &mut [u8]) -> Step;

    /// Drops all sessions with their keys, and nothing else: the newest initiation seen stays known.
    fn drop_sessions(&mut self, identity: &Self::Identity);

    /// Whether there is a session to seal with.
    fn has_session(&self) -> bool;

    /// Whether attempts were given up.
    fn is_expired(&self) -> bool;
}

/// What a tunnel is made from. Holds a secret: no `Debug`.
pub struct TunnelConfig {
    /// The peer's static key.
    pub peer: SessionKey,
    /// The lane's pre-shared key.
    pub psk: Option<[u8; 32]>,
    /// Persistent keepalive in seconds.
    pub keepalive: Option<u16>,
    /// The 24-bit index of the tunnel.
    pub index: u32,
}

/// What a call came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Nothing to send or deliver.
    Done,
    /// Refused.
    Failed(TunnelError),
    /// So many bytes of the buffer are to be sent.
    Network(usize),
    /// So many bytes of the buffer are a packet for us.
    Packet(usize),
}

/// Why a tunnel refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum TunnelError {
    /// Attempts were given up; an initiation revives it.
    #[error("handshake attempts were given up")]
    Expired,
    /// A tag, a MAC or the static key inside is wrong.
    #[error("not authentic")]
    Forged,
    /// Wrong length or type.
    #[error("malformed")]
    Malformed,
    /// No session in that place.
    #[error("no session")]
    NoSession,
    /// Authentic, but what is inside is no IP packet.
    #[error("content is no IP packet")]
    NotIp,
    /// The counter was seen before or is behind the window.
    #[error("replayed")]
    Replayed,
    /// The initiation is not newer than the last.
    #[error("initiation is not newer than the last")]
    StaleInitiation,
    /// Answers nothing we sent.
    #[error("unexpected")]
    Unexpected,
    /// Another session is in that place.
    #[error("receiver index is of another session")]
    WrongIndex,
}

/// What the gate says of a plain handshake message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admit {
    /// Let in.
    Pass,
    /// Prove your address first, by this many bytes of cookie reply.
    Cookie(usize),
    /// Not for us.
    Refuse,
}
