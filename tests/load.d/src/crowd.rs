//! A crowd in one network: memory, attach rate, labels, presence, and what presence costs others.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use flatlan_relay::{Control, Presence};
use tokio::sync::{Semaphore, mpsc};

use crate::client::{Client, Heard, Streams, Who};
use crate::echo::{self, Pair, path_open};
use crate::hub::{Hub, HubFolder};
use crate::lan::Lan;
use crate::measure::Paper;

/// Everything in this order, on one hub.
pub(crate) async fn run(paper: &mut Paper, nodes: usize, files: u64) -> Result<()> {
    let folder = HubFolder::make("crowd")?;
    let site = folder.site;
    let lan = Lan::new(1, nodes + SPARE, &folder.key, &site)?;
    let hub = folder.run(&[&lan], "").await?;
    let who = |member: usize| Who { secret: Arc::new(lan.secret(member)), network: lan.id, site };
    let (tell, mut heard) = mpsc::channel(1 << 17);
    let Some(whole) = usize::try_from(files)?.checked_sub(nodes + RESERVE).map(|both| both.min(nodes)) else {
        bail!("{files} open files are allowed and {} needed: ulimit -n, or run it as root", nodes + RESERVE);
    };
    paper.say(format!(
        "## {nodes} nodes of one network, each bound by UDP and with a control stream, {whole} with a data stream\n"
    ));
    if whole < nodes {
        let wanted = 2 * nodes + RESERVE;
        paper.say(format!("This machine allows a process {files} open files; all data streams want {wanted}.\n"));
    }
    let empty = hub.mib();
    let begun = Instant::now();
    let clients = attach_all((nodes, whole), &who, &tell).await?;
    let took = begun.elapsed();
    let ticks = hub.usage().ticks as f64 / 100.0;
    let full = hub.mib();
    paper.head(&["what", "value", "goal"]);
    paper.say(format!("| attached | {} | {nodes} |", clients.len()));
    paper.say(format!("| nodes attached a second, {AT_ONCE} at a time | {:.0} | |", nodes as f64 / took.as_secs_f64()));
    paper.say(format!("| hub's processor time for each, ms | {:.2} | |", ticks * 1e3 / nodes as f64));
    paper.say(format!("| hub's RSS without nodes, MiB | {empty:.0} | |"));
    let goal = if nodes == 10_000 { "at most 600" } else { "" };
    paper.say(format!("| hub's RSS, MiB | {full:.0} | {goal} |"));
    paper.say(format!("| for each node, KiB | {:.1} | |", (full - empty) * 1024.0 / nodes as f64));
    tokio::time::sleep(SETTLE).await;
    let (before, settled) = (hub.usage().ticks, hub.mib());
    tokio::time::sleep(SETTLE).await;
    let idle = (hub.usage().ticks - before) as f64 / SETTLE.as_secs_f64();
    paper.say(format!("| {} s later: RSS, MiB | {settled:.0} | {goal} |", SETTLE.as_secs()));
    paper.say(format!("| idle hub, % of a core | {idle:.1} | |"));
    let attached = hub.metric("flatlan_hub_attachments")?;
    paper.say(format!("| attached then, as the hub says | {attached:.0} | {nodes} |\n"));
    paper.must(full.max(settled) <= 600.0, &format!("{} MiB for {nodes} nodes", full.max(settled)));
    paper.must(attached as usize == nodes, &format!("{attached} of {nodes} are still attached"));
    while heard.try_recv().is_ok() {}
    labels(paper, &lan, &clients, &mut heard).await?;
    presence(paper, &hub, &clients, &who, (&tell, &mut heard), nodes).await?;
    if !hub.log().is_empty() {
        println!("the hub logged: {}", hub.log());
    }
    Ok(())
}

