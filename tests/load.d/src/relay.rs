//! Relays alone, each with the same datagrams: the hub, coturn's channels, nebula's relay.
//!
//! ```text
//!   a --- router --- h (relay)      a and b do not reach each other. Datagrams go from a to b over h, without any offload.
//!   b ------+                       What the relay spends is its own processor time, whatever the ends spend.
//! ```
//!
//! The ends of the hub and of coturn are sockets of this program; nebula's ends are nebula, for nobody else can talk to
//! its relay. Packets a second of one core are packets that arrived, by the processor seconds that the relay took.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use flatlan_lab::{Lab, Namespace, Process};
use flatlan_relay::{Control, frame::Header};
use tokio::sync::mpsc;

use crate::client::{Client, Who};
use crate::echo::path_open;
use crate::hub::{Site, program, publish};
use crate::lan::Lan;
use crate::measure::Paper;
use crate::usage::Usage;

/// What relays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Relay {
    Flatlan,
    Coturn,
    Nebula,
}

/// A relay that is ready: datagrams sent on the one socket, with what stands before them, arrive at the other.
struct Ready {
    relay: Process,
    from: UdpSocket,
    to: UdpSocket,
    before: Vec<u8>,
    _kept: Vec<Process>,
    _stop: Vec<mpsc::Sender<()>>,
}

/// What came of one measurement.
#[derive(Debug, Clone, Copy)]
struct Figures {
    arrived: f64,
    per_core: f64,
    gbits_per_core: f64,
}

/// All of them in turns, at both rates or the one that is named.
pub(crate) fn run(paper: &mut Paper, mut words: impl Iterator<Item = String>) -> Result<()> {
    let mut rates = vec![PACED, UNLIMITED];
    while let Some(word) = words.next() {
        match word.as_str() {
            "--rate" => rates = vec![words.next().and_then(|n| n.parse().ok()).context("--rate N")?],
            _ => bail!("{word}: --rate N"),
        }
        paper.is_part();
    }
    flatlan_lab::enter()?;
    flatlan_lab::require(["nebula", "nebula-cert", "turnserver"]).context("apt-get install nebula coturn")?;
    paper.say(format!(
        "{ROUNDS} turns of {} s for each, medians; {} thousand offered means as fast as one thread sends.\n",
        LENGTH.as_secs(),
        UNLIMITED / 1000
    ));
    let columns = ["payload, bytes", "arrived, k/s", "k/s for each core of the relay", "Gbit/s for each core"];
    paper.head(&[&["relay", "offered, k/s"], &columns[..]].concat());
    for (rate, bytes) in rates.iter().flat_map(|rate| [64, 1200].map(|bytes| (*rate, bytes))) {
        let mut all: [Vec<Figures>; 3] = Default::default();
        for _ in 0..ROUNDS {
            for (n, relay) in Relay::ALL.into_iter().enumerate() {
                let lab = Lab::builder().bare("a").bare("b").bare("h").build()?;
                lab.cut_between("a", "b")?;
                let ready = relay.prepare(&lab).with_context(|| format!("{relay:?}"))?;
                all[n].push(measure(&ready, rate, bytes)?);
            }
        }
        let mut medians = Vec::new();
        for (relay, mut figures) in Relay::ALL.into_iter().zip(all) {
            figures.sort_by(|a, b| a.per_core.total_cmp(&b.per_core));
            let Figures { arrived, per_core, gbits_per_core } = figures[figures.len() / 2];
            paper.say(format!(
                "| {relay:?} | {} | {bytes} | {:.0} | {:.0} | {gbits_per_core:.2} |",
                rate / 1000,
                arrived / 1e3,
                per_core / 1e3
            ));
            medians.push(per_core);
        }
        let ahead = medians[0] > medians[1] && medians[0] > medians[2];
        paper.must(ahead, &format!("{bytes} bytes, {rate} a second: the hub is not ahead of both"));
    }
    Ok(())
}

