//! `flatlan lab demo`: the whole story on one machine, in well under two minutes.
//!
//! Three sites behind NAT routers become one LAN by tokens; every machine reaches every other, and is seen under its
//! own address; the hub carries what it cannot read; then the hub in use is killed under a running TCP flow.
//! Everything that is shown is measured while it is shown. The lab is gone when the story ends, by whichever end.

use std::fmt::Display;
use std::io::Write;
use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::capture::{Capture, occurrences};
use crate::error::LabError;
use crate::lab::Lab;
use crate::look::{iperf3, sockets};
use crate::namespace::{Namespace, require};
use crate::nat::Nat;
use crate::probe::{Payload, Probe, Transfer};
use crate::wire::Traffic;

/// What the demo measured.
#[derive(Debug, Clone)]
pub struct Measured {
    /// From the first command to the last node being up.
    pub bring_up: Duration,
    /// Megabits per second, by hub and direct.
    pub relayed: f64,
    /// Megabits per second on the direct path.
    pub direct: f64,
    /// The worse of the longest gaps of ping and TCP echo when the hub was killed.
    pub gap: Duration,
    /// The longest pause of the TCP transfer: the gap, and what TCP's own retransmission timer adds to it.
    pub pause: Duration,
}

/// Tells the story to `out`, with this `flatlan` binary.
///
/// # Errors
/// The first step that does not go as told.
pub fn run(flatlan: &Path, out: &mut dyn Write) -> Result<Measured, LabError> {
    require(["nft", "setpriv", "ss", "iperf3"])?;
    let mut story = Story { out, chapter: 0, began: Instant::now() };
    story.say(INTRODUCTION)?;
    let lab = Lab::builder()
        .flatlan(flatlan)
        .hub("h1")
        .hub("h2")
        .site("a", Nat::Symmetric)
        .site("b", Nat::Symmetric)
        .site("c", Nat::FullCone)
        .build()?;
    let bring_up = bring_up(&mut story, &lab)?;
    ping_matrix(&mut story, &lab)?;
    addresses(&mut story, &lab)?;
    let (relayed, direct) = throughput(&mut story, &lab)?;
    canary(&mut story, &lab)?;
    let killed = kill(&mut story, &lab)?;
    story.chapter("Gone again")?;
    let (machines, prefix) = (lab.machines().len(), lab.prefix().to_owned());
    drop(lab);
    story.say(format_args!("   {machines} namespaces {prefix}-*, their processes and files are removed."))?;
    story.say(format_args!("   The story took {:.0} s.\n", story.began.elapsed().as_secs_f64()))?;
    story.say(format_args!(
        "Hub {} was killed under running TCP connections. Longest gap: {} ms (transfer: {} ms). No connection was lost.",
        killed.hub,
        killed.gap.as_millis(),
        killed.pause.as_millis()
    ))?;
    Ok(Measured { bring_up, relayed, direct, gap: killed.gap, pause: killed.pause })
}

fn bring_up(story: &mut Story<'_>, lab: &Lab) -> Result<Duration, LabError> {
    story.chapter("Bring-up: one network, two hubs, three sites")?;
    let start = Instant::now();
    let id = lab.network_create()?;
    story.command("admin", "flatlan network create lab --range 10.77.0.0/16", &short(&id))?;
    for hub in lab.hubs() {
        let key = lab.add_hub(hub)?;
        story.command(hub.name(), "flatlan hub init", &short(&key))?;
        let add = format!("flatlan network hub add {} --key {} --tls {}:443", hub.name(), short(&key), hub.host());
        story.command("admin", &add, "")?;
    }
    for hub in lab.hubs() {
        lab.start_hub(hub.name())?;
        story.command(hub.name(), &format!("flatlan hub run --tls 0.0.0.0:443 --allow {}", short(&id)), "listens")?;
    }
    lab.publish()?;
    story.command("admin", "flatlan network publish", "signed here, stored on both hubs")?;
    for site in lab.sites() {
        let [lan, _] = site.prefixes();
        let token = lab.invite(site.name())?;
        let invite = format!("flatlan invite {} --ip {} --route {lan}", site.name(), site.virtual_ip());
        story.command("admin", &invite, &short(&token))?;
        lab.join_with(site.name(), &token)?.success()?;
        story.command(site.name(), &format!("flatlan join {}", short(&token)), "joined")?;
    }
    for site in lab.sites() {
        let said = lab.up(site.name())?.lines().into_iter().rev().find(|line| line.text.contains("up: "));
        let said = said.map_or_else(String::new, |line| line.text.split("up: ").last().unwrap_or_default().to_owned());
        story.command(site.name(), "flatlan up", &format!("up: {said}"))?;
    }
    let took = start.elapsed();
    story.say(format_args!("   Three sites are up {:.1} s after the first command.", took.as_secs_f64()))?;
    Ok(took)
}

