//! Numbered datagrams of many flows from one machine to another: which of them arrived is known one by one.

#![allow(dead_code, reason = "every test takes what it needs")]

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use flatlan_lab::Namespace;

/// A running stream of datagrams.
#[derive(Debug)]
pub(crate) struct Datagrams {
    stop: Arc<AtomicBool>,
    arrived: Arc<AtomicUsize>,
    sender: JoinHandle<Vec<usize>>,
    receiver: JoinHandle<Vec<Flow>>,
    to: Namespace,
    /// What receivers there had been too slow for before.
    overrun: usize,
}

/// How it went, by flow.
#[derive(Debug)]
pub(crate) struct Arrivals {
    sent: Vec<usize>,
    flows: Vec<Flow>,
    overrun: usize,
}

/// What arrived of one flow.
#[derive(Debug, Clone, Default)]
struct Flow {
    seen: Vec<bool>,
    doubled: usize,
    last: Option<Instant>,
    longest_gap: Duration,
}

impl Datagrams {
    /// `flows` flows, one datagram of `size` bytes each `pause`, the flows in turn; waits for the first to arrive.
    pub(crate) fn start(
        from: &Namespace,
        to: &Namespace,
        address: IpAddr,
        flows: usize,
        size: usize,
        pause: Duration,
    ) -> Self {
        let inbox = to.run(move || UdpSocket::bind(SocketAddr::new(address, 0)).unwrap());
        inbox.set_read_timeout(Some(LOOK)).unwrap();
        let far = inbox.local_addr().unwrap();
        let unspecified = if far.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let outboxes: Vec<UdpSocket> = from.run(move || {
            let connected = |_| {
                let socket = UdpSocket::bind(unspecified).unwrap();
                socket.connect(far).unwrap();
                socket
            };
            (0..flows).map(connected).collect()
        });
        let (stop, arrived) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let receiver = {
            let (stop, arrived) = (stop.clone(), arrived.clone());
            std::thread::spawn(move || receive(&inbox, flows, &stop, &arrived))
        };
        let sender = {
            let stop = stop.clone();
            std::thread::spawn(move || send(&outboxes, size, pause, &stop))
        };
        Self { stop, arrived, sender, receiver, to: to.clone(), overrun: overrun(to) }
    }

    /// Waits until so many more have arrived.
    pub(crate) fn wait_arrivals(&self, more: usize, within: Duration) {
        let (wanted, deadline) = (self.arrived.load(Ordering::Relaxed) + more, Instant::now() + within);
        while self.arrived.load(Ordering::Relaxed) < wanted {
            assert!(Instant::now() < deadline, "{more} datagrams did not arrive in {within:?}");
            std::thread::sleep(LOOK);
        }
    }

    /// Ends it, once nothing has arrived for a moment.
    pub(crate) fn stop(self) -> Arrivals {
        self.stop.store(true, Ordering::Relaxed);
        let (sent, flows) = (self.sender.join().unwrap(), self.receiver.join().unwrap());
        Arrivals { sent, flows, overrun: overrun(&self.to) - self.overrun }
    }
}

/// Ends several at once: none of them is sent any more while the last of another are waited for.
pub(crate) fn stop_all<const N: usize>(streams: [Datagrams; N]) -> [Arrivals; N] {
    for stream in &streams {
        stream.stop.store(true, Ordering::Relaxed);
    }
    streams.map(Datagrams::stop)
}

impl Arrivals {
    /// How many were sent.
    pub(crate) fn sent(&self) -> usize {
        self.sent.iter().sum()
    }

    /// How many did not arrive, but for those that did and that this program was too slow for, on a busy machine.
    pub(crate) fn lost(&self) -> usize {
        self.missing().iter().sum::<usize>().saturating_sub(self.overrun)
    }

    /// How many arrived and found no room, for this program was too slow.
    pub(crate) fn overrun(&self) -> usize {
        self.overrun
    }

    /// How many did not arrive, by flow.
    pub(crate) fn missing(&self) -> Vec<usize> {
        let arrived = |flow: &Flow| flow.seen.iter().filter(|seen| **seen).count();
        self.sent.iter().zip(&self.flows).map(|(sent, flow)| sent - arrived(flow)).collect()
    }

    /// How many arrived more than once.
    pub(crate) fn doubled(&self) -> usize {
        self.flows.iter().map(|flow| flow.doubled).sum()
    }

    /// The longest time in which none of a flow arrived, of all flows.
    pub(crate) fn longest_gap(&self) -> Duration {
        self.flows.iter().map(|flow| flow.longest_gap).max().unwrap_or_default()
    }
}

/// Datagrams for which sockets of a machine had no room, since it began: the kernel's counter.
fn overrun(machine: &Namespace) -> usize {
    let text = machine.run(|| std::fs::read_to_string("/proc/thread-self/net/snmp").unwrap());
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("Udp: ")).map(str::split_whitespace);
    let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
    let (_, count) = names.zip(values).find(|(name, _)| *name == "RcvbufErrors").unwrap();
    count.parse().unwrap()
}

fn send(outboxes: &[UdpSocket], size: usize, pause: Duration, stop: &AtomicBool) -> Vec<usize> {
    let mut sent = vec![0; outboxes.len()];
    let mut datagram = vec![0; size.max(8)];
    let mut due = Instant::now();
    for place in (0..outboxes.len()).cycle() {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        datagram[..4].copy_from_slice(&(place as u32).to_be_bytes());
        datagram[4..8].copy_from_slice(&(sent[place] as u32).to_be_bytes());
        if outboxes[place].send(&datagram).is_ok() {
            sent[place] += 1;
        }
        due += pause;
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
    }
    sent
}

fn receive(inbox: &UdpSocket, flows: usize, stop: &AtomicBool, arrived: &AtomicUsize) -> Vec<Flow> {
    let mut all = vec![Flow::default(); flows];
    let mut buffer = vec![0; 65_536];
    let mut stopped = None;
    loop {
        if stop.load(Ordering::Relaxed) && Instant::now() - *stopped.get_or_insert_with(Instant::now) > LATE {
            return all;
        }
        let Ok(len) = inbox.recv(&mut buffer) else { continue };
        let now = Instant::now();
        let word = |at: usize| u32::from_be_bytes(buffer[at..at + 4].try_into().unwrap()) as usize;
        assert!(len >= 8, "a datagram that nobody sent");
        let (flow, number) = (&mut all[word(0)], word(4));
        if flow.seen.len() <= number {
            flow.seen.resize(number + 1, false);
        }
        flow.doubled += usize::from(std::mem::replace(&mut flow.seen[number], true));
        let gap = flow.last.replace(now).map_or(Duration::ZERO, |last| now - last);
        flow.longest_gap = flow.longest_gap.max(gap);
        arrived.fetch_add(1, Ordering::Relaxed);
    }
}

/// How often threads look whether they are to stop.
const LOOK: Duration = Duration::from_millis(20);
/// After the last was sent, so long for it to arrive.
pub(crate) const LATE: Duration = Duration::from_secs(2);
