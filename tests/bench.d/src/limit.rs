//! What a tunnel on this machine cannot go below: its parts, each alone and as cheap as the kernel and the cipher make it.
//!
//! * ring's ChaCha20-Poly1305 over 1,420 bytes in place, sealed and opened;
//! * TCP from one TUN device to another, whole super-packets read and written by one thread, both TCP ends included;
//! * 44 datagrams of 1,452 bytes in one send (UDP_SEGMENT), through the router, into one receive (UDP_GRO);
//! * the inner checksum at both ends, and two copies.
//!
//! Their sum, in processor seconds per gigabyte, is the limit. The code here is a yardstick: it changes with no code of
//! flatlan's. The reference is what a good hour of the machine of [`REFERENCE_MACHINE`] gave. Where a part is worse than
//! that by more than [`TOLERATED`], the machine is slower or busy, and a run counts for nothing but its ratios.

use std::fmt::{self, Display};
use std::hint::black_box;
use std::io::{ErrorKind, IoSlice};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};
use flatlan_lab::Namespace;
use flatlan_os::Offload;
use flatlan_os::tun::{Queues, RECV_LEN, Tun, TunBackend, TunConfig, VNET_LEN};
use ipnetwork::{IpNetwork, Ipv4Network};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg, setsockopt, sockopt};
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::time::{ClockId, clock_gettime};

use crate::arena::{Arena, Machine};
use crate::cpu;
use crate::measure;
use crate::stats::Summary;

/// One part of a tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Part {
    /// Seal and open.
    Cipher,
    /// TUN to TUN, and both TCP ends.
    Tun,
    /// The datagrams' way.
    Udp,
    /// Internet checksums.
    Checksum,
    /// Copies.
    Copies,
}

/// What each part took once, in processor seconds per gigabyte, and what else was seen.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limit {
    /// Cores that were busy while this program waited.
    pub(crate) others: f64,
    /// Nanoseconds to seal and open one packet.
    pub(crate) cipher_ns: f64,
    /// The mean super-packet that TUN gave, in bytes.
    pub(crate) super_packet: f64,
    /// TUN to TUN, in gigabits a second.
    pub(crate) tun_rate: f64,
    /// Datagrams received, in gigabits a second.
    pub(crate) udp_rate: f64,
    /// Of each part, in the order of [`Part::ALL`].
    pub(crate) seconds: [f64; Part::ALL.len()],
}

impl Part {
    /// Every one.
    pub(crate) const ALL: [Self; 5] = [Self::Cipher, Self::Tun, Self::Udp, Self::Checksum, Self::Copies];

    /// What it took on the reference machine, in processor seconds per gigabyte.
    pub(crate) fn reference(self) -> f64 {
        match self {
            Self::Cipher => 1.55,
            Self::Tun => 1.07,
            Self::Udp => 0.30,
            Self::Checksum => 0.08,
            Self::Copies => 0.05,
        }
    }

    /// Whether this much says that the machine is too slow or too busy. The last two are too small to judge by.
    pub(crate) fn is_worse(self, seconds: f64) -> bool {
        match self {
            Self::Cipher | Self::Tun | Self::Udp => seconds > self.reference() * TOLERATED,
            Self::Checksum | Self::Copies => false,
        }
    }
}

impl Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cipher => "ChaCha20-Poly1305 in place, 1,420 B, sealed and opened (ring)",
            Self::Tun => "TUN to TUN with TSO, one thread, and both TCP ends",
            Self::Udp => "UDP_SEGMENT 44 x 1,452 B into UDP_GRO",
            Self::Checksum => "checksum, both ends",
            Self::Copies => "two copies",
        })
    }
}

/// Measures every part once.
pub(crate) fn measure(arena: &Arena) -> Result<Limit> {
    arena.leave()?;
    let others = others();
    let (super_packet, tun_rate, tun) = tun(arena).context("TUN to TUN")?;
    let (udp_rate, udp) = udp(arena).context("datagrams in runs")?;
    let cipher_ns = cipher()?;
    let (checksum_ns, copy_ns) = (checksum(), copy());
    // nanoseconds a byte are seconds a gigabyte
    let per_byte = |ns: f64| ns / PACKET as f64;
    let seconds = [per_byte(cipher_ns), tun, udp, per_byte(2.0 * checksum_ns), per_byte(2.0 * copy_ns)];
    Ok(Limit { others, cipher_ns, super_packet, tun_rate, udp_rate, seconds })
}

/// How many cores are busy while nothing of ours runs.
fn others() -> f64 {
    let (host, begun) = (cpu::host(), Instant::now());
    std::thread::sleep(LOOK_AT_OTHERS);
    (cpu::host() - host) / begun.elapsed().as_secs_f64()
}