fn ping_matrix(story: &mut Story<'_>, lab: &Lab) -> Result<(), LabError> {
    story.chapter("Everybody reaches everybody")?;
    story.say("   Gateways by their virtual IP, hosts by the address of their own LAN. Hosts run no flatlan.\n")?;
    let mut machines: Vec<(String, &Namespace, IpAddr)> = Vec::new();
    for site in lab.sites() {
        machines.push((site.name().to_owned(), site.gateway(), site.virtual_ip().into()));
    }
    for site in lab.sites() {
        for host in site.hosts() {
            let [address, _] = host.addresses();
            machines.push((lab.short_name(host.namespace()).to_owned(), host.namespace(), address));
        }
    }
    let header: String = machines.iter().map(|(name, ..)| format!("{name:>9}")).collect();
    story.say(format_args!("   {:<5}{:<15}{header}   round trip in ms", "from", "address"))?;
    for (name, from, own) in &machines {
        let mut row = format!("   {name:<5}{own:<15}");
        let mut probes = Vec::new();
        for (_, _, to) in &machines {
            probes.push(if to == own { None } else { Some(Probe::ping(from, *to, PING)?) });
        }
        for probe in probes {
            match probe {
                None => row.push_str("        -"),
                Some(probe) => {
                    probe.wait_answers(5, REACH)?;
                    let median = probe.stop().round_trip_quantile(0.5);
                    row.push_str(&format!("{:>9.2}", median.as_secs_f64() * 1e3));
                }
            }
        }
        story.say(row)?;
    }
    story.say("")?;
    for (from, to) in [("a", "b"), ("a", "c")] {
        if to == "c" {
            wait_direct(lab, from, to)?;
        }
        let path = path_in_words(lab, from, to)?;
        story.say(format_args!("   {from} reaches {to} {path}"))?;
    }
    let (from, to) = (lab.site("a")?, lab.virtual_ips("b")?);
    if let Some(v6) = to.into_iter().find(IpAddr::is_ipv6) {
        let probe = Probe::ping(from.gateway(), v6, PING)?;
        probe.wait_answers(5, REACH)?;
        let median = probe.stop().round_trip_quantile(0.5);
        story.say(format_args!("   IPv6 too: a reaches b at {v6} in {:.2} ms", median.as_secs_f64() * 1e3))?;
    }
    Ok(())
}

fn addresses(story: &mut Story<'_>, lab: &Lab) -> Result<(), LabError> {
    story.chapter("The address that the far side sees")?;
    let (a, b) = (lab.site("a")?, lab.site("b")?);
    let (Some(client), Some(server)) = (a.hosts().first(), b.hosts().first()) else { return Ok(()) };
    let pairs = [
        ("a", a.gateway(), "b", b.gateway(), IpAddr::from(b.virtual_ip())),
        ("a-1", client.namespace(), "b-1", server.namespace(), server.addresses()[0]),
    ];
    for (from, near, to, far, address) in pairs {
        let echo = Probe::tcp_echo(near, far, address, PING)?;
        echo.wait_answers(3, REACH)?;
        let local = sockets(near)?.into_iter().find(|socket| socket.peer.ip() == address).map(|socket| socket.local);
        let remote = sockets(far)?.into_iter().find(|socket| socket.local.ip() == address).map(|socket| socket.peer);
        let (Some(local), Some(remote)) = (local, remote) else {
            return Err(unexpected("ss -tn", "the connection is not there"));
        };
        let verdict = if local == remote { "the same: nothing was translated" } else { "NOT THE SAME" };
        story.say(format_args!(
            "   {from} connects to {to} from {local}; on {to}, `ss -tn` shows {remote}: {verdict}"
        ))?;
        if local != remote {
            return Err(unexpected("ss -tn", &format!("{remote} instead of {local}")));
        }
    }
    Ok(())
}

fn throughput(story: &mut Story<'_>, lab: &Lab) -> Result<(f64, f64), LabError> {
    story.chapter("Throughput of one TCP connection, all of this on one machine")?;
    let [a, b, c] = [lab.site("a")?, lab.site("b")?, lab.site("c")?];
    let mut rates = [0.0; 2];
    for (rate, (to, words)) in rates.iter_mut().zip([(b, "a to b"), (c, "a to c")]) {
        *rate = iperf3(lab, a.gateway(), to.gateway(), to.virtual_ip().into(), 3, &[])?;
        let path = path_in_words(lab, "a", to.name())?;
        story.say(format_args!("   {words} {path:<28} {rate:>8.0} Mbit/s   (iperf3, 3 s)"))?;
    }
    let [relayed, direct] = rates;
    Ok((relayed, direct))
}

