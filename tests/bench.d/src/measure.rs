//! One measurement each: what is started, what is read, and how a number comes of it.
//!
//! Flows are iperf3's, round trips those of `ping`, datagrams those of `packets`. Processor time is counted from before
//! the client starts until it has ended, over payload that arrived.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use flatlan_lab::{Namespace, Probe};
use serde_json::Value;

use crate::arena::{Arena, Machine, Mode};
use crate::cpu::{self, Cpu};
use crate::figure::{Figure, Figures, Flow, Part, Rate, Share};
use crate::packets;
use crate::peer::{Peer, Running};

/// Starts an overlay, and waits until B answers A. Returns how long that took, in seconds.
pub(crate) fn start<'a>(arena: &'a Arena, peer: Peer, mode: Mode, binary: &str) -> Result<(Running<'a>, f64)> {
    let begun = Instant::now();
    // asks already, so that an answer is seen when it can come
    let probe = Probe::ping(arena.at(Machine::A)?, Machine::B.overlay().into(), START_PING)?;
    let running = peer.start(arena, mode, binary)?;
    let first = probe.wait_answers(1, START_LIMIT).with_context(|| format!("no answer:\n{}", running.tails()))?;
    Ok((running, first.saturating_duration_since(begun).as_secs_f64()))
}

/// A TCP flow for so many seconds.
pub(crate) fn tcp(running: &Running<'_>, flow: Flow, seconds: u32) -> Result<Figures> {
    let words: &[&str] = match flow {
        Flow::One => &[],
        Flow::Four => &["--parallel", "4"],
        Flow::Reverse => &["--reverse"],
        Flow::Both => &["--bidir"],
    };
    let cpu = || Cpu::of(running);
    let (gigabytes, rate, before, after) = iperf3(running.arena, Machine::B.overlay(), seconds, words, cpu)?;
    let spent = after.since(before);
    let mut figures = Figures::from([
        (Figure::Tcp(flow, Part::Rate), rate),
        (Figure::Tcp(flow, Part::Ends), spent.ends / gigabytes),
        (Figure::Tcp(flow, Part::Host), spent.host / gigabytes),
    ]);
    if running.processes().any(|(machine, _)| machine.is_hub()) {
        figures.insert(Figure::Tcp(flow, Part::Hubs), spent.hubs / gigabytes);
    }
    Ok(figures)
}

/// Round trips while nothing else goes on.
pub(crate) fn ping_idle(arena: &Arena) -> Result<Figures> {
    let words = ["-n", "-i", "0.005", "-c", "1000", "-W", "2", &Machine::B.overlay().to_string()].map(str::to_owned);
    let said = ping(arena, words, Duration::from_secs(60))?;
    let times = parse_ping(&said)?;
    Ok(shares(times, Figure::PingIdle))
}

/// Round trips beside one TCP stream that takes all it gets.
pub(crate) fn ping_loaded(running: &Running<'_>, seconds: u32) -> Result<Figures> {
    let (count, to) = (seconds * 200, Machine::B.overlay().to_string());
    let words = ["-n", "-i", "0.005", "-c", &count.to_string(), "-W", "2", &to].map(str::to_owned);
    let said = std::thread::scope(|scope| {
        let pinger = scope.spawn(|| {
            std::thread::sleep(UNDER_WAY);
            ping(running.arena, words, limit(seconds))
        });
        let flow = tcp(running, Flow::One, seconds + 1);
        let said = pinger.join().unwrap_or_else(|_| bail!("a thread panicked"))?;
        flow.map(|_| said)
    })?;
    Ok(shares(parse_ping(&said)?, Figure::PingLoaded))
}

/// Datagrams of so many bytes of payload, two seconds long: thousands received a second.
pub(crate) fn udp(arena: &Arena, bytes: u16, rate: Rate) -> Result<Figures> {
    let received = packets::measure(arena, bytes, rate, UDP_SECONDS)?;
    Ok(Figures::from([(Figure::Udp(bytes, rate), received / 1e3)]))
}

/// One stream from A to an address of B, whoever carries it: gigabytes received, gigabits a second, and processor
/// seconds of the whole machine.
pub(crate) fn plain_tcp(arena: &Arena, to: Ipv4Addr, seconds: u32) -> Result<(f64, f64, f64)> {
    let (gigabytes, rate, before, after) = iperf3(arena, to, seconds, &[], cpu::host)?;
    Ok((gigabytes, rate, after - before))
}

/// Gigabytes received, gigabits a second, and what `look` saw before and after.
fn iperf3<T>(
    arena: &Arena,
    to: Ipv4Addr,
    seconds: u32,
    words: &[&str],
    look: impl Fn() -> T,
) -> Result<(f64, f64, T, T)> {
    let server = ["--server", "--one-off", "--forceflush", "--bind", &to.to_string()];
    let server = arena.spawn(Machine::B, "iperf3", server)?;
    server.wait_line("Server listening", Duration::from_secs(10))?;
    let mut client = Namespace::command("iperf3");
    client.args(["--json", "--time", &seconds.to_string(), "--client", &to.to_string()]).args(words);
    let before = look();
    let outcome = arena.at(Machine::A)?.output_within(client, limit(seconds))?;
    let after = look();
    let (gigabytes, rate) = parse_iperf3(&outcome.stdout).with_context(|| format!("iperf3: {}", outcome.stderr))?;
    Ok((gigabytes, rate, before, after))
}