/// Nanoseconds to seal and open one packet in place.
fn cipher() -> Result<f64> {
    let key = UnboundKey::new(&CHACHA20_POLY1305, &[7; 32]).map_err(|_| anyhow!("ring takes no key"))?;
    let key = LessSafeKey::new(key);
    let mut packet = vec![0x5a; PACKET];
    let tag_length = CHACHA20_POLY1305.tag_len();
    let mut number: u64 = 0;
    let mut refused = false;
    let ns = nanoseconds(|| {
        number += 1;
        let nonce = || {
            let mut bytes = [0; 12];
            bytes[4..].copy_from_slice(&number.to_le_bytes());
            Nonce::assume_unique_for_key(bytes)
        };
        packet.truncate(PACKET);
        match key.seal_in_place_separate_tag(nonce(), Aad::empty(), &mut packet) {
            Ok(tag) => packet.extend_from_slice(tag.as_ref()),
            Err(_) => refused = true,
        }
        refused |= key.open_in_place(nonce(), Aad::empty(), &mut packet).is_err();
    });
    if refused || packet.len() != PACKET + tag_length {
        bail!("ring could not open what it sealed");
    }
    Ok(ns)
}

/// Nanoseconds for the internet checksum over one packet.
fn checksum() -> f64 {
    let packet = vec![0x5a; PACKET];
    nanoseconds(|| {
        black_box(sum(black_box(&packet)));
    })
}

fn sum(packet: &[u8]) -> u64 {
    let (words, _) = packet.as_chunks::<4>();
    // it cannot overflow; a check for that would keep it from being vectorised
    words.iter().fold(0, |sum: u64, word| sum.wrapping_add(u32::from_ne_bytes(*word).into()))
}

/// Nanoseconds to copy one packet.
fn copy() -> f64 {
    let (from, mut to) = (vec![0x5a_u8; PACKET], vec![0; PACKET]);
    nanoseconds(|| black_box(&mut to).copy_from_slice(black_box(&from)))
}

/// Processor time of this thread for one piece of work: the median over batches.
fn nanoseconds(mut work: impl FnMut()) -> f64 {
    let batches: Vec<f64> = (0..BATCHES)
        .map(|_| {
            let begun = thread_time();
            for _ in 0..PER_BATCH {
                work();
            }
            (thread_time() - begun) * 1e9 / f64::from(PER_BATCH)
        })
        .collect();
    Summary::of(&batches).map_or(f64::NAN, |summary| summary.median)
}

/// Processor time of this thread so far, in seconds.
fn thread_time() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// TCP between two TUN devices: the mean super-packet in bytes, gigabits a second, processor seconds a gigabyte.
fn tun(arena: &Arena) -> Result<(f64, f64, f64)> {
    let near = device(arena.at(Machine::A)?, Ipv4Addr::new(10, 78, 0, 1))?;
    let far = device(arena.at(Machine::B)?, FAR)?;
    let wires = Wires { near, far, stop: AtomicBool::new(false), bytes: AtomicU64::new(0), packets: AtomicU64::new(0) };
    let (gigabytes, rate, host) = std::thread::scope(|scope| {
        scope.spawn(|| wires.carry());
        let flow = measure::plain_tcp(arena, FAR, TUN_SECONDS);
        wires.stop.store(true, Ordering::Relaxed);
        flow
    })?;
    let (bytes, packets) = (wires.bytes.load(Ordering::Relaxed), wires.packets.load(Ordering::Relaxed));
    Ok((bytes as f64 / packets.max(1) as f64, rate, host / gigabytes))
}

fn device(machine: &Namespace, address: Ipv4Addr) -> Result<Tun> {
    let network = IpNetwork::V4(Ipv4Network::new(address, 24)?);
    let config = TunConfig {
        name: "limit".to_owned(),
        mtu: PACKET as u32,
        offload: Offload::Auto,
        backend: TunBackend::Offload,
        queues: Queues::One,
        addresses: vec![network],
    };
    Ok(machine.run(move || Tun::create(&config))?)
}

/// Two devices, and what one thread carries between them as it is.
struct Wires {
    near: Tun,
    far: Tun,
    stop: AtomicBool,
    bytes: AtomicU64,
    packets: AtomicU64,
}

impl Wires {
    fn carry(&self) {
        let mut frame = vec![0; RECV_LEN];
        while !self.stop.load(Ordering::Relaxed) {
            let ahead = pass(&self.near, &self.far, &mut frame);
            let back = pass(&self.far, &self.near, &mut frame);
            if let Some(length) = ahead {
                self.bytes.fetch_add(length as u64, Ordering::Relaxed);
                self.packets.fetch_add(1, Ordering::Relaxed);
            }
            if ahead.is_none() && back.is_none() {
                let mut both = [&self.near, &self.far].map(|tun| PollFd::from_borrowed_fd(tun.as_fd(), PollFlags::IN));
                let _ = poll(&mut both, Some(&LOOK));
            }
        }
    }
}