fn canary(story: &mut Story<'_>, lab: &Lab) -> Result<(), LabError> {
    story.chapter("What the hub can read")?;
    let (a, b) = (lab.site("a")?, lab.site("b")?);
    let before = Capture::start(lab, a.gateway())?;
    let mut wires = Vec::new();
    for hub in lab.hubs() {
        wires.push((hub.name(), Capture::start(lab, hub.namespace())?));
    }
    let payload = Payload::Repeat(format!("{CANARY} "));
    let transfer = Transfer::start(a.gateway(), b.gateway(), b.virtual_ip().into(), payload, Some(CANARY_BYTES))?;
    let report = transfer.finish(Duration::from_secs(30))?;
    story.say(format_args!("   a sends b {} MiB of the text \"{CANARY}\".", report.bytes >> 20))?;
    // The positive control: the same search finds the text where it must be.
    let clear = occurrences(&before.stop()?, CANARY.as_bytes())?;
    story.say(format_args!("   {:<46}{clear:>9} times", "seen on gateway a, on its way into the tunnel:"))?;
    let (mut leaked, mut carried) = (0, 0);
    for (hub, wire) in wires {
        let file = wire.stop()?;
        let found = occurrences(&file, CANARY.as_bytes())?;
        let size = std::fs::metadata(&file).map_or(0, |meta| meta.len());
        leaked += found;
        carried += size;
        story.say(format_args!(
            "   {:<46}{found:>9} times in {} MiB",
            format!("seen on all interfaces of hub {hub}:"),
            size >> 20
        ))?;
    }
    if !report.equal || clear == 0 || leaked > 0 || carried < CANARY_BYTES {
        let what =
            format!("{clear} in clear, {leaked} on the hubs' wires, {carried} bytes there, equal {}", report.equal);
        return Err(unexpected("the canary's captures", &what));
    }
    Ok(())
}

struct Killed {
    hub: String,
    gap: Duration,
    pause: Duration,
}

fn kill(story: &mut Story<'_>, lab: &Lab) -> Result<Killed, LabError> {
    story.chapter("A hub dies")?;
    let (a, b) = (lab.site("a")?, lab.site("b")?);
    let (near, far, address) = (a.gateway(), b.gateway(), IpAddr::from(b.virtual_ip()));
    let wires = lab.watch_traffic(Duration::from_millis(50))?;
    let ping = Probe::ping(near, address, PING)?;
    let echo = Probe::tcp_echo(near, far, address, PING)?;
    let transfer = Transfer::start(near, far, address, Payload::Random, None)?;
    ping.wait_answers(150, REACH)?;
    echo.wait_answers(50, REACH)?;
    let now = Instant::now();
    let crossed = wires.between(now - Duration::from_secs(1), now);
    let hub = busiest(lab, &crossed)?;
    let share = crossed.of(&hub);
    story.say("   From a to b: a ping each 10 ms, a TCP echo each 10 ms, and one TCP transfer at full speed.")?;
    story.say(format_args!(
        "   The router counted {:.1} MB to hub {hub} in the last second: it is the one that carries them.",
        megabytes(share.received_bytes)
    ))?;
    let at = lab.kill(&hub)?;
    story.command(&hub, "kill -9", "no goodbye, no word to anybody")?;
    ping.wait_answers(150, REACH)?;
    echo.wait_answers(100, REACH)?;
    let moved = transfer.received();
    transfer.wait_received(moved + (1 << 20), REACH)?;
    let until = Instant::now();
    let (ping, echo) = (ping.stop(), echo.stop());
    let report = transfer.stop(REACH);
    let gaps = [
        ("ping", ping.longest_gap_between(at, until).length),
        ("TCP echo", echo.longest_gap_between(at, until).length),
        ("TCP transfer", report.longest_gap.length),
    ];
    for (what, gap) in gaps {
        story.say(format_args!("   longest gap of the {what:<13} {:>5} ms", gap.as_millis()))?;
    }
    let after = wires.between(until - Duration::from_millis(500), until);
    let heir = busiest(lab, &after)?;
    story.say(format_args!(
        "   Hub {heir} carries everything now: {:.1} MB in half a second.",
        megabytes(after.of(&heir).received_bytes)
    ))?;
    story.say(format_args!(
        "   The transfer is the same connection throughout: {} MiB, SHA-256 equal at both ends.",
        report.bytes >> 20
    ))?;
    if !report.equal || report.broken.is_some() || echo.broken().is_some() || heir == hub {
        let what = format!("equal {}, transfer {:?}, echo {:?}", report.equal, report.broken, echo.broken());
        return Err(unexpected("the connections over the killed hub", &what));
    }
    lab.restart(&hub)?;
    story.command(&hub, "flatlan hub run ...", "it is back, and nobody noticed")?;
    let [(_, ping), (_, echo), (_, pause)] = gaps;
    Ok(Killed { hub, gap: ping.max(echo), pause })
}

