//! Two networks on one hub: one floods at ten times its quota, the other must hardly notice. The control is the same flood
//! beside the hub: the machine's two ends, the hub and the source of the flood share its cores.

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

/// Quiet, at the quota, and at ten times the quota, to nobody and to the hub, in turns.
pub(crate) async fn run(paper: &mut Paper) -> Result<()> {
    let folder = HubFolder::make("tenants")?;
    let site = folder.site;
    let lans = [Lan::new(1, 4, &folder.key, &site)?, Lan::new(2, 4, &folder.key, &site)?];
    let hub = folder.run(&[&lans[0], &lans[1]], &format!("network_packets = {QUOTA}")).await?;
    let who = |lan: &Lan, member: usize| Who { secret: Arc::new(lan.secret(member)), network: lan.id, site };
    let quiet = Pair::attach(&who(&lans[1], 0), &who(&lans[1], 1)).await?;
    // nobody reads it: what comes is dropped once its buffer is full
    let nobody = UdpSocket::bind("127.0.0.1:0")?;
    let aside = UdpSocket::bind("127.0.0.1:0")?;
    aside.connect(nobody.local_addr()?)?;
    let mut trips: [Vec<Trips>; 4] = Default::default();
    let mut spent = [0.0; 4];
    let (mut offered, mut passed) = ([0.0; 4], 0.0);
    for _ in 0..ROUNDS {
        // anew each time: whoever only receives is not sent anything for long
        let noisy = Pair::attach(&who(&lans[0], 0), &who(&lans[0], 1)).await?;
        let (socket, label, _kept) = noisy.sender()?;
        let floods = [(&socket, 0), (&socket, QUOTA), (&aside, 10 * QUOTA), (&socket, 10 * QUOTA)];
        for (which, (to, rate)) in floods.into_iter().enumerate() {
            let flood = Flood::begin(to.try_clone()?, label, rate);
            tokio::time::sleep(WARM).await;
            let (ticks, sent) = (hub.usage().ticks, flood.sent());
            let forwarded = hub.metric("flatlan_hub_forwarded_datagrams_total")?;
            let begun = Instant::now();
            trips[which].push(quiet.measure(PERIOD, LENGTH).await?);
            let seconds = begun.elapsed().as_secs_f64();
            let mean = |count: f64| count / seconds / f64::from(ROUNDS);
            spent[which] += mean((hub.usage().ticks - ticks) as f64);
            offered[which] += mean((flood.sent() - sent) as f64);
            if which == 3 {
                passed += mean(hub.metric("flatlan_hub_forwarded_datagrams_total")? - forwarded);
            }
            flood.end();
        }
    }
    let [alone, at, beside, over] = trips.map(Trips::together);
    paper.say(format!("## Two networks, each with a quota of {QUOTA} packets a second\n"));
    paper.say(format!("Round trips of 128-byte frames of network B every {PERIOD:?}, {ROUNDS} turns of {LENGTH:?} each; A's own 128-byte frames meanwhile.\n"));
    paper.head(&["A sends", "a second", "B's trips", "p50, ms", "p99, ms", "lost, %", "hub, % of a core", "goal"]);
    let rows = [
        ("nothing", &alone, ""),
        ("its quota", &at, ""),
        ("ten times its quota, not to the hub (control)", &beside, ""),
        ("ten times its quota", &over, "p99 at most 1.2 times the control and that beside A's quota; 0.1 % lost"),
    ];
    for ((what, trips, goal), (offered, spent)) in rows.into_iter().zip(offered.into_iter().zip(spent)) {
        let ms = |share| trips.at(share).as_secs_f64() * 1e3;
        let lost = trips.lost() * 100.0;
        paper.say(format!(
            "| {what} | {offered:.0} | {} | {:.3} | {:.3} | {lost:.2} | {spent:.0} | {goal} |",
            trips.times.len(),
            ms(0.5),
            ms(0.99)
        ));
    }
    paper.say(format!("\nBeside A's flood {passed:.0} a second were forwarded in all.\n"));
    let now = over.at(0.99);
    for (what, then) in [("A's quota", at.at(0.99)), ("the control", beside.at(0.99))] {
        let held = now.as_secs_f64() <= then.as_secs_f64() * 1.2;
        paper.must(held, &format!("B beside A's flood: p99 {now:?}, not 1.2 times {then:?} beside {what}"));
    }
    paper.must(over.lost() <= 0.001, &format!("B beside A's flood: {:.2} % lost", over.lost() * 100.0));
    // each trip is forwarded there and back
    let least = 0.95 * (QUOTA as f64 + 2.0 / PERIOD.as_secs_f64());
    let kept = (least..least * 1.15).contains(&passed);
    paper.must(
        kept,
        &format!("beside A's flood {passed:.0} a second were forwarded, not {least:.0} to 1.15 times that"),
    );
    let alike = (offered[2] / offered[3] - 1.0).abs() < 0.05;
    paper.must(alike, &format!("the control was {:.0} packets a second, the flood {:.0}", offered[2], offered[3]));
    paper.must(offered[3] >= 8.0 * QUOTA as f64, &format!("only {:.0} packets a second were offered", offered[3]));
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
