//! A thousand real nodes that all come within a second, and reach each other.

use std::time::{Duration, Instant};

use anyhow::Result;
use tokio::sync::mpsc;
use tokio::time::{Instant as Tick, sleep_until};

use crate::echo::at;
use crate::hub::HubFolder;
use crate::lan::Lan;
use crate::measure::Paper;
use crate::node::{Running, Told, What};
use crate::usage::Usage;

/// Starts them spread over a second; each asks another one as soon as it is up, until that answers.
pub(crate) async fn run(paper: &mut Paper, nodes: usize) -> Result<()> {
    let folder = HubFolder::make("storm")?;
    let site = folder.site;
    let lans: Vec<Lan> =
        (0..LANS).map(|n| Lan::new(n as u8 + 1, nodes / LANS, &folder.key, &site)).collect::<Result<_>>()?;
    let hub = folder.run(&lans.iter().collect::<Vec<_>>(), "").await?;
    let each = nodes / LANS;
    let mut ends = Vec::new();
    let (mut up, mut answered) = (Vec::new(), Vec::new());
    // a machine that is made takes its time, and is not what is measured
    let mut prepared = Vec::with_capacity(nodes);
    for (network, lan) in lans.iter().enumerate() {
        let (tell, told) = mpsc::channel::<Told>(1 << 16);
        ends.push(told);
        for member in 0..each {
            prepared.push((network, member, Running::prepare(lan, member, site, tell.clone()).await?));
        }
    }
    let own = || Usage::of(std::process::id() as i32).ticks;
    let (ticks, own_ticks) = (hub.usage().ticks, own());
    let begun = Instant::now();
    let first = Tick::now();
    let mut running: Vec<Vec<Running>> = (0..LANS).map(|_| Vec::with_capacity(each)).collect();
    prepared.sort_by_key(|(network, member, _)| (*member, *network));
    let starting = async {
        for (n, (network, _, node)) in prepared.into_iter().enumerate() {
            sleep_until(first + Duration::from_secs(1) * n as u32 / nodes as u32).await;
            running[network].push(node.start());
        }
        running
    };
    let running = starting.await;
    let started = begun.elapsed();
    let mut waiting: Vec<Vec<bool>> = vec![vec![true; each]; LANS];
    let mut is_up: Vec<Vec<bool>> = vec![vec![false; each]; LANS];
    while (up.len() < nodes || answered.len() < nodes) && begun.elapsed() < LIMIT {
        for network in 0..LANS {
            while let Ok(told) = ends[network].try_recv() {
                let after = told.at.saturating_duration_since(begun);
                match told.what {
                    What::Up if !is_up[network][told.node] => {
                        is_up[network][told.node] = true;
                        up.push(after);
                    }
                    What::Answered if waiting[network][told.node] => {
                        waiting[network][told.node] = false;
                        answered.push(after);
                    }
                    What::Up | What::Answered => {}
                }
            }
            for member in 0..each {
                if is_up[network][member] && waiting[network][member] {
                    running[network][member].ask(Lan::address((member + each / 2) % each)).await;
                }
            }
        }
        tokio::time::sleep(ASK_AGAIN).await;
    }
    let (spent, own_spent) = ((hub.usage().ticks - ticks) as f64 / 100.0, (own() - own_ticks) as f64 / 100.0);
    up.sort_unstable();
    answered.sort_unstable();
    paper.say(format!("## {nodes} real nodes of {LANS} networks come in one second\n"));
    paper.say("Control machine, packet engine, sockets and streams of each in one task; each reaches another by a packet through the hub or, as all are on one machine, directly.\n");
    paper.head(&["what", "count", "half after, s", "99 % after, s", "last after, s", "goal"]);
    let last = |times: &[Duration]| times.last().map_or(f64::INFINITY, Duration::as_secs_f64);
    let after =
        |times: &[Duration], share| if times.is_empty() { f64::INFINITY } else { at(times, share).as_secs_f64() };
    paper.say(format!("| started | {nodes} | | | {:.2} | 1 |", started.as_secs_f64()));
    for (what, times, goal) in [("attached", &up, ""), ("reach a peer, and are answered", &answered, "5")] {
        let [half, most] = [0.5, 0.99].map(|share| after(times, share));
        paper.say(format!("| {what} | {} | {half:.2} | {most:.2} | {:.2} | {goal} |", times.len(), last(times)));
    }
    paper.say(format!(
        "\nUntil then the hub used {spent:.2} s of processor time, and has {:.0} MiB; the nodes used {own_spent:.2} s.\n",
        hub.mib()
    ));
    let held = answered.len() == nodes && last(&answered) <= 5.0;
    paper.must(held, &format!("{} of {nodes} reach a peer after {:.2} s", answered.len(), last(&answered)));
    Ok(())
}

/// A node holds its whole roster: as many networks as keep that small.
const LANS: usize = 4;
/// How often who has no answer asks again.
const ASK_AGAIN: Duration = Duration::from_millis(250);
const LIMIT: Duration = Duration::from_secs(30);