async fn attach_all(
    (nodes, whole): (usize, usize),
    who: &impl Fn(usize) -> Who,
    tell: &mpsc::Sender<Heard>,
) -> Result<Vec<Client>> {
    let places = Arc::new(Semaphore::new(AT_ONCE));
    let mut tasks = Vec::with_capacity(nodes);
    for n in 0..nodes {
        let (who, tell, place) = (who(n), tell.clone(), places.clone().acquire_owned().await?);
        tasks.push(tokio::spawn(async move {
            let streams = if n < whole { Streams::Both } else { Streams::Control };
            let client = Box::pin(Client::attend(&who, n, streams, tell)).await;
            drop(place);
            client
        }));
    }
    let mut clients = Vec::with_capacity(nodes);
    for task in tasks {
        clients.push(task.await?.context("a node does not attach")?);
    }
    Ok(clients)
}

/// Paths opened a second, by many nodes that each wait for a bounded number of answers.
async fn labels(paper: &mut Paper, lan: &Lan, clients: &[Client], heard: &mut mpsc::Receiver<Heard>) -> Result<()> {
    let askers = ASKERS.min(clients.len() / 2);
    let total = askers * LABELS;
    let mut asked = vec![0; askers];
    let (mut opened, mut failed) = (0, 0);
    let begun = Instant::now();
    let ask = async |n: usize, asked: &mut Vec<usize>| -> Result<()> {
        if asked[n] < LABELS {
            asked[n] += 1;
            let to = &clients[askers + (n * LABELS + asked[n]) % (clients.len() - askers)];
            clients[n].say(path_open(clients[n].id, to.id, lan.id, asked[n] as u32)).await?;
        }
        Ok(())
    };
    for n in 0..askers {
        for _ in 0..WINDOW {
            ask(n, &mut asked).await?;
        }
    }
    while opened + failed < total {
        let told = tokio::time::timeout(SILENCE, heard.recv()).await.context("no label comes any more")?;
        let Heard { client, message, .. } = told.context("nobody hears")?;
        match message {
            Control::PathOpened { .. } => opened += 1,
            Control::PathFailed { .. } => failed += 1,
            _ => continue,
        }
        ask(client, &mut asked).await?;
    }
    let rate = opened as f64 / begun.elapsed().as_secs_f64();
    paper.say(format!("Labels: {opened} set up by {askers} nodes, {failed} refused, {rate:.0} a second.\n"));
    paper.must(failed == 0, &format!("{failed} labels refused"));
    Ok(())
}

