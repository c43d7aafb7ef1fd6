//! Replication of a DR site, as Zerto's appliances make it, while hubs die: `tests/long zerto [--faults N] [--flatlan PATH]`.
//!
//! ```text
//!                     h1           h2
//!                       \         /
//!                        -- inet --
//!                       /          \
//!                 a-nat              b-nat          the sites' routers and firewalls: one uplink each, symmetric NATs;
//!               /   |                  |   \        each writes down who speaks to whom
//!          [a]   a-1 .. a-6      b-1 .. b-6  [b]    [in brackets]: gateways, which run flatlan
//! ```
//!
//! Each of the six hosts of a site holds a TCP connection to each of the six of the other one on each of the ports 4007,
//! 4008 and 9081, from both sites: 216 connections, made once. On each goes a steady trickle of bytes that say where in the
//! stream they belong; whoever receives them looks at every one. The hub in use is killed, and cut off in silence, in turn.
//! No connection may end, each must go on, and in the end every byte must have arrived. What the firewalls wrote down is who
//! the gateways' endpoints are: hubs, and the other site's gateway where it was tried.

#![expect(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "a program for people")]

mod measure;
#[path = "../netns/support.rs"]
mod support;

use std::{
    collections::BTreeSet,
    io::{ErrorKind, Read, Write},
    net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use flatlan_lab::{Lab, Nat, SiteSpec};
use measure::{Flags, Paper};
use support::{PATIENCE, ping, wait_path};

fn main() {
    let flags = Flags::read(&["--faults", "--flatlan"]);
    let faults = flags.number("--faults", 6);
    flatlan_lab::enter().unwrap();
    let lab = support::lab().hub("h1").hub("h2");
    let lab = flags.word("--flatlan").map_or_else(|| lab.clone(), |binary| lab.clone().flatlan(binary));
    let site = |name| SiteSpec::new(name).nat(Nat::Symmetric).hosts(HOSTS);
    let lab = lab.site_with(site("a")).site_with(site("b")).build().unwrap();
    for site in SITES {
        lab.site(site).unwrap().router(0).unwrap().nft(WRITE_DOWN).unwrap();
    }
    lab.bring_up().unwrap();
    let _talk = ping(&lab, "a", "b");
    let mesh = Mesh::start(&lab);
    mesh.wait_moving(&lab, "at first");

    let mut paper = Paper::new("zerto", "A replication mesh between two sites while hubs die");
    paper.say(format!(
        "{} TCP connections on ports {PORTS:?} between {HOSTS} hosts a side, made once.\n",
        mesh.flows.len()
    ));
    paper.head(&["hub in use", "fault", "connections that went on", "longest pause of one, ms"]);
    for number in 0..faults {
        let path = wait_path(&lab, "a", "b", "a relayed path", |path| path["kind"] == "relay");
        let hub = path.pointer("/via/0").unwrap().as_str().unwrap().to_owned();
        mesh.begin_gaps();
        let what = if number % 2 == 0 { "killed" } else { "cut off in silence" };
        if number % 2 == 0 {
            lab.kill(&hub).unwrap();
        } else {
            lab.cut(&hub).unwrap();
        }
        mesh.wait_moving(&lab, what);
        let gap = mesh.longest_gap();
        paper.say(format!("| {hub} | {what} | {} | {} |", mesh.alive(), gap.as_millis()));
        paper.must(mesh.alive() == mesh.flows.len(), &format!("{hub} {what}: {} connections", mesh.alive()));
        if number % 2 == 0 {
            lab.restart(&hub).unwrap();
        } else {
            lab.heal(&hub).unwrap();
        }
        // both sites have a spare again before the next one goes
        for (site, peer) in [("a", "b"), ("b", "a")] {
            support::wait_status(&lab, site, "a standby", |status| {
                let peer = status["peers"].as_array()?.iter().find(|entry| entry["name"] == peer)?;
                let hubs = status["hubs"].as_array()?;
                let attached = hubs.iter().all(|hub| hub["state"] == "attached");
                (attached && !peer["standby"].as_array()?.is_empty()).then_some(())
            });
        }
        mesh.wait_moving(&lab, "with all hubs");
    }
    let (alive, bytes, unequal) = mesh.stop();
    paper.say(format!(
        "\nIn the end {alive} connections, {bytes} bytes, {unequal} connections with others than were sent."
    ));
    paper.must(unequal == 0, "every byte arrives");

    for site in SITES {
        let seen = written_down(&lab, site);
        let strangers: Vec<&Spoke> = seen.iter().filter(|spoke| !spoke.is_ours(&lab, site)).collect();
        let ends: BTreeSet<String> = seen.iter().map(|spoke| spoke.outside(&lab, site)).collect();
        let ends = ends.into_iter().collect::<Vec<_>>().join(", ");
        paper.say(format!("\nThe firewall of {site} saw its gateway speak to {ends}, and nothing else pass."));
        paper.must(
            !seen.is_empty() && strangers.is_empty(),
            &format!("the firewall of {site}: {strangers:?} of {seen:?}"),
        );
    }
    paper.end();
}

/// All connections between the hosts of the two sites.
struct Mesh {
    flows: Vec<Arc<Flow>>,
    stop: Arc<AtomicBool>,
    readers: Arc<Mutex<Vec<JoinHandle<()>>>>,
    writers: Vec<JoinHandle<()>>,
    listeners: Vec<JoinHandle<()>>,
}

/// One connection.
struct Flow {
    from: IpAddr,
    to: SocketAddr,
    sent: AtomicU64,
    received: AtomicU64,
    /// How it ended, where it was not to; or what came that was not sent.
    broken: Mutex<Option<String>>,
    /// The last arrival, and the longest pause between two since that was asked for.
    pause: Mutex<(Instant, Duration)>,
}

impl Mesh {
    fn start(lab: &Lab) -> Self {
        let address = |site: &str| -> Vec<IpAddr> {
            lab.site(site).unwrap().hosts().iter().filter_map(|host| host.addresses().first().copied()).collect()
        };
        let ends = [["a", "b"], ["b", "a"]];
        let flows: Vec<Arc<Flow>> = ends
            .iter()
            .flat_map(|[from, to]| {
                let (from, to) = (address(from), address(to));
                from.into_iter().flat_map(move |from| to.clone().into_iter().map(move |to| (from, to)))
            })
            .flat_map(|(from, to)| PORTS.map(|port| Arc::new(Flow::new(from, SocketAddr::new(to, port)))))
            .collect();
        let stop = Arc::new(AtomicBool::new(false));
        let mut mesh =
            Self { flows, stop: stop.clone(), readers: Arc::default(), writers: Vec::new(), listeners: Vec::new() };
        let hosts = || SITES.iter().flat_map(|site| lab.site(site).unwrap().hosts());
        for host in hosts() {
            let own = host.addresses().first().copied().unwrap();
            for port in PORTS {
                let listener = host.namespace().run(move || TcpListener::bind(SocketAddr::new(own, port)).unwrap());
                let here = mesh.flows.iter().filter(|flow| flow.to == SocketAddr::new(own, port)).cloned();
                let (here, readers) = (here.collect::<Vec<_>>(), mesh.readers.clone());
                let accept = move || accept(&listener, &here, &readers);
                mesh.listeners.push(host.namespace().thread("listener", accept).unwrap());
            }
        }
        for host in hosts() {
            let own = host.addresses().first().copied().unwrap();
            let mine: Vec<_> = mesh.flows.iter().filter(|flow| flow.from == own).cloned().collect();
            let stop = stop.clone();
            mesh.writers.push(host.namespace().thread("writer", move || write(&mine, &stop)).unwrap());
        }
        mesh
    }

    /// Waits until each has received so much more that it was sent after this moment.
    fn wait_moving(&self, lab: &Lab, when: &str) {
        let marks: Vec<u64> = self.flows.iter().map(|flow| flow.sent.load(Ordering::SeqCst) + BLOCK).collect();
        let deadline = Instant::now() + PATIENCE;
        for (flow, mark) in self.flows.iter().zip(marks) {
            while flow.received.load(Ordering::SeqCst) < mark && flow.broken.lock().unwrap().is_none() {
                assert!(
                    Instant::now() < deadline,
                    "{when}: {} to {} stands still: {}",
                    flow.from,
                    flow.to,
                    lab.tails(5)
                );
                std::thread::sleep(AGAIN);
            }
        }
    }

    fn begin_gaps(&self) {
        for flow in &self.flows {
            flow.pause.lock().unwrap().1 = Duration::ZERO;
        }
    }

    fn longest_gap(&self) -> Duration {
        self.flows.iter().map(|flow| flow.pause.lock().unwrap().1).max().unwrap_or_default()
    }

    /// How many never ended.
    fn alive(&self) -> usize {
        self.flows.iter().filter(|flow| flow.broken.lock().unwrap().is_none()).count()
    }

    /// Ends them: how many were alive, what arrived, and how many did not receive what was sent.
    fn stop(self) -> (usize, u64, usize) {
        self.stop.store(true, Ordering::SeqCst);
        for thread in self.writers.into_iter().chain(self.listeners) {
            thread.join().unwrap();
        }
        for reader in std::mem::take(&mut *self.readers.lock().unwrap()) {
            reader.join().unwrap();
        }
        let alive = self.flows.iter().filter(|flow| flow.broken.lock().unwrap().is_none()).count();
        let bytes = self.flows.iter().map(|flow| flow.received.load(Ordering::SeqCst)).sum();
        let equal = |flow: &&Arc<Flow>| {
            let same = flow.sent.load(Ordering::SeqCst) == flow.received.load(Ordering::SeqCst);
            same && flow.broken.lock().unwrap().is_none()
        };
        (alive, bytes, self.flows.len() - self.flows.iter().filter(equal).count())
    }
}

impl Flow {
    fn new(from: IpAddr, to: SocketAddr) -> Self {
        let now = (Instant::now(), Duration::ZERO);
        let (sent, received) = (AtomicU64::new(0), AtomicU64::new(0));
        Self { from, to, sent, received, broken: Mutex::default(), pause: Mutex::new(now) }
    }

    fn broke(&self, why: String) {
        self.broken.lock().unwrap().get_or_insert(why);
    }

    /// What is at this place of the stream.
    fn byte(&self, place: u64) -> u8 {
        let seed = (u64::from(self.to.port()) << 32) | self.from.to_string().bytes().map(u64::from).sum::<u64>();
        ((seed ^ place).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8
    }
}

/// Takes the connections that belong here, once each, and reads each to its end.
fn accept(listener: &TcpListener, here: &[Arc<Flow>], readers: &Mutex<Vec<JoinHandle<()>>>) {
    for _ in here {
        let (stream, peer) = listener.accept().unwrap();
        let flow = here.iter().find(|flow| flow.from == peer.ip()).cloned();
        // no address is rewritten
        let flow = flow.unwrap_or_else(|| panic!("{peer} is no host of the other site"));
        readers.lock().unwrap().push(std::thread::spawn(move || read(stream, &flow)));
    }
}

fn read(mut stream: TcpStream, flow: &Flow) {
    let mut buffer = vec![0; 4 * BLOCK as usize];
    loop {
        let bytes = match stream.read(&mut buffer) {
            Ok(0) => return,
            Ok(bytes) => bytes,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return flow.broke(error.to_string()),
        };
        let at = flow.received.load(Ordering::SeqCst);
        let wrong = (at..).zip(buffer.iter().take(bytes)).find(|(place, byte)| flow.byte(*place) != **byte);
        if let Some((place, _)) = wrong {
            return flow.broke(format!("byte {place} is another than was sent"));
        }
        {
            let (now, mut pause) = (Instant::now(), flow.pause.lock().unwrap());
            *pause = (now, pause.1.max(now - pause.0));
        }
        flow.received.store(at + bytes as u64, Ordering::SeqCst);
    }
}

/// Holds the connections of one host, and writes a block to each in turn.
fn write(flows: &[Arc<Flow>], stop: &AtomicBool) {
    let mut streams: Vec<_> = flows.iter().map(|flow| (flow, connect(flow.to))).collect();
    while !stop.load(Ordering::SeqCst) {
        for (flow, stream) in &mut streams {
            let at = flow.sent.load(Ordering::SeqCst);
            let block: Vec<u8> = (at..at + BLOCK).map(|place| flow.byte(place)).collect();
            match stream.write_all(&block) {
                Ok(()) => flow.sent.store(at + BLOCK, Ordering::SeqCst),
                Err(error) => flow.broke(error.to_string()),
            }
        }
        std::thread::sleep(EACH);
    }
    for (flow, stream) in streams {
        if let Err(error) = stream.shutdown(Shutdown::Write) {
            flow.broke(error.to_string());
        }
    }
}

/// The far LAN may not be reached yet.
fn connect(to: SocketAddr) -> TcpStream {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match TcpStream::connect_timeout(&to, PATIENCE) {
            Ok(stream) => return stream,
            Err(error) => assert!(Instant::now() < deadline, "{to}: {error}"),
        }
        std::thread::sleep(AGAIN);
    }
}

/// Who spoke to whom through a site's firewall.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Spoke {
    from: IpAddr,
    to: IpAddr,
}