fn measure(ready: &Ready, rate: u64, bytes: usize) -> Result<Figures> {
    let stop = Arc::new(AtomicBool::new(false));
    let received = Arc::new(AtomicU64::new(0));
    let sink = {
        let (socket, stop, received) = (ready.to.try_clone()?, stop.clone(), received.clone());
        socket.set_read_timeout(Some(Duration::from_millis(100)))?;
        std::thread::spawn(move || crate::blast::count(&socket, &stop, &received))
    };
    let source = {
        let (socket, stop) = (ready.from.try_clone()?, stop.clone());
        let mut datagram = ready.before.clone();
        datagram.resize(ready.before.len() + bytes, 7);
        if ready.before == CHANNEL {
            datagram[2..4].copy_from_slice(&(bytes as u16).to_be_bytes());
        }
        std::thread::spawn(move || crate::blast::paced(&socket, &datagram, rate, &stop, &AtomicU64::new(0)))
    };
    std::thread::sleep(Duration::from_millis(500));
    let (before, count, begun) = (Usage::of(ready.relay.pid()), received.load(Ordering::Relaxed), Instant::now());
    std::thread::sleep(LENGTH);
    let (after, seconds) = (Usage::of(ready.relay.pid()), begun.elapsed().as_secs_f64());
    let count = (received.load(Ordering::Relaxed) - count) as f64;
    stop.store(true, Ordering::Relaxed);
    let _ = (source.join(), sink.join());
    if count == 0.0 {
        bail!("nothing arrives: {}", ready.relay.tail(5));
    }
    let core = ((after.ticks - before.ticks) as f64 / 100.0).max(0.01);
    let per_core = count / core;
    Ok(Figures { arrived: count / seconds, per_core, gbits_per_core: per_core * bytes as f64 * 8.0 / 1e9 })
}

impl Relay {
    const ALL: [Self; 3] = [Self::Flatlan, Self::Coturn, Self::Nebula];

    fn prepare(self, lab: &Lab) -> Result<Ready> {
        let ip = |name: &str| -> Result<Ipv4Addr> {
            match lab.bare(name)?.addresses().first() {
                Some(IpAddr::V4(ip)) => Ok(*ip),
                _ => bail!("{name} has no IPv4 address"),
            }
        };
        let (a, b, h) = (lab.bare("a")?.namespace(), lab.bare("b")?.namespace(), lab.bare("h")?.namespace());
        let log = lab.folder().join("log").join("relay.log");
        match self {
            Self::Flatlan => flatlan(lab.folder(), [a, b, h], ip("h")?, &log),
            Self::Coturn => coturn([a, b, h], [ip("b")?, ip("h")?], &log),
            Self::Nebula => nebula(lab.folder(), [a, b, h], ip("h")?, lab.admin()),
        }
    }
}