/// How long until a watcher sees that a node came or went, and what round trips of frames take meanwhile.
async fn presence(
    paper: &mut Paper,
    hub: &Hub,
    clients: &[Client],
    who: &impl Fn(usize) -> Who,
    (tell, heard): (&mpsc::Sender<Heard>, &mut mpsc::Receiver<Heard>),
    nodes: usize,
) -> Result<()> {
    let coming: Vec<usize> = (nodes..nodes + SPARE - 2).collect();
    let peers: Vec<_> = coming.iter().map(|member| who(*member).secret.public().id).collect();
    let watchers = WATCHERS.min(clients.len());
    for watcher in clients.iter().take(watchers) {
        watcher.say(Control::Watch { peers: peers.clone() }).await?;
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    while heard.try_recv().is_ok() {}
    let pair = Pair::attach(&who(nodes + SPARE - 2), &who(nodes + SPARE - 1)).await?;
    let control = pair.measure(PERIOD, ECHO).await?;
    let (mut came, mut went) = (Vec::new(), Vec::new());
    let ticks = hub.usage().ticks;
    let churn = async {
        let begun = Instant::now();
        let mut changes = 0;
        while begun.elapsed() < ECHO {
            let member = coming[changes / 2 % coming.len()];
            let id = who(member).secret.public().id;
            let since = Instant::now();
            let client = Client::attach(&who(member), usize::MAX, tell.clone()).await?;
            for at in seen(heard, watchers, |message| match message {
                Control::Presence { presence } => Presence::peek(presence).is_some_and(|(_, of, ..)| of == id),
                _ => false,
            })
            .await?
            {
                came.push(at.saturating_duration_since(since));
            }
            let since = Instant::now();
            drop(client);
            for at in
                seen(heard, watchers, |message| matches!(message, Control::Absent { peer, .. } if *peer == id)).await?
            {
                went.push(at.saturating_duration_since(since));
            }
            changes += 2;
            tokio::time::sleep(PAUSE).await;
        }
        anyhow::Ok(changes)
    };
    let (changes, loaded) = tokio::join!(churn, pair.measure(PERIOD, ECHO));
    let (changes, loaded) = (changes?, loaded?);
    let spent = (hub.usage().ticks - ticks) as f64 / ECHO.as_secs_f64();
    came.sort_unstable();
    went.sort_unstable();
    let ms = |time: Duration| format!("{:.2}", time.as_secs_f64() * 1e3);
    let rate = changes as f64 / ECHO.as_secs_f64();
    paper.say(format!(
        "Presence: {changes} changes, {rate:.0} a second, each told to {watchers} watchers among {nodes} nodes; hub {spent:.0} % of a core.\n"
    ));
    paper.head(&["what, ms", "count", "p50", "p99", "longest", "goal"]);
    for (what, times) in [("a node came: from its first packet to the watcher", &came), ("a node went", &went)] {
        let (p50, p99, longest) = (echo::at(times, 0.5), echo::at(times, 0.99), echo::at(times, 1.0));
        paper.say(format!(
            "| {what} | {} | {} | {} | {} | p99 at most 300 |",
            times.len(),
            ms(p50),
            ms(p99),
            ms(longest)
        ));
        paper.must(p99 <= Duration::from_millis(300), &format!("{what}: p99 {p99:?}"));
    }
    for (what, trips, goal) in [
        ("frames meanwhile, round trip", &loaded, "p99 at most twice the control's"),
        ("control: the same before", &control, ""),
    ] {
        let (p50, p99, longest) = (trips.at(0.5), trips.at(0.99), trips.at(1.0));
        paper.say(format!("| {what} | {} | {} | {} | {} | {goal} |", trips.times.len(), ms(p50), ms(p99), ms(longest)));
    }
    paper.say("");
    let (now, then) = (loaded.at(0.99), control.at(0.99));
    paper.must(now <= then * 2, &format!("frames beside presence: p99 {now:?}, control {then:?}"));
    Ok(())
}

/// When each watcher has heard it.
async fn seen(
    heard: &mut mpsc::Receiver<Heard>,
    watchers: usize,
    is_it: impl Fn(&Control) -> bool,
) -> Result<Vec<Instant>> {
    let mut times = Vec::with_capacity(watchers);
    while times.len() < watchers {
        match tokio::time::timeout(SILENCE, heard.recv()).await {
            Ok(Some(heard)) if heard.client < watchers && is_it(&heard.message) => times.push(heard.at),
            Ok(Some(_)) => {}
            Ok(None) | Err(_) => bail!("{} of {watchers} watchers have seen a change", times.len()),
        }
    }
    Ok(times)
}

/// Members who are not in the crowd: those that come and go, and the two that measure.
const SPARE: usize = 102;
/// Files for everything else, here and at the hub.
const RESERVE: usize = 1_000;
/// Nodes that attach at the same time.
const AT_ONCE: usize = 64;
const SETTLE: Duration = Duration::from_secs(20);
/// Nodes that open paths, how many each, and how many of them at a time.
const ASKERS: usize = 100;
const LABELS: usize = 200;
const WINDOW: usize = 16;
const WATCHERS: usize = 50;
const PERIOD: Duration = Duration::from_millis(5);
const ECHO: Duration = Duration::from_secs(20);
const PAUSE: Duration = Duration::from_millis(20);
const SILENCE: Duration = Duration::from_secs(10);