impl Spoke {
    /// Between the site's gateway, and a hub or the other site's gateway.
    fn is_ours(&self, lab: &Lab, site: &str) -> bool {
        let [own, _] = lab.site(site).unwrap().lan_addresses();
        let other = if self.from == own { self.to } else { self.from };
        let hub = lab.hubs().any(|hub| hub.addresses().contains(&other));
        (self.from == own || self.to == own) && (hub || peers(lab, site).contains(&other))
    }

    /// The end outside, in words.
    fn outside(&self, lab: &Lab, site: &str) -> String {
        let [own, _] = lab.site(site).unwrap().lan_addresses();
        let other = if self.from == own { self.to } else { self.from };
        let hub = lab.hubs().find(|hub| hub.addresses().contains(&other));
        hub.map_or_else(|| other.to_string(), |hub| format!("hub {}", hub.name()))
    }
}

/// Where the other site's gateway may be reached: at its router's outer address, or at its own.
fn peers(lab: &Lab, site: &str) -> Vec<IpAddr> {
    let others = lab.sites().filter(|other| other.name() != site);
    others
        .flat_map(|other| {
            let outer = other.router(0).unwrap().exec("ip", ["-4", "-o", "address"]).unwrap();
            let words = outer.split_whitespace().filter_map(|word| word.split_once('/')?.0.parse().ok());
            words.chain(other.lan_addresses()).collect::<Vec<IpAddr>>()
        })
        .collect()
}