/// The hub that received most, where it received enough to be a flow.
fn busiest(lab: &Lab, crossed: &Traffic) -> Result<String, LabError> {
    let busiest = lab.hubs().max_by_key(|hub| crossed.of(hub.name()).received_bytes);
    let busiest = busiest.filter(|hub| crossed.of(hub.name()).received_bytes > FLOW_BYTES);
    let what = || unexpected("the router's counters", "no hub carries the flows");
    busiest.map(|hub| hub.name().to_owned()).ok_or_else(what)
}

/// Gives two sites the time to find each other. Where they do not, the story goes on by the hub.
fn wait_direct(lab: &Lab, from: &str, to: &str) -> Result<(), LabError> {
    let (near, far) = (lab.site(from)?, lab.site(to)?);
    // They look for a direct path while they have something to say.
    let _talk = Probe::ping(near.gateway(), far.virtual_ip().into(), PING)?;
    let deadline = Instant::now() + DIRECT_WAIT;
    while Instant::now() < deadline {
        let path = lab.path(from, to)?;
        if path.is_some_and(|path| path.get("kind").and_then(serde_json::Value::as_str) == Some("direct")) {
            break;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

/// How the status says that one site reaches another.
fn path_in_words(lab: &Lab, from: &str, to: &str) -> Result<String, LabError> {
    let Some(path) = lab.path(from, to)? else { return Ok("by no path yet".to_owned()) };
    let word = |key: &str| path.get(key).and_then(serde_json::Value::as_str).unwrap_or_default().to_owned();
    let transport = word("transport").to_uppercase();
    if word("kind") == "direct" {
        return Ok(format!("directly over {transport}"));
    }
    let via: Vec<&str> =
        path.get("via").and_then(|via| via.as_array()).into_iter().flatten().filter_map(|hub| hub.as_str()).collect();
    Ok(format!("by hub {} over {transport}", via.join(", ")))
}

fn unexpected(command: &str, answer: &str) -> LabError {
    LabError::Unexpected { command: command.to_owned(), answer: answer.to_owned() }
}

/// The head and the tail of a long word.
fn short(word: &str) -> String {
    let length = word.chars().count();
    if length <= 24 {
        return word.to_owned();
    }
    let head: String = word.chars().take(14).collect();
    let tail: String = word.chars().skip(length - 6).collect();
    format!("{head}...{tail}")
}

#[expect(clippy::cast_precision_loss, reason = "a number to be read by people")]
fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

struct Story<'a> {
    out: &'a mut dyn Write,
    chapter: u32,
    began: Instant,
}

impl Story<'_> {
    fn say(&mut self, text: impl Display) -> Result<(), LabError> {
        writeln!(self.out, "{text}").and_then(|()| self.out.flush()).map_err(LabError::io("write to", "the terminal"))
    }

    fn chapter(&mut self, title: &str) -> Result<(), LabError> {
        self.chapter += 1;
        let number = self.chapter;
        self.say(format_args!("\n{number}. {title}\n"))
    }

    fn command(&mut self, machine: &str, command: &str, answer: &str) -> Result<(), LabError> {
        if answer.is_empty() {
            return self.say(format_args!("   {machine:>5} $ {command}"));
        }
        self.say(format_args!("   {machine:>5} $ {command:<62} {answer}"))
    }
}

const INTRODUCTION: &str = "\
flatlan lab demo: three sites behind NAT become one LAN, and lose a hub without losing a TCP connection.

   An internet in network namespaces of this machine; nothing outside them is touched:

            hub h1                   hub h2              two hubs that relay what they cannot read
           198.18.1.2              198.18.2.2
                 \\                   /
                  \\---- internet ---/
                 /         |         \\
        symmetric NAT  symmetric NAT  full-cone NAT      a and b cannot reach each other directly
              |            |            |
         gateway a    gateway b    gateway c             they run flatlan: 10.77.0.1, .2 and .3
         host a-1     host b-1     host c-1              they run nothing: 192.168.1.11, .2.11 and .3.11";

/// The text that must not be seen on any wire.
const CANARY: &str = "the canary sings in the mine";
/// How much of it is sent.
const CANARY_BYTES: u64 = 8 << 20;
/// How often the probes ask.
const PING: Duration = Duration::from_millis(10);
/// How long anything may take to be reached.
const REACH: Duration = Duration::from_secs(15);
/// How long two sites may take to find a direct path.
const DIRECT_WAIT: Duration = Duration::from_secs(5);
/// A hub that received less in the time looked at carries no flow at full speed.
const FLOW_BYTES: u64 = 200_000;
