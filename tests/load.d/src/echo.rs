//! Round trips of frames through a hub, from one bound socket to another and back.

use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use flatlan_os::clock;
use flatlan_relay::{Control, MAX_HOPS, PathOpen, frame::Header};
use flatlan_types::{Label, MemberId, NetworkId};
use tokio::sync::{mpsc, oneshot};

use crate::client::{Client, Heard, Who};

/// Two clients of one network with labels both ways.
#[derive(Debug)]
pub(crate) struct Pair {
    here: Client,
    there: Client,
    out: Label,
    back: Label,
    _heard: mpsc::Receiver<Heard>,
}

/// What came of many round trips.
#[derive(Debug, Clone)]
pub(crate) struct Trips {
    /// Sent.
    pub(crate) sent: usize,
    /// How long each took that came back, the shortest first.
    pub(crate) times: Vec<Duration>,
}

impl Pair {
    /// Attaches both and opens both paths.
    pub(crate) async fn attach(here: &Who, there: &Who) -> Result<Self> {
        let (tell, mut heard) = mpsc::channel(1024);
        let network = here.network;
        let (here, there) = (Client::attach(here, 0, tell.clone()).await?, Client::attach(there, 1, tell).await?);
        let out = open(&here, &there, network, &mut heard).await?;
        let back = open(&there, &here, network, &mut heard).await?;
        Ok(Self { here, there, out, back, _heard: heard })
    }

    /// The sender's socket, for as long as the pair lives.
    pub(crate) fn sender(self) -> Result<(UdpSocket, Label, Vec<Client>)> {
        let Self { here, there, out, .. } = self;
        let socket = blocking(&here)?;
        Ok((socket, out, vec![here, there]))
    }

    /// One round trip every `period` for so long, each end in a thread of its own.
    pub(crate) async fn measure(&self, period: Duration, length: Duration) -> Result<Trips> {
        let (socket, far) = (blocking(&self.here)?, blocking(&self.there)?);
        let stop = Arc::new(AtomicBool::new(false));
        let echo = echo(far, self.back, stop.clone());
        let (out, count) = (self.out, (length.as_nanos() / period.as_nanos()) as usize);
        let (done, trips) = oneshot::channel();
        // not one of the runtime's, which are nice
        std::thread::spawn(move || done.send(run(&socket, out, period, count)));
        let trips = trips.await;
        stop.store(true, Ordering::Relaxed);
        let _ = echo.join();
        trips.context("the measuring thread broke")?
    }
}

impl Trips {
    /// The time that `share` of them did not exceed.
    pub(crate) fn at(&self, share: f64) -> Duration {
        at(&self.times, share)
    }

    /// The part that did not come back.
    pub(crate) fn lost(&self) -> f64 {
        1.0 - self.times.len() as f64 / self.sent.max(1) as f64
    }
}

/// The time that `share` of these, sorted, did not exceed.
pub(crate) fn at(sorted: &[Duration], share: f64) -> Duration {
    let place = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(place.saturating_sub(1)).copied().unwrap_or(Duration::MAX)
}

/// Opens a path; the label that leads there.
async fn open(from: &Client, to: &Client, network: NetworkId, heard: &mut mpsc::Receiver<Heard>) -> Result<Label> {
    from.say(path_open(from.id, to.id, network, 1)).await?;
    loop {
        let told = tokio::time::timeout(OPEN, heard.recv()).await.context("no label")?;
        match told.context("nobody hears")?.message {
            Control::PathOpened { label, .. } => return Ok(label),
            Control::PathFailed { reason, .. } => bail!("no path: {reason:?}"),
            _ => {}
        }
    }
}

/// The question for a path.
pub(crate) fn path_open(from: MemberId, to: MemberId, network: NetworkId, request: u32) -> Control {
    Control::PathOpen(PathOpen { request, network, from, to, hops: MAX_HOPS, via: Vec::new(), avoid: Vec::new() })
}

/// The same socket for a thread that waits.
fn blocking(client: &Client) -> Result<UdpSocket> {
    use std::os::fd::AsFd as _;
    let socket = UdpSocket::from(client.udp.as_ref().context("no socket")?.as_fd().try_clone_to_owned()?);
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket)
}

fn echo(socket: UdpSocket, back: Label, stop: Arc<AtomicBool>) -> JoinHandle<()> {
    std::thread::spawn(move || {
        let mut frame = [0; 2048];
        while !stop.load(Ordering::Relaxed) {
            let Some(length) = receive(&socket, &mut frame, clock::now() + PATIENCE) else { continue };
            if let Some(frame) = frame.get_mut(..length).filter(|frame| Header::parse(frame).is_some()) {
                Header::new(back).write(frame);
                let _ = socket.send(frame);
            }
        }
    })
}

fn run(socket: &UdpSocket, out: Label, period: Duration, count: usize) -> Result<Trips> {
    let begun = clock::now();
    let mut times = Vec::with_capacity(count);
    let mut frame = [0; 2048];
    for n in 0..count {
        let due = begun + period * n as u32;
        std::thread::sleep(clock::until(due));
        let number = (n as u64).to_be_bytes();
        let sent = Instant::now();
        socket.send(&[&Header::new(out).to_bytes()[..], &number, &[0; 112]].concat())?;
        while let Some(length) = receive(socket, &mut frame, sent + PATIENCE) {
            if frame.get(8..16) == Some(&number) && length == 128 {
                times.push(sent.elapsed());
                break;
            }
        }
    }
    times.sort_unstable();
    Ok(Trips { sent: count, times })
}

/// The socket is non-blocking, as its other owner wants it.
fn receive(socket: &UdpSocket, frame: &mut [u8], until: Instant) -> Option<usize> {
    use std::os::fd::AsFd as _;
    loop {
        match socket.recv(frame) {
            Ok(length) => return Some(length),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                let left = until.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return None;
                }
                let wait = nix::poll::PollTimeout::try_from(left.as_millis() as i32 + 1).ok()?;
                let mut socket = [nix::poll::PollFd::new(socket.as_fd(), nix::poll::PollFlags::POLLIN)];
                let _ = nix::poll::poll(&mut socket, wait);
            }
            Err(_) => return None,
        }
    }
}

const OPEN: Duration = Duration::from_secs(5);
/// When a frame counts as lost.
const PATIENCE: Duration = Duration::from_millis(300);