fn ping<const N: usize>(arena: &Arena, words: [String; N], within: Duration) -> Result<String> {
    let mut command = Namespace::command("ping");
    command.args(words);
    // where something was lost it fails, and has said what came
    Ok(arena.at(Machine::A)?.output_within(command, within)?.stdout)
}

/// Payload received, in gigabytes, and the rate, in gigabits a second.
fn parse_iperf3(text: &str) -> Result<(f64, f64)> {
    let report: Value = serde_json::from_str(text).context("no JSON")?;
    let number = |pointer: &str| report.pointer(pointer).and_then(Value::as_f64);
    let seconds = number("/end/sum_received/seconds").filter(|seconds| *seconds > 0.0);
    let bytes = number("/end/sum_received/bytes").filter(|bytes| *bytes > 0.0);
    let back = number("/end/sum_received_bidir_reverse/bytes").unwrap_or(0.0);
    let (Some(bytes), Some(seconds)) = (bytes, seconds) else {
        bail!("nothing received: {}", report.get("error").unwrap_or(&Value::Null));
    };
    let bytes = bytes + back;
    Ok((bytes / 1e9, bytes * 8.0 / seconds / 1e9))
}

/// Every round trip that `ping` tells, in milliseconds. One that was lost counts as long as it was waited for.
fn parse_ping(text: &str) -> Result<Vec<f64>> {
    let times = text.lines().filter_map(|line| line.split_once("time=")?.1.split_whitespace().next()?.parse().ok());
    let mut times: Vec<f64> = times.collect();
    if times.is_empty() {
        bail!("no ping was answered");
    }
    let sent = text.lines().find_map(|line| line.split_once(" packets transmitted")?.0.parse().ok());
    times.resize(times.len().max(sent.unwrap_or(0)), LOST);
    Ok(times)
}

fn shares(mut times: Vec<f64>, figure: impl Fn(Share) -> Figure) -> Figures {
    times.sort_by(f64::total_cmp);
    let at = |per_cent: usize| times.get(times.len() * per_cent / 100).copied().unwrap_or(f64::NAN);
    Figures::from([(figure(Share::P50), at(50)), (figure(Share::P99), at(99))])
}

fn limit(seconds: u32) -> Duration {
    Duration::from_secs(u64::from(seconds) + 20)
}

/// From when on a stream takes all it gets: its start is not what is asked about.
const UNDER_WAY: Duration = Duration::from_millis(500);

/// How long `ping -W 2` waits for an answer, in milliseconds.
const LOST: f64 = 2000.0;
/// How often B is asked while an overlay starts.
const START_PING: Duration = Duration::from_millis(20);
/// How long it may take to start.
const START_LIMIT: Duration = Duration::from_secs(30);
/// How long datagrams are sent.
const UDP_SECONDS: u32 = 2;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_arrived_counts_and_not_what_was_sent() {
        let text = r#"{"end":{"sum_sent":{"bytes":9e9,"seconds":8},"sum_received":{"bytes":4e9,"seconds":8}}}"#;
        assert_eq!(parse_iperf3(text).unwrap(), (4.0, 4.0));
    }

    #[test]
    fn both_directions_are_added() {
        let back = r#""sum_received_bidir_reverse":{"bytes":2e9,"seconds":8}"#;
        let text = format!(r#"{{"end":{{"sum_received":{{"bytes":4e9,"seconds":8}},{back}}}}}"#);
        assert_eq!(parse_iperf3(&text).unwrap(), (6.0, 6.0));
    }

    #[test]
    fn a_flow_without_a_byte_is_an_error_that_says_why() {
        let refused = parse_iperf3(r#"{"end":{},"error":"unable to connect"}"#).unwrap_err();
        assert!(refused.to_string().contains("unable to connect"), "{refused}");
        assert!(parse_iperf3("").is_err());
    }

    #[test]
    fn shares_of_round_trips_are_round_trips_that_occurred() {
        let mut text = "64 bytes from 10.77.0.2: icmp_seq=2 ttl=64 (truncated)\n".to_owned();
        for ms in (1..=200).rev() {
            text.push_str(&format!("64 bytes from 10.77.0.2: icmp_seq=1 ttl=64 time={ms}.5 ms\n"));
        }
        let figures = shares(parse_ping(&text).unwrap(), Figure::PingIdle);
        assert_eq!(figures[&Figure::PingIdle(Share::P50)], 101.5);
        assert_eq!(figures[&Figure::PingIdle(Share::P99)], 199.5);
        assert!(parse_ping("2 packets transmitted, 0 received").is_err());
        let lossy =
            parse_ping("64 bytes from B: time=1.5 ms\n3 packets transmitted, 1 received, 66% packet loss").unwrap();
        assert_eq!(lossy, [1.5, LOST, LOST]);
    }
}
