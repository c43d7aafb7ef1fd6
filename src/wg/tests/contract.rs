//! What every engine promises, run over both: boringtun, and the plain stand-in that the simulator uses.
//!
//! Time is an argument, and boringtun ignores it: here only what does not wait for its own clock. Timers are
//! in `timers.rs`, in virtual time.

#![expect(clippy::indexing_slicing, clippy::unwrap_used, reason = "helpers of tests")]

use std::time::{Duration, Instant};

use flatlan_types::{Endpoint, LaneId, LaneKey, NodeSecret, NodeSeed, PeerSlot};
use flatlan_wg::{
    Admission, Boringtun, Engine, HANDSHAKE_MAX, Handshake, MessageKind, OpenError, Opened, PeerSession, Plain,
    SealError, Sessions, Stock, Tunnel, sealed_len,
};

/// Writes each test once and runs it for both engines.
macro_rules! contract {
    ($($name:ident),* $(,)?) => {
        mod boringtun {
            $(#[test] fn $name() { super::$name::<super::Boringtun>(); })*
        }
        mod plain {
            $(#[test] fn $name() { super::$name::<super::Plain>(); })*
        }
    };
}

contract! {
    a_counter_above_2_to_the_60_never_reaches_the_tunnel,
    a_forged_datagram_changes_nothing,
    a_handshake_carries_data_both_ways,
    a_handshake_for_another_lane_establishes_nothing,
    a_keepalive_is_an_empty_packet,
    a_lane_without_a_session_keeps_no_packet,
    a_message_for_an_unopened_lane_is_refused,
    a_recorded_initiation_is_refused_after_a_rest,
    a_recorded_initiation_is_refused_until_the_lane_is_opened_anew,
    a_response_nobody_waits_for_is_refused,
    a_restarted_peer_is_seen_at_the_first_datagram,
    a_slow_response_to_the_last_but_one_initiation_still_counts,
    a_small_buffer_is_an_error_at_every_length,
    a_stock_peer_is_found_by_key_and_by_index,
    a_stock_source_is_limited_and_another_is_not,
    a_wrong_psk_establishes_nothing,
    an_index_of_another_session_is_told_from_none,
    an_initiation_from_another_key_is_refused,
    closing_a_peer_forgets_all_its_lanes,
    a_lane_at_rest_has_no_session_and_no_timer_and_comes_back_from_either_end,
    content_that_is_no_ip_packet_is_refused_and_still_confirms_the_session,
    initiations_are_spaced,
    initiations_per_lane_are_limited,
    lanes_are_independent,
    many_handshakes_bring_no_cookie,
    no_datagram_makes_it_panic,
    packets_are_padded_to_16_and_cut_again,
    replays_are_refused_within_a_window_of_1024,
    sixty_lost_responses_do_not_touch_the_session_in_use,
    sixty_lost_responses_do_not_establish_a_session,
    stock_handshakes_beyond_the_gate_cost_a_cookie,
    the_responder_sends_nothing_until_its_session_is_confirmed,
    two_initiations_that_cross_lose_nothing,
}

struct Pair<T: Tunnel> {
    a: Engine<T>,
    b: Engine<T>,
    now: Instant,
}

impl<T: Tunnel> Pair<T> {
    /// Two nodes that have opened lane 0 to each other.
    fn new() -> Self {
        Self::with(Stock::No, None, None)
    }

    fn with(stock: Stock, psk_a: Option<[u8; 32]>, psk_b: Option<[u8; 32]>) -> Self {
        let now = Instant::now();
        let mut pair = Self { a: Engine::new(&secret(1), 11), b: Engine::new(&secret(2), 22), now };
        pair.a.open_lane(TO_B, PeerSession { stock, psk: psk_a, ..session(2) }, now);
        pair.b.open_lane(TO_A, PeerSession { stock, psk: psk_b, ..session(1) }, now);
        pair
    }

    fn established() -> Self {
        let mut pair = Self::new();
        pair.handshake(TO_B, TO_A);
        pair
    }

    /// `a` initiates; every message arrives.
    fn handshake(&mut self, to_b: LaneKey, to_a: LaneKey) {
        let initiation = self.initiation(to_b);
        let (_, response) = handle(&mut self.b, to_a, &initiation, self.now).unwrap();
        let (_, keepalive) = handle(&mut self.a, to_b, &response, self.now).unwrap();
        open(&mut self.b, &keepalive, self.now).unwrap();
    }

    fn initiation(&mut self, lane: LaneKey) -> Vec<u8> {
        initiate(&mut self.a, lane, self.now).expect("no initiation went out just before")
    }

    fn later(&mut self, by: Duration) {
        self.now += by;
    }
}

const TO_B: LaneKey = LaneKey { peer: PeerSlot(7), lane: LaneId::PRIMARY };
const TO_A: LaneKey = LaneKey { peer: PeerSlot(3), lane: LaneId::PRIMARY };

fn standby(lane: LaneKey) -> LaneKey {
    LaneKey { lane: LaneId::STANDBY, ..lane }
}

fn secret(n: u8) -> NodeSecret {
    NodeSeed::from_bytes([n; 32]).derive()
}

fn session(peer: u8) -> PeerSession {
    PeerSession { key: secret(peer).public().session, psk: None, stock: Stock::No, keepalive: None }
}

fn endpoint(s: &str) -> Endpoint {
    Endpoint::new(s.parse().unwrap())
}

/// An IPv4 packet of `len` bytes whose payload counts up from `tag`.
fn packet(len: usize, tag: u8) -> Vec<u8> {
    let mut packet: Vec<u8> = (0..len).map(|n| tag.wrapping_add(n as u8)).collect();
    packet[0] = 0x45;
    packet[2..4].copy_from_slice(&(len as u16).to_be_bytes());
    packet
}

fn packet_v6(payload: usize) -> Vec<u8> {
    let mut packet = vec![0x77; 40 + payload];
    packet[0] = 0x60;
    packet[4..6].copy_from_slice(&(payload as u16).to_be_bytes());
    packet
}

fn initiate<T: Tunnel>(engine: &mut Engine<T>, lane: LaneKey, now: Instant) -> Option<Vec<u8>> {
    let mut out = [0; HANDSHAKE_MAX];
    let len = engine.initiate(lane, now, &mut out)?;
    Some(out[..len].to_vec())
}

fn seal<T: Tunnel>(engine: &mut Engine<T>, lane: LaneKey, packet: &[u8], now: Instant) -> Result<Vec<u8>, SealError> {
    let mut out = vec![0xee; sealed_len(packet.len())];
    let len = engine.seal(lane, packet, now, &mut out)?;
    assert_eq!(len, out.len(), "sealed_len told the truth");
    Ok(out)
}

fn open<T: Tunnel>(engine: &mut Engine<T>, datagram: &[u8], now: Instant) -> Result<(Opened, Vec<u8>), OpenError> {
    let mut out = vec![0xee; datagram.len()];
    let opened = engine.open(datagram, now, &mut out)?;
    out.truncate(opened.len);
    Ok((opened, out))
}

fn handle<T: Tunnel>(
    engine: &mut Engine<T>,
    lane: LaneKey,
    message: &[u8],
    now: Instant,
) -> Result<(Handshake, Vec<u8>), OpenError> {
    let mut out = [0xee; HANDSHAKE_MAX];
    let handshake = engine.handle_handshake(lane, message, now, &mut out)?;
    Ok((handshake, out[..handshake.reply.unwrap_or(0)].to_vec()))
}

/// Seals at one end, opens at the other, and wants the same packet.
fn carries<T: Tunnel>(from: &mut Engine<T>, lane: LaneKey, to: &mut Engine<T>, packet: &[u8], now: Instant) -> Opened {
    let datagram = seal(from, lane, packet, now).unwrap();
    let (opened, text) = open(to, &datagram, now).unwrap();
    assert_eq!(text, packet);
    opened
}

fn a_handshake_carries_data_both_ways<T: Tunnel>() {
    let mut p = Pair::<T>::new();
    let now = p.now;
    let initiation = p.initiation(TO_B);
    assert_eq!(MessageKind::of(&initiation), Some(MessageKind::Initiation));

    let (handshake, response) = handle(&mut p.b, TO_A, &initiation, now).unwrap();
    assert_eq!(MessageKind::of(&response), Some(MessageKind::Response));
    assert_eq!(handshake, Handshake { reply: Some(92), established: false });

    let (handshake, keepalive) = handle(&mut p.a, TO_B, &response, now).unwrap();
    assert_eq!(handshake, Handshake { reply: Some(32), established: true });
    assert!(p.a.is_established(TO_B));
    assert_eq!(p.a.last_handshake(TO_B, now + Duration::from_secs(9)), Some(Duration::from_secs(9)));

    let (opened, _) = open(&mut p.b, &keepalive, now).unwrap();
    assert_eq!(opened, Opened { lane: TO_A, len: 0, established: true });
    assert!(p.b.is_established(TO_A));

    for len in [20, 28, 576, 1400, 9000, 65_535] {
        let opened = carries(&mut p.a, TO_B, &mut p.b, &packet(len, 1), now);
        assert_eq!(opened, Opened { lane: TO_A, len, established: false });
        carries(&mut p.b, TO_A, &mut p.a, &packet(len, 2), now);
    }
    carries(&mut p.a, TO_B, &mut p.b, &packet_v6(0), now);
    carries(&mut p.b, TO_A, &mut p.a, &packet_v6(1240), now);
}

fn the_responder_sends_nothing_until_its_session_is_confirmed<T: Tunnel>() {
    let mut p = Pair::<T>::new();
    let now = p.now;
    let initiation = p.initiation(TO_B);
    let (_, response) = handle(&mut p.b, TO_A, &initiation, now).unwrap();

    // Neither may anything be sealed, nor does trying start a handshake of our own.
    for _ in 0..3 {
        assert_eq!(seal(&mut p.b, TO_A, &packet(100, 0), now), Err(SealError::NoSession));
    }
    assert!(!p.b.is_established(TO_A));
    let mut emitted = 0;
    p.b.handle_timeout(now + Duration::from_millis(300), &mut |_, _| emitted += 1);
    assert_eq!(emitted, 0);

    // The first datagram confirms it, whether it is the keepalive or, that being lost, a packet.
    let _lost = handle(&mut p.a, TO_B, &response, now).unwrap();
    let opened = carries(&mut p.a, TO_B, &mut p.b, &packet(100, 0), now);
    assert!(opened.established);
    for tag in 0..4 {
        let opened = carries(&mut p.b, TO_A, &mut p.a, &packet(100, tag), now);
        assert!(!opened.established, "and what waited goes out in order, once");
    }
}

fn a_lane_without_a_session_keeps_no_packet<T: Tunnel>() {
    let mut p = Pair::<T>::new();
    let now = p.now;
    for _ in 0..300 {
        assert_eq!(seal(&mut p.a, TO_B, &packet(1400, 0), now), Err(SealError::NoSession));
    }
    p.handshake(TO_B, TO_A);
    let mut emitted = Vec::new();
    for tick in 0..8 {
        p.a.handle_timeout(now + Duration::from_millis(tick * 250), &mut |_, m| emitted.push(m.to_vec()));
    }
    assert_eq!(emitted, Vec::<Vec<u8>>::new());
    // The next datagram is the second of the session: nothing went out in between.
    assert_eq!(seal(&mut p.a, TO_B, &packet(20, 0), now).unwrap()[8..16], 1_u64.to_le_bytes());
}

fn packets_are_padded_to_16_and_cut_again<T: Tunnel>() {
    let mut p = Pair::<T>::established();
    let now = p.now;
    for len in 20..=120 {
        let datagram = seal(&mut p.a, TO_B, &packet(len, 3), now).unwrap();
        assert_eq!(datagram.len() % 16, 0);
        assert_eq!(datagram.len(), len.next_multiple_of(16) + 32);
        assert_eq!(open(&mut p.b, &datagram, now).unwrap().1, packet(len, 3));

        let mut padded = packet(len, 4);
        padded.resize(len.next_multiple_of(16), 0);
        let datagram = seal(&mut p.a, TO_B, &padded, now).unwrap();
        assert_eq!(open(&mut p.b, &datagram, now).unwrap().1, packet(len, 4), "padded by the caller");
    }
}

fn a_keepalive_is_an_empty_packet<T: Tunnel>() {
    let mut p = Pair::<T>::established();
    let datagram = seal(&mut p.b, TO_A, &[], p.now).unwrap();
    assert_eq!(datagram.len(), 32);
    let (opened, _) = open(&mut p.a, &datagram, p.now).unwrap();
    assert_eq!(opened.len, 0);
}

fn a_small_buffer_is_an_error_at_every_length<T: Tunnel>() {
    let mut p = Pair::<T>::new();
    let now = p.now;
    for len in 0..HANDSHAKE_MAX {
        assert_eq!(p.a.initiate(TO_B, now, &mut vec![0; len]), None);
    }
    let initiation = p.initiation(TO_B);
    for len in 0..HANDSHAKE_MAX {
        let result = p.b.handle_handshake(TO_A, &initiation, now, &mut vec![0; len]);
        assert_eq!(result, Err(OpenError::BufferTooSmall));
    }
    let (_, response) = handle(&mut p.b, TO_A, &initiation, now).unwrap();
    let (_, keepalive) = handle(&mut p.a, TO_B, &response, now).unwrap();
    open(&mut p.b, &keepalive, now).unwrap();

    for size in [20, 28, 33, 1400] {
        for len in 0..sealed_len(size) {
            assert_eq!(p.a.seal(TO_B, &packet(size, 0), now, &mut vec![0; len]), Err(SealError::TooBig));
        }
        let datagram = seal(&mut p.a, TO_B, &packet(size, 0), now).unwrap();
        for len in 0..datagram.len() {
            assert_eq!(p.b.open(&datagram, now, &mut vec![0; len]), Err(OpenError::BufferTooSmall));
        }
        assert_eq!(open(&mut p.b, &datagram, now).unwrap().1, packet(size, 0));
    }
    let huge = vec![0x45; 65_536];
    assert_eq!(p.a.seal(TO_B, &huge, now, &mut vec![0; 70_000]), Err(SealError::TooBig));
}

fn no_datagram_makes_it_panic<T: Tunnel>() {
    let mut p = Pair::<T>::established();
    let now = p.now;
    let good = seal(&mut p.a, TO_B, &packet(64, 0), now).unwrap();
    let index: [u8; 4] = good[4..8].try_into().unwrap();
    let mut out = vec![0; 2048];
    for kind in 0..=5 {
        for len in 0..300 {
            for fill in [0x00, 0xff, 0x45] {
                let mut datagram = vec![fill; len];
                for (place, byte) in datagram.iter_mut().zip([kind, 0, 0, 0].into_iter().chain(index)) {
                    *place = byte;
                }
                assert!(p.b.open(&datagram, now, &mut out).is_err());
                assert!(p.b.handle_handshake(TO_A, &datagram, now, &mut out).is_err());
                assert_eq!(p.b.stock_lane(&datagram, endpoint("192.0.2.1:1"), now, &mut out), Admission::Refused);
            }
        }
    }
    let mut reserved = good.clone();
    reserved[2] = 1;
    assert_eq!(open(&mut p.b, &reserved, now), Err(OpenError::Malformed));
    assert!(open(&mut p.b, &good, now).is_ok());
}

fn a_counter_above_2_to_the_60_never_reaches_the_tunnel<T: Tunnel>() {
    let mut p = Pair::<T>::established();
    let mut datagram = seal(&mut p.a, TO_B, &packet(64, 0), p.now).unwrap();
    for counter in [(1 << 60) + 1, 1 << 61, u64::MAX - 8192, u64::MAX - 1, u64::MAX] {
        datagram[8..16].copy_from_slice(&u64::to_le_bytes(counter));
        assert_eq!(open(&mut p.b, &datagram, p.now), Err(OpenError::CounterTooHigh));
    }
    datagram[8..16].copy_from_slice(&u64::to_le_bytes(1 << 60));
    assert_eq!(open(&mut p.b, &datagram, p.now), Err(OpenError::Forged));
}

fn replays_are_refused_within_a_window_of_1024<T: Tunnel>() {
    let mut p = Pair::<T>::established();
    let now = p.now;
    let sent: Vec<Vec<u8>> = (0..1100).map(|n| seal(&mut p.a, TO_B, &packet(20, n as u8), now).unwrap()).collect();
    open(&mut p.b, &sent[1099], now).unwrap();
    assert_eq!(open(&mut p.b, &sent[1099], now), Err(OpenError::Replayed));
    assert!(open(&mut p.b, &sent[1099 - 1023], now).is_ok());
    assert_eq!(open(&mut p.b, &sent[1099 - 1023], now), Err(OpenError::Replayed));
    assert_eq!(open(&mut p.b, &sent[1099 - 1024], now), Err(OpenError::Replayed));
    assert!(open(&mut p.b, &sent[1098], now).is_ok());
}

fn a_forged_datagram_changes_nothing<T: Tunnel>() {
    let mut p = Pair::<T>::established();
    let now = p.now;
    let good = seal(&mut p.a, TO_B, &packet(64, 0), now).unwrap();
    for at in 16..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 1;
        assert_eq!(open(&mut p.b, &bad, now), Err(OpenError::Forged));
    }
    let mut ahead = good.clone();
    ahead[8..16].copy_from_slice(&500_000_u64.to_le_bytes());
    assert_eq!(open(&mut p.b, &ahead, now), Err(OpenError::Forged));
    assert!(open(&mut p.b, &good, now).is_ok(), "the window did not move");
}

fn content_that_is_no_ip_packet_is_refused_and_still_confirms_the_session<T: Tunnel>() {
    let mut p = Pair::<T>::new();
    let now = p.now;
    let initiation = p.initiation(TO_B);
    let (_, response) = handle(&mut p.b, TO_A, &initiation, now).unwrap();
    handle(&mut p.a, TO_B, &response, now).unwrap();

    let v4 = |total: u16| {
        let mut packet = packet(64, 0);
        packet[2..4].copy_from_slice(&total.to_be_bytes());
        packet
    };
    let mut v6_too_long = packet_v6(24);
    v6_too_long[4..6].copy_from_slice(&25_u16.to_be_bytes());
    let mut bad: Vec<Vec<u8>> = (0..20).map(v4).collect();
    bad.extend([v4(65), v4(u16::MAX), v6_too_long, vec![0x45; 16], vec![0x60; 32], vec![0; 64], vec![0xf0; 64]]);
    for content in bad {
        let datagram = seal(&mut p.a, TO_B, &content, now).unwrap();
        assert_eq!(open(&mut p.b, &datagram, now), Err(OpenError::NotIp { lane: TO_A }), "{:02x?}", &content[..4]);
    }
    assert!(p.b.is_established(TO_A));
    let opened = carries(&mut p.a, TO_B, &mut p.b, &packet(64, 0), now);
    assert!(opened.established, "the caller hears of it with the first good packet");
}

fn an_index_of_another_session_is_told_from_none<T: Tunnel>() {
    let mut p = Pair::<T>::established();
    let good = seal(&mut p.a, TO_B, &packet(64, 0), p.now).unwrap();
    let with_low = |low: u8| {
        let mut datagram = good.clone();
        datagram[4] = low;
        datagram
    };
    let low = good[4];
    assert_eq!(
        open(&mut p.b, &with_low(low.wrapping_add(8)), p.now),
        Err(OpenError::WrongIndex { lane: TO_A }),
        "the same slot"
    );
    assert_eq!(open(&mut p.b, &with_low(low.wrapping_add(1)), p.now), Err(OpenError::NoSession { lane: TO_A }));
    let mut stranger = good.clone();
    stranger[5] ^= 0xff;
    assert_eq!(open(&mut p.b, &stranger, p.now), Err(OpenError::UnknownIndex));
    assert!(open(&mut p.b, &good, p.now).is_ok());
}

fn a_restarted_peer_is_seen_at_the_first_datagram<T: Tunnel>() {
    let mut p = Pair::<T>::established();
    let mut before = std::mem::replace(&mut p.b, Engine::new(&secret(2), 33));
    p.b.open_lane(TO_A, session(1), p.now);
    let datagram = seal(&mut p.a, TO_B, &packet(64, 0), p.now).unwrap();
    assert_eq!(open(&mut p.b, &datagram, p.now), Err(OpenError::UnknownIndex));
    let reply_to_old = seal(&mut before, TO_A, &packet(64, 0), p.now).unwrap();

    // b starts at once; a, told of the new epoch, has opened the lane anew.
    p.a.open_lane(TO_B, session(2), p.now);
    assert!(!p.a.is_established(TO_B));
    assert_eq!(open(&mut p.a, &reply_to_old, p.now), Err(OpenError::UnknownIndex), "the old index is gone");
    let initiation = initiate(&mut p.b, TO_A, p.now).unwrap();
    let (_, response) = handle(&mut p.a, TO_B, &initiation, p.now).unwrap();
    let (_, keepalive) = handle(&mut p.b, TO_A, &response, p.now).unwrap();
    open(&mut p.a, &keepalive, p.now).unwrap();
    let now = p.now;
    carries(&mut p.a, TO_B, &mut p.b, &packet(64, 0), now);
}

fn a_recorded_initiation_is_refused_until_the_lane_is_opened_anew<T: Tunnel>() {
    let mut p = Pair::<T>::new();
    let older = p.initiation(TO_B);
    p.later(Duration::from_secs(1));
    let newer = p.initiation(TO_B);
    assert!(handle(&mut p.b, TO_A, &newer, p.now).is_ok());
    assert_eq!(handle(&mut p.b, TO_A, &newer, p.now), Err(OpenError::StaleInitiation));
    assert_eq!(handle(&mut p.b, TO_A, &older, p.now), Err(OpenError::StaleInitiation));
    // A rise of an epoch: the clock of the peer may have been set back.
    p.b.open_lane(TO_A, session(1), p.now);
    assert!(handle(&mut p.b, TO_A, &older, p.now).is_ok());
}

fn a_recorded_initiation_is_refused_after_a_rest<T: Tunnel>() {
    let mut p = Pair::<T>::new();
    let recorded = p.initiation(TO_B);
    let (_, response) = handle(&mut p.b, TO_A, &recorded, p.now).unwrap();
    let (_, keepalive) = handle(&mut p.a, TO_B, &response, p.now).unwrap();
    open(&mut p.b, &keepalive, p.now).unwrap();
    p.b.rest_peer(TO_A.peer);
    p.later(Duration::from_secs(1));
    assert_eq!(handle(&mut p.b, TO_A, &recorded, p.now), Err(OpenError::StaleInitiation));
    assert_eq!(p.b.poll_timeout(), None, "it wakes nobody");
}

fn a_lane_at_rest_has_no_session_and_no_timer_and_comes_back_from_either_end<T: Tunnel>() {
    let mut p = Pair::<T>::established();
    let late = seal(&mut p.a, TO_B, &packet(100, 1), p.now).unwrap();
    p.a.rest_peer(TO_B.peer);
    p.b.rest_peer(TO_A.peer);
    p.b.rest_peer(TO_A.peer);
    assert!(!p.b.is_established(TO_A) && p.b.last_handshake(TO_A, p.now).is_none());
    assert_eq!((p.a.poll_timeout(), p.b.poll_timeout()), (None, None));
    assert_eq!(seal(&mut p.b, TO_A, &packet(100, 1), p.now), Err(SealError::NoSession));
    assert_eq!(open(&mut p.b, &late, p.now).unwrap_err(), OpenError::NoSession { lane: TO_A });
    p.later(Duration::from_secs(1));
    p.handshake(TO_B, TO_A);
    assert!(p.a.poll_timeout().is_some() && p.b.poll_timeout().is_some());
    let now = p.now;
    carries(&mut p.a, TO_B, &mut p.b, &packet(64, 0), now);
    carries(&mut p.b, TO_A, &mut p.a, &packet(64, 0), now);
    p.b.rest_peer(TO_A.peer);
    p.b.close_peer(TO_A.peer);
    assert_eq!(p.b.poll_timeout(), None);
}

fn a_slow_response_to_the_last_but_one_initiation_still_counts<T: Tunnel>() {
    let mut p = Pair::<T>::new();
    let first = p.initiation(TO_B);
    let (_, response) = handle(&mut p.b, TO_A, &first, p.now).unwrap();
    p.later(Duration::from_secs(1));
    let _second = p.initiation(TO_B);
    let (handshake, keepalive) = handle(&mut p.a, TO_B, &response, p.now).unwrap();
    assert!(handshake.established);
    open(&mut p.b, &keepalive, p.now).unwrap();
    let now = p.now;
    carries(&mut p.b, TO_A, &mut p.a, &packet(64, 0), now);
}

fn a_response_nobody_waits_for_is_refused<T: Tunnel>() {
    let mut p = Pair::<T>::new();
    let initiation = p.initiation(TO_B);
    let (_, response) = handle(&mut p.b, TO_A, &initiation, p.now).unwrap();
    handle(&mut p.a, TO_B, &response, p.now).unwrap();
    assert_eq!(handle(&mut p.a, TO_B, &response, p.now), Err(OpenError::Unexpected));
    let mut stranger = response.clone();
    stranger[9] ^= 0xff;
    assert_eq!(handle(&mut p.a, TO_B, &stranger, p.now), Err(OpenError::WrongIndex { lane: TO_B }));
    let mut forged = response;
    forged[30] ^= 1;
    assert_eq!(handle(&mut p.a, TO_B, &forged, p.now), Err(OpenError::Forged), "by its MAC");
}

fn initiations_are_spaced<T: Tunnel>() {
    for (stock, spacing) in [(Stock::No, 250), (Stock::Yes, 5000)] {
        let mut p = Pair::<T>::with(stock, None, None);
        let spacing = Duration::from_millis(spacing);
        assert!(initiate(&mut p.a, TO_B, p.now).is_some());
        assert!(initiate(&mut p.a, TO_B, p.now).is_none());
        let soon = p.now + spacing - Duration::from_millis(1);
        assert!(initiate(&mut p.a, TO_B, soon).is_none());
        assert!(initiate(&mut p.a, TO_B, p.now + spacing).is_some());
    }
}

fn initiations_per_lane_are_limited<T: Tunnel>() {
    let mut p = Pair::<T>::new();
    let initiation = p.initiation(TO_B);
    let mut limited = 0;
    for _ in 0..100 {
        limited += usize::from(handle(&mut p.b, TO_A, &initiation, p.now) == Err(OpenError::Limited));
    }
    assert_eq!(limited, 90);
    p.later(Duration::from_secs(1));
    let fresh = p.initiation(TO_B);
    assert!(handle(&mut p.b, TO_A, &fresh, p.now).is_ok());
}

fn many_handshakes_bring_no_cookie<T: Tunnel>() {
    let mut p = Pair::<T>::new();
    for _ in 0..40 {
        p.later(Duration::from_secs(1));
        p.handshake(TO_B, TO_A);
    }
    let now = p.now;
    carries(&mut p.a, TO_B, &mut p.b, &packet(64, 0), now);
    carries(&mut p.b, TO_A, &mut p.a, &packet(64, 0), now);
}

fn sixty_lost_responses_do_not_touch_the_session_in_use<T: Tunnel>() {
    for confirmed_after in 1..10 {
        let mut p = Pair::<T>::new();
        for _ in 0..confirmed_after {
            p.later(Duration::from_secs(1));
            p.handshake(TO_B, TO_A);
        }
        for lost in 0..60 {
            p.later(Duration::from_secs(1));
            let initiation = p.initiation(TO_B);
            let _lost = handle(&mut p.b, TO_A, &initiation, p.now).unwrap();
            let now = p.now;
            let opened = carries(&mut p.b, TO_A, &mut p.a, &packet(64, lost), now);
            assert!(!opened.established);
            carries(&mut p.a, TO_B, &mut p.b, &packet(64, lost), now);
        }
        p.later(Duration::from_secs(1));
        p.handshake(TO_B, TO_A);
        let now = p.now;
        carries(&mut p.b, TO_A, &mut p.a, &packet(64, 0), now);
    }
}

fn sixty_lost_responses_do_not_establish_a_session<T: Tunnel>() {
    let mut p = Pair::<T>::new();
    for _ in 0..60 {
        p.later(Duration::from_secs(1));
        let initiation = p.initiation(TO_B);
        let _lost = handle(&mut p.b, TO_A, &initiation, p.now).unwrap();
        let tick = p.now + Duration::from_millis(300);
        p.b.handle_timeout(tick, &mut |_, _| {});
        assert!(!p.b.is_established(TO_A));
        assert_eq!(seal(&mut p.b, TO_A, &packet(64, 0), p.now), Err(SealError::NoSession));
    }
    p.later(Duration::from_secs(1));
    p.handshake(TO_B, TO_A);
    let now = p.now;
    carries(&mut p.b, TO_A, &mut p.a, &packet(64, 0), now);
}

fn two_initiations_that_cross_lose_nothing<T: Tunnel>() {
    let mut p = Pair::<T>::new();
    let now = p.now;
    let from_a = p.initiation(TO_B);
    let from_b = initiate(&mut p.b, TO_A, now).unwrap();
    let (_, answer_of_b) = handle(&mut p.b, TO_A, &from_a, now).unwrap();
    let (_, answer_of_a) = handle(&mut p.a, TO_B, &from_b, now).unwrap();
    let (at_a, keepalive_of_a) = handle(&mut p.a, TO_B, &answer_of_b, now).unwrap();
    assert!(at_a.established);
    carries(&mut p.a, TO_B, &mut p.b, &packet(64, 1), now);
    let (at_b, keepalive_of_b) = handle(&mut p.b, TO_A, &answer_of_a, now).unwrap();
    assert!(at_b.established);
    open(&mut p.a, &keepalive_of_b, now).unwrap();
    open(&mut p.b, &keepalive_of_a, now).unwrap();
    for tag in 0..10 {
        carries(&mut p.a, TO_B, &mut p.b, &packet(64, tag), now);
        carries(&mut p.b, TO_A, &mut p.a, &packet(64, tag), now);
    }
}

fn lanes_are_independent<T: Tunnel>() {
    let mut p = Pair::<T>::established();
    let now = p.now;
    p.a.open_lane(standby(TO_B), session(2), now);
    p.b.open_lane(standby(TO_A), session(1), now);
    assert_eq!(seal(&mut p.a, standby(TO_B), &packet(64, 0), now), Err(SealError::NoSession));
    p.handshake(standby(TO_B), standby(TO_A));
    assert_eq!(carries(&mut p.a, standby(TO_B), &mut p.b, &packet(64, 0), now).lane, standby(TO_A));
    assert_eq!(carries(&mut p.a, TO_B, &mut p.b, &packet(64, 0), now).lane, TO_A);
    p.a.close_lane(TO_B);
    assert_eq!(seal(&mut p.a, TO_B, &packet(64, 0), now), Err(SealError::UnknownLane));
    carries(&mut p.b, standby(TO_A), &mut p.a, &packet(64, 0), now);
}

fn a_handshake_for_another_lane_establishes_nothing<T: Tunnel>() {
    let mut p = Pair::<T>::new();
    p.a.open_lane(standby(TO_B), session(2), p.now);
    let initiation = p.initiation(standby(TO_B));
    // Its tag would stop it; without that, the lane's own pre-shared key does.
    let (_, response) = handle(&mut p.b, TO_A, &initiation, p.now).unwrap();
    assert_eq!(handle(&mut p.a, standby(TO_B), &response, p.now), Err(OpenError::Forged));
    assert!(!p.a.is_established(standby(TO_B)));
}

fn a_wrong_psk_establishes_nothing<T: Tunnel>() {
    let mut p = Pair::<T>::with(Stock::No, Some([1; 32]), Some([2; 32]));
    let initiation = p.initiation(TO_B);
    let (_, response) = handle(&mut p.b, TO_A, &initiation, p.now).unwrap();
    assert_eq!(handle(&mut p.a, TO_B, &response, p.now), Err(OpenError::Forged));
    let mut p = Pair::<T>::with(Stock::No, Some([1; 32]), Some([1; 32]));
    p.handshake(TO_B, TO_A);
}

fn an_initiation_from_another_key_is_refused<T: Tunnel>() {
    let mut p = Pair::<T>::new();
    let mut mallory = Engine::<T>::new(&secret(9), 9);
    mallory.open_lane(TO_B, session(2), p.now);
    let initiation = initiate(&mut mallory, TO_B, p.now).unwrap();
    assert_eq!(handle(&mut p.b, TO_A, &initiation, p.now), Err(OpenError::Forged));
    let mut for_someone_else = Engine::<T>::new(&secret(5), 5);
    for_someone_else.open_lane(TO_A, session(1), p.now);
    let initiation = p.initiation(TO_B);
    assert_eq!(handle(&mut for_someone_else, TO_A, &initiation, p.now), Err(OpenError::Forged), "by its MAC");
}

fn a_message_for_an_unopened_lane_is_refused<T: Tunnel>() {
    let mut p = Pair::<T>::new();
    let initiation = p.initiation(TO_B);
    for lane in [standby(TO_A), LaneKey { peer: PeerSlot(4), ..TO_A }, LaneKey { peer: PeerSlot(u32::MAX), ..TO_A }] {
        assert_eq!(handle(&mut p.b, lane, &initiation, p.now), Err(OpenError::UnknownLane));
        assert_eq!(seal(&mut p.b, lane, &packet(20, 0), p.now), Err(SealError::UnknownLane));
        assert_eq!(initiate(&mut p.b, lane, p.now), None);
        p.b.close_lane(lane);
        p.b.close_peer(lane.peer);
    }
}

fn closing_a_peer_forgets_all_its_lanes<T: Tunnel>() {
    let mut p = Pair::<T>::established();
    let now = p.now;
    p.a.open_lane(standby(TO_B), session(2), now);
    p.b.open_lane(standby(TO_A), session(1), now);
    p.handshake(standby(TO_B), standby(TO_A));
    let sent = [TO_B, standby(TO_B)].map(|lane| seal(&mut p.a, lane, &packet(64, 0), now).unwrap());
    assert!(p.b.poll_timeout().is_some());
    p.b.close_peer(TO_A.peer);
    for datagram in sent {
        assert_eq!(open(&mut p.b, &datagram, now), Err(OpenError::UnknownIndex));
    }
    assert_eq!(p.b.poll_timeout(), None);
    assert_eq!(p.b.last_handshake(TO_A, now), None);
}

fn a_stock_peer_is_found_by_key_and_by_index<T: Tunnel>() {
    let mut p = Pair::<T>::with(Stock::Yes, None, None);
    let (now, from) = (p.now, endpoint("192.0.2.1:51820"));
    let mut out = [0; HANDSHAKE_MAX];
    p.b.open_lane(LaneKey { peer: PeerSlot(8), ..TO_A }, session(8), now);

    let initiation = p.initiation(TO_B);
    assert_eq!(p.b.stock_lane(&initiation, from, now, &mut out), Admission::Lane(TO_A));
    let (_, response) = handle(&mut p.b, TO_A, &initiation, now).unwrap();
    assert_eq!(p.a.stock_lane(&response, from, now, &mut out), Admission::Lane(TO_B));
    assert_eq!(p.a.stock_lane(&response, from, now, &mut out[..HANDSHAKE_MAX - 1]), Admission::Refused);

    let mut bad_mac = initiation.clone();
    bad_mac[120] ^= 1;
    assert_eq!(p.b.stock_lane(&bad_mac, from, now, &mut out), Admission::Refused);
    // A member that runs flatlan, and a stranger: not plain.
    for n in [8, 9] {
        let mut other = Engine::<T>::new(&secret(n), n.into());
        other.open_lane(TO_B, session(2), now);
        let initiation = initiate(&mut other, TO_B, now).unwrap();
        assert_eq!(p.b.stock_lane(&initiation, endpoint("192.0.2.9:1"), now, &mut out), Admission::Refused);
    }
    p.b.close_lane(TO_A);
    assert_eq!(p.b.stock_lane(&initiation, from, now, &mut out), Admission::Refused);
}

fn a_stock_source_is_limited_and_another_is_not<T: Tunnel>() {
    let mut p = Pair::<T>::with(Stock::Yes, None, None);
    let initiation = p.initiation(TO_B);
    let mut out = [0; HANDSHAKE_MAX];
    let mut admitted = |from: &str, times: usize| {
        (0..times)
            .filter(|_| p.b.stock_lane(&initiation, endpoint(from), p.now, &mut out) != Admission::Refused)
            .count()
    };
    assert_eq!(admitted("192.0.2.1:1000", 20), 5);
    assert_eq!(admitted("192.0.2.1:2000", 20), 0, "another port of the same source");
    assert_eq!(admitted("[2001:db8::1]:1", 20), 5);
    assert_eq!(admitted("[2001:db8::2]:1", 20), 0, "the same /64");
    assert_eq!(admitted("192.0.2.2:1000", 1), 1);
}

fn stock_handshakes_beyond_the_gate_cost_a_cookie<T: Tunnel>() {
    let mut p = Pair::<T>::with(Stock::Yes, None, None);
    let initiation = p.initiation(TO_B);
    let mut out = [0; HANDSHAKE_MAX];
    for n in 0..100 {
        let from = endpoint(&format!("198.51.100.{n}:1"));
        assert_eq!(p.b.stock_lane(&initiation, from, p.now, &mut out), Admission::Lane(TO_A));
    }
    let from = endpoint("192.0.2.1:1");
    let Admission::Cookie(len) = p.b.stock_lane(&initiation, from, p.now, &mut out) else { panic!("no cookie") };
    let cookie = out[..len].to_vec();
    assert_eq!(MessageKind::of(&cookie), Some(MessageKind::Cookie));
    assert!(len < initiation.len(), "nothing is amplified");

    assert_eq!(p.a.stock_lane(&cookie, from, p.now, &mut out), Admission::Lane(TO_B));
    let (handshake, _) = handle(&mut p.a, TO_B, &cookie, p.now).unwrap();
    assert_eq!(handshake, Handshake { reply: None, established: false }, "a cookie is no keepalive");
    assert!(!p.a.is_established(TO_B));
    p.later(Duration::from_secs(5));
    let again = p.initiation(TO_B);
    let elsewhere = p.b.stock_lane(&again, endpoint("192.0.2.2:1"), p.now, &mut out);
    assert!(matches!(elsewhere, Admission::Cookie(_)), "a cookie holds for its address only");
    assert_eq!(p.b.stock_lane(&again, from, p.now, &mut out), Admission::Lane(TO_A));
    assert!(handle(&mut p.b, TO_A, &again, p.now).is_ok());
}