fn flatlan(folder: &Path, [a, b, h]: [&Namespace; 3], ip: Ipv4Addr, log: &Path) -> Result<Ready> {
    let state = folder.join("state").join("hub");
    let mut command = Namespace::command(program()?);
    command.args(["init", "--state"]).arg(&state);
    let outcome = h.output(command)?.success()?;
    let at = SocketAddr::new(ip.into(), 4433);
    let site = Site { tls: at, udp: at, admin: at };
    let lan = Arc::new(Lan::new(1, 2, &outcome.last_line().parse().ok().context("no hub key")?, &site)?);
    let mut command = Namespace::command(program()?);
    let (at, id) = (at.to_string(), lan.id.full());
    command.args(["run", "--log", "warn", "--tls", &at, "--udp", &at, "--allow", &id, "--state"]).arg(&state);
    let relay = h.spawn("flatlan-hub", command, log)?;
    let (published, wait) = (lan.clone(), Instant::now());
    inside(a, move || async move {
        while publish(site.tls, &published).await.is_err() {
            if wait.elapsed() > START {
                bail!("the hub does not take the roster");
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    })?;
    let who = |n| Who { secret: Arc::new(lan.secret(n)), network: lan.id, site };
    let id = who(1).secret.public().id;
    let (far, _, stop_far) = stay(b, who(1), None)?;
    let (from, label, stop_near) = stay(a, who(0), Some(id))?;
    let before = label.context("no label")?;
    Ok(Ready { relay, from, to: far, before, _kept: Vec::new(), _stop: vec![stop_far, stop_near] })
}

/// Attaches in a namespace, and stays as long as the sender that comes back; with what stands before frames to `peer`.
fn stay(
    at: &Namespace,
    who: Who,
    peer: Option<flatlan_types::MemberId>,
) -> Result<(UdpSocket, Option<Vec<u8>>, mpsc::Sender<()>)> {
    let (stop, mut stopped) = mpsc::channel::<()>(1);
    let (ready, is_ready) = std::sync::mpsc::channel();
    at.thread("end", move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let attach = async {
                let (tell, mut heard) = mpsc::channel(64);
                let client = Box::pin(Client::attach(&who, 0, tell)).await?;
                let mut before = None;
                if let Some(peer) = peer {
                    client.say(path_open(client.id, peer, who.network, 1)).await?;
                    while let Some(heard) = heard.recv().await {
                        match heard.message {
                            Control::PathOpened { label, .. } => {
                                before = Some(Header::new(label).to_bytes().to_vec());
                                break;
                            }
                            Control::PathFailed { reason, .. } => bail!("no path: {reason:?}"),
                            _ => {}
                        }
                    }
                }
                use std::os::fd::AsFd as _;
                let socket = UdpSocket::from(client.udp.as_ref().context("no socket")?.as_fd().try_clone_to_owned()?);
                socket.set_nonblocking(false)?;
                anyhow::Ok((client, socket, before, heard))
            };
            match attach.await {
                Ok((_client, socket, before, _heard)) => {
                    let _ = ready.send(Ok((socket, before)));
                    let _ = stopped.recv().await;
                }
                Err(error) => drop(ready.send(Err(error))),
            }
        });
    })?;
    let (socket, before) = is_ready.recv().context("the end's thread broke")??;
    Ok((socket, before, stop))
}

/// Runs something of tokio's in a namespace, to its end.
fn inside<T: Send + 'static, F: Future<Output = Result<T>>>(
    at: &Namespace,
    work: impl FnOnce() -> F + Send + 'static,
) -> Result<T> {
    at.run(move || tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work()))
}

fn coturn([a, b, h]: [&Namespace; 3], [peer, relay]: [Ipv4Addr; 2], log: &Path) -> Result<Ready> {
    let mut command = Namespace::command("turnserver");
    let ip = relay.to_string();
    command.args(["-n", "--no-auth", "--no-tls", "--no-dtls", "--no-cli", "--no-tcp", "--log-file", "stdout"]);
    command.args(["--listening-ip", &ip, "--relay-ip", &ip, "--relay-threads", "1", "--pidfile", "/dev/null"]);
    let process = h.spawn("turnserver", command, log)?;
    let to = b.run(move || UdpSocket::bind(SocketAddr::new(peer.into(), 7000)))?;
    let from = a.run(move || -> Result<UdpSocket> {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.connect((relay, 3478))?;
        socket.set_read_timeout(Some(Duration::from_millis(200)))?;
        // REQUESTED-TRANSPORT: UDP
        ask(&socket, 0x0003, &[0x00, 0x19, 0, 4, 17, 0, 0, 0])?;
        let address = (u32::from(peer) ^ COOKIE).to_be_bytes();
        let port = (7000 ^ (COOKIE >> 16) as u16).to_be_bytes();
        // CHANNEL-NUMBER, XOR-PEER-ADDRESS
        let channel = [0x00, 0x0c, 0, 4, 0x40, 0, 0, 0, 0x00, 0x12, 0, 8, 0, 1];
        ask(&socket, 0x0009, &[&channel[..], &port, &address].concat())?;
        Ok(socket)
    })?;
    Ok(Ready { relay: process, from, to, before: CHANNEL.to_vec(), _kept: Vec::new(), _stop: Vec::new() })
}

