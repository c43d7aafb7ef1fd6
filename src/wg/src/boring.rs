//! boringtun as a [`Tunnel`].
//!
//! Nothing but translation: its results become [`Step`]s, its errors ours. It reads the clock and draws
//! randomness itself, and ignores the time it is given. All tunnels share one rate limiter that never
//! limits, because every message has been verified before it gets here; a second one, with a limit, judges
//! what stock peers send and answers with cookies.

use std::{
    net::{IpAddr, Ipv6Addr},
    sync::Arc,
    time::Instant,
};

use blake2::{Blake2s256, Digest as _};
use boringtun::{
    noise::{
        Packet, Tunn, TunnResult, errors::WireGuardError, handshake::parse_handshake_anon, rate_limiter::RateLimiter,
    },
    x25519::{PublicKey, StaticSecret},
};
use flatlan_types::{NodeSecret, SessionKey};

use crate::tunnel::{Admit, Step, Tunnel, TunnelConfig, TunnelError};

/// The real thing: one boringtun `Tunn`.
pub struct Boringtun {
    tunn: Tunn,
    /// Stands for the peer's address where boringtun wants one: the seal or the label has proven who sent,
    /// and a relayed message has no address.
    pseudo: IpAddr,
}

/// What all boringtun tunnels of a process share.
pub struct BoringtunIdentity {
    secret: StaticSecret,
    public: PublicKey,
    never: Arc<RateLimiter>,
    gate: RateLimiter,
}

impl Tunnel for Boringtun {
    type Identity = BoringtunIdentity;

    fn identity(secret: &NodeSecret, _seed: u64) -> BoringtunIdentity {
        let secret = secret.session().clone();
        let public = PublicKey::from(&secret);
        BoringtunIdentity {
            never: Arc::new(RateLimiter::new(&public, u64::MAX)),
            gate: RateLimiter::new(&public, GATE_PER_SECOND),
            secret,
            public,
        }
    }

    fn admit(identity: &mut BoringtunIdentity, message: &[u8], from: IpAddr, out: &mut [u8]) -> Admit {
        match identity.gate.verify_packet(Some(from), message, out) {
            Ok(_) => Admit::Pass,
            Err(TunnResult::WriteToNetwork(cookie)) => Admit::Cookie(cookie.len()),
            Err(_) => Admit::Refuse,
        }
    }

    fn reset_gate(identity: &mut BoringtunIdentity, _now: Instant) {
        // At most once a second by its own clock, however often it is asked.
        identity.gate.reset_count();
    }

    fn initiator(identity: &BoringtunIdentity, message: &[u8]) -> Option<SessionKey> {
        let Ok(Packet::HandshakeInit(init)) = Tunn::parse_incoming_packet(message) else { return None };
        let half = parse_handshake_anon(&identity.secret, &identity.public, &init).ok()?;
        Some(SessionKey::from_bytes(half.peer_static_public))
    }

    fn new(identity: &BoringtunIdentity, config: TunnelConfig, _now: Instant) -> Self {
        let peer = PublicKey::from(*config.peer.as_bytes());
        let never = Some(Arc::clone(&identity.never));
        let tunn = Tunn::new(identity.secret.clone(), peer, config.psk, config.keepalive, config.index, never);
        Self { tunn, pseudo: pseudo_address(&config.peer) }
    }

    fn seal(&mut self, packet: &[u8], _now: Instant, out: &mut [u8]) -> Step {
        step(self.tunn.encapsulate(packet, out))
    }

    fn handle(&mut self, message: &[u8], _now: Instant, out: &mut [u8]) -> Step {
        step(self.tunn.decapsulate(Some(self.pseudo), message, out))
    }

    fn tick(&mut self, _now: Instant, out: &mut [u8]) -> Step {
        step(self.tunn.update_timers(out))
    }

    fn initiate(&mut self, _now: Instant, out: &mut [u8]) -> Step {
        step(self.tunn.format_handshake_initiation(out, true))
    }

    fn drop_sessions(&mut self, identity: &BoringtunIdentity) {
        // the same key once more: what else this does is to drop the sessions
        self.tunn.set_static_private(identity.secret.clone(), identity.public, Some(Arc::clone(&identity.never)));
    }

    fn has_session(&self) -> bool {
        self.tunn.time_since_last_handshake().is_some()
    }

    fn is_expired(&self) -> bool {
        self.tunn.is_expired()
    }
}

fn step(result: TunnResult<'_>) -> Step {
    match result {
        TunnResult::Done => Step::Done,
        TunnResult::Err(error) => Step::Failed(refusal(&error)),
        TunnResult::WriteToNetwork(bytes) => Step::Network(bytes.len()),
        TunnResult::WriteToTunnelV4(packet, _) | TunnResult::WriteToTunnelV6(packet, _) => Step::Packet(packet.len()),
    }
}

fn refusal(error: &WireGuardError) -> TunnelError {
    match error {
        WireGuardError::ConnectionExpired => TunnelError::Expired,
        WireGuardError::InvalidAeadTag | WireGuardError::InvalidMac | WireGuardError::WrongKey => TunnelError::Forged,
        WireGuardError::InvalidCounter | WireGuardError::DuplicateCounter => TunnelError::Replayed,
        // Type and length were checked before, so this is about the decrypted content.
        WireGuardError::InvalidPacket => TunnelError::NotIp,
        WireGuardError::NoCurrentSession => TunnelError::NoSession,
        WireGuardError::UnexpectedPacket => TunnelError::Unexpected,
        WireGuardError::WrongIndex => TunnelError::WrongIndex,
        WireGuardError::WrongTai64nTimestamp | WireGuardError::InvalidTai64nTimestamp => TunnelError::StaleInitiation,
        WireGuardError::DestinationBufferTooSmall
        | WireGuardError::IncorrectPacketLength
        | WireGuardError::LockFailed
        | WireGuardError::UnderLoad
        | WireGuardError::WrongPacketType => TunnelError::Malformed,
    }
}

fn pseudo_address(peer: &SessionKey) -> IpAddr {
    let hash: [u8; 32] =
        Blake2s256::new().chain_update(b"flatlan pseudo v1").chain_update(peer.as_bytes()).finalize().into();
    let octets = hash.first_chunk().copied().unwrap_or_default();
    IpAddr::V6(Ipv6Addr::from_octets(octets))
}

/// What a lane costs as long as its member is one, at rest too.
const _: () = assert!(size_of::<Boringtun>() <= 12 * 1024);
/// How many plain handshakes a second are taken without a cookie, from all sources together.
const GATE_PER_SECOND: u64 = 100;