/// The flows that a site's firewall let pass, by who began them.
fn written_down(lab: &Lab, site: &str) -> BTreeSet<Spoke> {
    let router = lab.site(site).unwrap().router(0).unwrap();
    let set = router.exec("nft", ["-j", "list", "set", "inet", "seen", "pairs"]).unwrap();
    let set: serde_json::Value = serde_json::from_str(&set).unwrap();
    let sets = set.get("nftables").unwrap().as_array().unwrap().iter().filter_map(|entry| entry.get("set"));
    let pairs = sets.filter_map(|set| set.get("elem")?.as_array()).flatten().map(|elem| {
        let pair = elem.pointer("/elem/val/concat").or_else(|| elem.get("concat")).unwrap().as_array().unwrap();
        let ip = |place: usize| pair.get(place).unwrap().as_str().unwrap().parse().unwrap();
        Spoke { from: ip(0), to: ip(1) }
    });
    pairs.collect()
}

const SITES: [&str; 2] = ["a", "b"];
/// Hosts of a site.
const HOSTS: u8 = 6;
/// Of replication, its control and its management.
const PORTS: [u16; 3] = [4007, 4008, 9081];
/// Bytes that a connection gets at a time, and how long its host rests between two rounds.
const BLOCK: u64 = 512;
const EACH: Duration = Duration::from_millis(50);
/// How often it is looked while something is waited for.
const AGAIN: Duration = Duration::from_millis(10);
/// A site's firewall writes down between whom a flow begins that it lets pass.
const WRITE_DOWN: &str = "
table inet seen {
    set pairs { type ipv4_addr . ipv4_addr; size 65535; flags dynamic; }
    chain passing {
        type filter hook forward priority 10; policy accept;
        meta nfproto ipv4 ct state new add @pairs { ip saddr . ip daddr }
    }
}";