/// One packet, however long; nothing where there is none.
fn pass(from: &Tun, to: &Tun, frame: &mut [u8]) -> Option<usize> {
    let length = from.recv(frame).ok()?;
    // a full queue drops, as every link does
    let _ = to.send(frame.get(..length)?);
    length.checked_sub(VNET_LEN)
}

/// Datagrams in runs from A to B: gigabits a second received, processor seconds a gigabyte.
fn udp(arena: &Arena) -> Result<(f64, f64)> {
    let to = SocketAddr::new(arena.underlay(Machine::B)?, PORT);
    let stop = Arc::new(AtomicBool::new(false));
    let receiver = arena.at(Machine::B)?.run(move || UdpSocket::bind(to))?;
    setsockopt(&receiver, sockopt::UdpGroSegment, &true)?;
    setsockopt(&receiver, sockopt::RcvBufForce, &BUFFER)?;
    receiver.set_read_timeout(Some(SILENCE))?;
    let sender = arena.at(Machine::A)?.run(move || {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.connect(to)?;
        std::io::Result::Ok(socket)
    })?;
    let (host, begun) = (cpu::host(), Instant::now());
    let counter = std::thread::spawn(move || receive_runs(&receiver));
    let stopped = Arc::clone(&stop);
    let source = std::thread::spawn(move || send_runs(&sender, &stopped));
    std::thread::sleep(UDP_LENGTH);
    stop.store(true, Ordering::Relaxed);
    let (host, seconds) = (cpu::host() - host, begun.elapsed().as_secs_f64());
    source.join().map_err(|_| anyhow!("the sender panicked"))??;
    let bytes = counter.join().map_err(|_| anyhow!("the receiver panicked"))??;
    if bytes == 0 {
        bail!("nothing arrived");
    }
    Ok((bytes as f64 * 8.0 / seconds / 1e9, host * 1e9 / bytes as f64))
}

fn send_runs(socket: &UdpSocket, stop: &AtomicBool) -> Result<()> {
    let payload = vec![0; usize::from(SEGMENT) * SEGMENTS];
    while !stop.load(Ordering::Relaxed) {
        let run = [ControlMessage::UdpGsoSegments(&SEGMENT)];
        match sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(&payload)], &run, MsgFlags::empty(), None) {
            Ok(_) | Err(nix::errno::Errno::ENOBUFS) => {}
            Err(errno) => bail!("cannot send a run: {errno}"),
        }
    }
    Ok(())
}

fn receive_runs(socket: &UdpSocket) -> Result<u64> {
    let mut run = vec![0; 65_536];
    let mut bytes = 0;
    loop {
        match socket.recv(&mut run) {
            Ok(length) => bytes += length as u64,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(bytes),
            Err(error) => return Err(error).context("cannot receive a run"),
        }
    }
}

/// Where the reference values were measured.
pub(crate) const REFERENCE_MACHINE: &str = "2 virtual cores of a Xeon at 2.5 GHz, kernel 6.18, November 2026";
/// How much worse than the reference a part may be.
pub(crate) const TOLERATED: f64 = 1.2;
/// The least mean super-packet in bytes with which TUN to TUN is what its reference was.
pub(crate) const SUPER_PACKET: f64 = 36_000.0;
/// The inner packet, in bytes.
const PACKET: usize = 1420;
/// A datagram around it.
const SEGMENT: u16 = 1452;
/// Datagrams in a run.
const SEGMENTS: usize = 44;
const FAR: Ipv4Addr = Ipv4Addr::new(10, 78, 0, 2);
const PORT: u16 = 7100;
/// How long what else the machine does is looked at.
const LOOK_AT_OTHERS: Duration = Duration::from_secs(1);
const BATCHES: u32 = 21;
const PER_BATCH: u32 = 5_000;
const TUN_SECONDS: u32 = 3;
const UDP_LENGTH: Duration = Duration::from_secs(2);
/// The receiver's buffer, in bytes.
const BUFFER: usize = 8 << 20;
/// After so much silence nothing more comes.
const SILENCE: Duration = Duration::from_millis(300);
/// How often the carrying thread looks whether it should stop.
const LOOK: Timespec = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reference_adds_up_to_the_budget() {
        let sum: f64 = Part::ALL.into_iter().map(Part::reference).sum();
        assert!((sum - 3.05).abs() < 1e-9, "{sum}");
    }

    #[test]
    fn a_part_that_is_a_fifth_worse_is_tolerated_and_more_is_not() {
        assert!(!Part::Tun.is_worse(1.07 * 1.19) && Part::Tun.is_worse(1.07 * 1.21));
        assert!(!Part::Copies.is_worse(1.0));
    }

    #[test]
    fn what_is_sealed_is_opened_again_and_takes_time() {
        assert!(cipher().unwrap() > 0.0);
    }
}
