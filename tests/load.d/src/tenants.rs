//! Two networks on one hub: one floods at ten times its quota, the other must hardly notice.

use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;
use flatlan_relay::frame::Header;
use flatlan_types::Label;

use crate::client::Who;
use crate::echo::{Pair, Trips};
use crate::hub::HubFolder;
use crate::lan::Lan;
use crate::measure::Paper;

/// Quiet, at the quota, and at ten times the quota, in turns.
pub(crate) async fn run(paper: &mut Paper) -> Result<()> {
    let folder = HubFolder::make("tenants")?;
    let site = folder.site;
    let lans = [Lan::new(1, 4, &folder.key, &site)?, Lan::new(2, 4, &folder.key, &site)?];
    let hub = folder.run(&[&lans[0], &lans[1]], &format!("network_packets = {QUOTA}")).await?;
    let who = |lan: &Lan, member: usize| Who { secret: Arc::new(lan.secret(member)), network: lan.id, site };
    let noisy = Pair::attach(&who(&lans[0], 0), &who(&lans[0], 1)).await?;
    let quiet = Pair::attach(&who(&lans[1], 0), &who(&lans[1], 1)).await?;
    let (socket, label, _kept) = noisy.sender()?;
    let mut trips: [Vec<Trips>; 3] = [Vec::new(), Vec::new(), Vec::new()];
    let mut spent = [0.0; 3];
    let (mut offered, mut passed) = (0.0, 0.0);
    for _ in 0..ROUNDS {
        for (which, rate) in [0, QUOTA, 10 * QUOTA].into_iter().enumerate() {
            let flood = Flood::begin(socket.try_clone()?, label, rate);
            tokio::time::sleep(WARM).await;
            let (ticks, sent) = (hub.usage().ticks, flood.sent());
            let forwarded = hub.metric("flatlan_hub_forwarded_datagrams_total")?;
            let begun = Instant::now();
            trips[which].push(quiet.measure(PERIOD, LENGTH).await?);
            let seconds = begun.elapsed().as_secs_f64();
            spent[which] += (hub.usage().ticks - ticks) as f64 / seconds / f64::from(ROUNDS);
            if which == 2 {
                offered += (flood.sent() - sent) as f64 / seconds / f64::from(ROUNDS);
                let forwarded = hub.metric("flatlan_hub_forwarded_datagrams_total")? - forwarded;
                passed += forwarded / seconds / f64::from(ROUNDS);
            }
            flood.end();
        }
    }
    let [control, at, over] = trips.map(Trips::together);
    paper.say(format!("## Two networks, each with a quota of {QUOTA} packets a second\n"));
    paper.say(format!("Round trips of 128-byte frames of network B every {PERIOD:?}, {ROUNDS} turns of {LENGTH:?} each; A's own 128-byte frames meanwhile.\n"));
    paper.head(&["A sends", "B's trips", "p50, ms", "p99, ms", "lost, %", "hub, % of a core", "goal"]);
    for (what, trips, spent, goal) in [
        ("nothing (control)", &control, spent[0], ""),
        ("its quota", &at, spent[1], ""),
        ("ten times its quota", &over, spent[2], "p99 at most 1.2 times that beside A's quota; 0.1 % lost"),
    ] {
        let ms = |share| trips.at(share).as_secs_f64() * 1e3;
        let lost = trips.lost() * 100.0;
        paper.say(format!(
            "| {what} | {} | {:.3} | {:.3} | {lost:.2} | {spent:.0} | {goal} |",
            trips.times.len(),
            ms(0.5),
            ms(0.99)
        ));
    }
    paper.say(format!("\nOffered by A {offered:.0} a second, forwarded in all {passed:.0}.\n"));
    let (now, then) = (over.at(0.99), at.at(0.99));
    paper
        .must(now.as_secs_f64() <= then.as_secs_f64() * 1.2, &format!("B beside A's flood: p99 {now:?}, not {then:?}"));
    paper.must(over.lost() <= 0.001, &format!("B beside A's flood: {:.2} % lost", over.lost() * 100.0));
    paper.must(offered >= 8.0 * QUOTA as f64, &format!("only {offered:.0} packets a second were offered"));
    Ok(())
}

impl Trips {
    /// Several turns as one.
    fn together(turns: Vec<Self>) -> Self {
        let sent = turns.iter().map(|turn| turn.sent).sum();
        let mut times: Vec<Duration> = turns.into_iter().flat_map(|turn| turn.times).collect();
        times.sort_unstable();
        Self { sent, times }
    }
}

/// A source of frames, at a rate.
struct Flood {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    thread: std::thread::JoinHandle<()>,
}

impl Flood {
    fn begin(socket: UdpSocket, label: Label, rate: u64) -> Self {
        let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, count) = (stop.clone(), sent.clone());
        let thread = std::thread::spawn(move || {
            crate::be_nice();
            crate::blast::paced(&socket, &frame(label), rate, &stopped, &count);
        });
        Self { stop, sent, thread }
    }

    fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.join();
    }
}

fn frame(label: Label) -> Vec<u8> {
    [&Header::new(label).to_bytes()[..], &[0; 120]].concat()
}

/// Packets a second.
const QUOTA: u64 = 10_000;
const ROUNDS: u32 = 5;
const PERIOD: Duration = Duration::from_millis(2);
const LENGTH: Duration = Duration::from_secs(4);
const WARM: Duration = Duration::from_millis(300);
