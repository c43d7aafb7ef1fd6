//! Two networks on one hub: one sends twice and ten times its quota, the other must hardly notice. The control is the
//! larger flood beside the hub: the machine's two ends, the hub and the source of the flood share its cores.

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

/// Quiet, at the quota, at twice and at ten times the quota, and the last to nobody too, in turns.
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
    let mut trips: [Vec<Trips>; 5] = Default::default();
    let mut spent = [0.0; 5];
    let (mut offered, mut passed) = ([0.0; 5], 0.0);
    for _ in 0..ROUNDS {
        // anew each time: whoever only receives is not sent anything for long
        let noisy = Pair::attach(&who(&lans[0], 0), &who(&lans[0], 1)).await?;
        let (socket, label, _kept) = noisy.sender()?;
        let floods =
            [(&socket, 0), (&socket, QUOTA), (&socket, 2 * QUOTA), (&aside, 10 * QUOTA), (&socket, 10 * QUOTA)];
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
            if which == 4 {
                passed += mean(hub.metric("flatlan_hub_forwarded_datagrams_total")? - forwarded);
            }
            flood.end();
        }
    }
    let [alone, at, twice, beside, over] = trips.map(Trips::together);
    paper.say(format!("## Two networks, each with a quota of {QUOTA} packets a second\n"));
    paper.say(format!("Round trips of 128-byte frames of network B every {PERIOD:?}, {ROUNDS} turns of {LENGTH:?} each; A's own 128-byte frames meanwhile.\n"));
    paper.head(&["A sends", "a second", "B's trips", "p50, ms", "p99, ms", "lost, %", "hub, % of a core", "goal"]);
    let rows = [
        ("nothing", &alone, ""),
        ("its quota", &at, ""),
        (
            "twice its quota",
            &twice,
            "p50 and p99 at most 1.2 times the control's and those beside A's quota; 0.1 % lost",
        ),
        ("ten times its quota, not to the hub (control)", &beside, ""),
        ("ten times its quota", &over, "the same"),
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
    let pairs = [
        ("twice A's quota", &twice, "A's quota", &at),
        ("twice A's quota", &twice, "the control", &beside),
        ("A's flood", &over, "A's quota", &at),
        ("A's flood", &over, "the control", &beside),
    ];
    for (what, trips, reference, others) in pairs {
        for (name, share) in [("p50", 0.5), ("p99", 0.99)] {
            let (now, then) = (trips.at(share), others.at(share));
            let held = now.as_secs_f64() <= then.as_secs_f64() * 1.2;
            paper.must(held, &format!("B beside {what}: {name} {now:?}, not 1.2 times {then:?} beside {reference}"));
        }
    }
    for (what, trips) in [("twice A's quota", &twice), ("A's flood", &over)] {
        paper.must(trips.lost() <= 0.001, &format!("B beside {what}: {:.2} % lost", trips.lost() * 100.0));
    }
    // each trip is forwarded there and back
    let least = 0.95 * (QUOTA as f64 + 2.0 / PERIOD.as_secs_f64());
    let kept = (least..least * 1.15).contains(&passed);
    paper.must(
        kept,
        &format!("beside A's flood {passed:.0} a second were forwarded, not {least:.0} to 1.15 times that"),
    );
    let [_, _, to_twice, aside, to_ten] = offered;
    let alike = (aside / to_ten - 1.0).abs() < 0.05;
    paper.must(alike, &format!("the control was {aside:.0} packets a second, the flood {to_ten:.0}"));
    for (times, offered) in [(2.0, to_twice), (10.0, to_ten)] {
        let least = 0.8 * times * QUOTA as f64;
        paper.must(offered >= least, &format!("only {offered:.0} packets a second were offered, not {least:.0}"));
    }
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