/// One STUN request (RFC 8489), until it is answered with success.
fn ask(socket: &UdpSocket, method: u16, attributes: &[u8]) -> Result<()> {
    let head = [method, attributes.len() as u16].map(u16::to_be_bytes).concat();
    let request = [&head[..], &COOKIE.to_be_bytes(), &[9; 12], attributes].concat();
    let begun = Instant::now();
    let mut answer = [0; 512];
    while begun.elapsed() < START {
        let _ = socket.send(&request);
        match socket.recv(&mut answer) {
            Ok(length) if length >= 20 && answer[..2] == (method | 0x0100).to_be_bytes() => return Ok(()),
            Ok(length) if length >= 20 && answer[..2] == (method | 0x0110).to_be_bytes() => {
                bail!("coturn refuses: {:?}", answer.get(20..length))
            }
            _ => std::thread::sleep(Duration::from_millis(50)),
        }
    }
    bail!("coturn does not answer")
}

fn nebula(folder: &Path, [a, b, h]: [&Namespace; 3], relay: Ipv4Addr, admin: &Namespace) -> Result<Ready> {
    let folder = folder.join("state").join("nebula");
    std::fs::create_dir_all(&folder).context("no folder")?;
    let path = |name: &str| folder.join(name).to_string_lossy().into_owned();
    let (crt, key) = (path("ca.crt"), path("ca.key"));
    admin.exec("nebula-cert", ["ca", "-name", "lab", "-out-crt", &crt, "-out-key", &key])?;
    let mut processes = Vec::new();
    for (name, ip, machine) in [("h", "10.78.0.3", h), ("b", "10.78.0.2", b), ("a", "10.78.0.1", a)] {
        let (own_crt, own_key) = (path(&format!("{name}.crt")), path(&format!("{name}.key")));
        let network = format!("{ip}/24");
        let sign = ["sign", "-ca-crt", &crt, "-ca-key", &key, "-name", name, "-ip", &network];
        admin.exec("nebula-cert", sign.into_iter().chain(["-out-crt", &own_crt, "-out-key", &own_key]))?;
        let shines = name == "h";
        let asked = if shines { "" } else { "\"10.78.0.3\"" };
        let text = format!(
            "pki: {{ ca: {crt}, cert: {own_crt}, key: {own_key} }}
static_host_map: {{ \"10.78.0.3\": [\"{relay}:4242\"] }}
lighthouse: {{ am_lighthouse: {shines}, interval: 10, hosts: [{asked}] }}
relay: {{ am_relay: {shines}, use_relays: {}, relays: [{asked}] }}
listen: {{ host: 0.0.0.0, port: 4242 }}
punchy: {{ punch: true }}
tun: {{ dev: neb-{name}, mtu: 1300 }}
logging: {{ level: error, format: text }}
firewall: {{ outbound: [ {{ port: any, proto: any, host: any }} ], inbound: [ {{ port: any, proto: any, host: any }} ] }}
",
            !shines
        );
        let file = path(&format!("{name}.yml"));
        std::fs::write(&file, text).context("cannot write nebula's configuration")?;
        let mut command = Namespace::command("nebula");
        command.args(["-config", &file]);
        processes.push(machine.spawn(&format!("nebula {name}"), command, &folder.join(format!("{name}.log")))?);
    }
    let begun = Instant::now();
    while a.exec("ping", ["-c", "1", "-W", "1", "10.78.0.2"]).is_err() {
        if begun.elapsed() > Duration::from_secs(60) {
            bail!("a does not reach b by nebula");
        }
    }
    let to = b.run(|| UdpSocket::bind("10.78.0.2:7000"))?;
    let from = a.run(|| -> Result<UdpSocket> {
        let socket = UdpSocket::bind("10.78.0.1:0")?;
        socket.connect("10.78.0.2:7000")?;
        Ok(socket)
    })?;
    let relay = processes.remove(0);
    Ok(Ready { relay, from, to, before: Vec::new(), _kept: processes, _stop: Vec::new() })
}

/// What stands before data on a channel: its number, and the length.
const CHANNEL: [u8; 4] = [0x40, 0, 0, 0];
const COOKIE: u32 = 0x2112_a442;
const ROUNDS: usize = 3;
const LENGTH: Duration = Duration::from_secs(3);
/// Datagrams a second: what nebula's ends manage here. Beyond what a relay takes, the kernel drops, and its work for that
/// is charged to whoever makes a system call, the relay among them.
const PACED: u64 = 20_000;
/// More than one thread sends.
const UNLIMITED: u64 = 10_000_000;
const START: Duration = Duration::from_secs(10);
