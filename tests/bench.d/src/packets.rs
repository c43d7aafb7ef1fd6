//! A source of datagrams and a sink that counts them, as programs of their own: this one, called with a hidden word.
//!
//! Both hand 32 datagrams to the kernel at once (`sendmmsg`, `recvmmsg`) and use no offload: what arrives is what
//! an application without any cleverness gets. The sink counts until nothing came for a while.

use std::io::{IoSlice, IoSliceMut};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use flatlan_lab::Namespace;
use nix::sys::socket::{MsgFlags, MultiHeaders, recvmmsg, sendmmsg, setsockopt, sockopt};

use crate::arena::{Arena, Machine};
use crate::figure::Rate;

/// Sends from A to B for so many seconds; how many arrived a second.
pub(crate) fn measure(arena: &Arena, bytes: u16, rate: Rate, seconds: u32) -> Result<f64> {
    let program = std::env::current_exe().context("cannot find this program")?;
    let to = SocketAddr::new(Machine::B.overlay().into(), PORT).to_string();
    let sink = arena.spawn(Machine::B, &program, [SINK, &to])?;
    sink.wait_line(READY, LIMIT)?;
    let rate = match rate {
        Rate::PerSecond(rate) => rate,
        Rate::Unlimited => 0,
    };
    let mut source = Namespace::command(&program);
    source.args([SOURCE, &to, &bytes.to_string(), &rate.to_string(), &seconds.to_string()]);
    arena.at(Machine::A)?.output_within(source, LIMIT + Duration::from_secs(seconds.into()))?.success()?;
    sink.wait_exit(LIMIT).context("the sink does not end")?;
    let lines = sink.lines();
    let last = lines.last().map(|line| line.text.as_str()).unwrap_or_default();
    let received: f64 = last.parse().with_context(|| format!("the sink said {last:?}"))?;
    Ok(received / f64::from(seconds))
}

/// Sends datagrams of `bytes` for `seconds`, at most `rate` a second (zero: without a limit); how many were sent.
pub(crate) fn source(to: SocketAddr, bytes: usize, rate: u32, seconds: u32) -> Result<u64> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.connect(to)?;
    let payload = vec![0; bytes];
    let slices = [[IoSlice::new(&payload)]; BATCH];
    let (begun, length) = (Instant::now(), Duration::from_secs(seconds.into()));
    let mut headers = MultiHeaders::<()>::preallocate(BATCH, None);
    let mut sent: u64 = 0;
    while begun.elapsed() < length {
        let batch = if rate == 0 { BATCH as u64 } else { due(begun.elapsed(), rate).saturating_sub(sent) };
        if batch == 0 {
            std::thread::sleep(PACE);
            continue;
        }
        let batch = usize::try_from(batch).unwrap_or(BATCH).min(BATCH);
        let slices = slices.iter().take(batch);
        // a full queue refuses: that is what an unlimited source is for
        if let Ok(results) = sendmmsg(socket.as_raw_fd(), &mut headers, slices, [None; BATCH], [], MsgFlags::empty()) {
            sent += results.count() as u64;
        }
    }
    Ok(sent)
}

/// Counts datagrams until none came for a second after the first; how many came.
pub(crate) fn sink(at: SocketAddr) -> Result<u64> {
    let socket = UdpSocket::bind(at)?;
    setsockopt(&socket, sockopt::RcvBufForce, &BUFFER)?;
    println!("{READY}");
    count(&socket)
}

fn count(socket: &UdpSocket) -> Result<u64> {
    socket.set_read_timeout(Some(FIRST))?;
    if socket.peek(&mut [0; 1]).is_err() {
        return Ok(0);
    }
    socket.set_read_timeout(Some(SILENCE))?;
    let mut headers = MultiHeaders::<()>::preallocate(BATCH, None);
    let mut buffers = vec![0; BATCH * LONGEST];
    let mut received = 0;
    loop {
        let mut slices: Vec<_> = buffers.chunks_exact_mut(LONGEST).map(|buffer| [IoSliceMut::new(buffer)]).collect();
        let flags = MsgFlags::MSG_WAITFORONE;
        match recvmmsg(socket.as_raw_fd(), &mut headers, slices.iter_mut(), flags, None) {
            Ok(results) => received += results.count() as u64,
            Err(nix::errno::Errno::EAGAIN) => return Ok(received),
            Err(errno) => bail!("cannot receive: {errno}"),
        }
    }
}

/// How many should have left by now.
fn due(elapsed: Duration, rate: u32) -> u64 {
    u64::try_from(elapsed.as_nanos() * u128::from(rate) / 1_000_000_000).unwrap_or(u64::MAX)
}

/// The word that makes this program the source.
pub(crate) const SOURCE: &str = "source";
/// The word that makes it the sink.
pub(crate) const SINK: &str = "sink";
/// What the sink says when it is bound.
const READY: &str = "ready";
const PORT: u16 = 7000;
/// Datagrams handed to the kernel at once.
const BATCH: usize = 32;
/// No datagram here is longer.
const LONGEST: usize = 2048;
/// The sink's receive buffer, in bytes: it must not be what drops.
const BUFFER: usize = 4 << 20;
/// How long a source that is ahead of its rate sleeps.
const PACE: Duration = Duration::from_micros(200);
/// How long the sink waits for the first datagram.
const FIRST: Duration = Duration::from_secs(10);
/// After so much silence it has counted.
const SILENCE: Duration = Duration::from_secs(1);
/// How long a program may take to start or end.
const LIMIT: Duration = Duration::from_secs(20);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sink_counts_what_the_source_sent() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let at = socket.local_addr().unwrap();
        let counter = std::thread::spawn(move || count(&socket).unwrap());
        let sent = source(at, 64, 1000, 1).unwrap();
        let received = counter.join().unwrap();
        assert!(received == sent && (1..=1000).contains(&sent), "{received} of {sent}");
    }

    #[test]
    fn a_source_is_never_ahead_of_its_rate() {
        assert_eq!(due(Duration::from_millis(500), 200_000), 100_000);
        assert_eq!(due(Duration::ZERO, 200_000), 0);
        assert_eq!(due(Duration::from_nanos(4_999), 200_000), 0);
    }
}
