//! Thousands of connections that never finish what they began, and a node that attaches meanwhile.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinHandle;

use crate::client::{Who, attach_control, greet};
use crate::echo::at;
use crate::hub::HubFolder;
use crate::lan::Lan;
use crate::measure::Paper;

/// What a stranger does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Manner {
    /// Connects and says nothing.
    Silent,
    /// Says the beginning of a TLS handshake, a byte a second.
    Slow,
    /// Does TLS and WebSocket from the address that the nodes have, too, and does not attach.
    Mute,
}

/// Each manner from one address and from many, with the control before.
pub(crate) async fn run(paper: &mut Paper) -> Result<()> {
    paper.say(format!("## {STRANGERS} connections that do not finish, {FRESH} a second of them opened anew\n"));
    paper.head(&["strangers", "open", "attached", "attach p50, ms", "longest, ms", "hub's RSS grows, MiB", "goal"]);
    for (manner, sources) in [
        (None, 1),
        (Some(Manner::Silent), 1),
        (Some(Manner::Silent), STRANGERS),
        (Some(Manner::Slow), STRANGERS),
        (Some(Manner::Mute), 1),
    ] {
        let folder = HubFolder::make("strangers")?;
        let site = folder.site;
        let lan = Lan::new(1, ATTACHES, &folder.key, &site)?;
        let hub = folder.run(&[&lan], "").await?;
        let before = hub.mib();
        let open = Arc::new(AtomicUsize::new(0));
        let crowd: Vec<_> = manner
            .map(|manner| (0..STRANGERS).map(|n| stranger(manner, n, n % sources, site.tls, open.clone())).collect())
            .unwrap_or_default();
        let crowd = Crowd(crowd);
        if manner.is_some() {
            let begun = Instant::now();
            while open.load(Ordering::Relaxed) < STRANGERS * 2 / 5 && begun.elapsed() < FILL {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            tokio::time::sleep(Duration::from_secs(3)).await;
        }
        let (mut times, mut failed, mut most) = (Vec::new(), 0, hub.mib());
        let mut held = Vec::new();
        for n in 0..ATTACHES {
            let who = Who { secret: Arc::new(lan.secret(n)), network: lan.id, site };
            let begun = Instant::now();
            match Box::pin(attach_control(&who)).await {
                Ok(attached) => {
                    times.push(begun.elapsed());
                    held.push(attached);
                }
                Err(error) => {
                    failed += 1;
                    println!("a node does not attach: {error:#}");
                }
            }
            most = most.max(hub.mib());
            tokio::time::sleep(PAUSE).await;
        }
        times.sort_unstable();
        let name = match manner {
            None => "none (control)".to_owned(),
            Some(manner) if sources == 1 => format!("{manner:?}, one address"),
            Some(manner) => format!("{manner:?}, {sources} addresses"),
        };
        let ms = |share| at(&times, share).as_secs_f64() * 1e3;
        let grown = most - before;
        paper.say(format!(
            "| {name} | {} | {} of {ATTACHES} | {:.1} | {:.1} | {grown:.0} | longest at most 500; at most 200 |",
            open.load(Ordering::Relaxed),
            times.len(),
            ms(0.5),
            ms(1.0)
        ));
        let quick = at(&times, 1.0) <= Duration::from_millis(500);
        paper.must(failed == 0 && quick, &format!("{name}: {failed} fail, the longest takes {:?}", at(&times, 1.0)));
        paper.must(grown <= 200.0, &format!("{name}: {grown:.0} MiB more"));
        drop(crowd);
    }
    paper.say("");
    Ok(())
}

struct Crowd(Vec<JoinHandle<()>>);

impl Drop for Crowd {
    fn drop(&mut self) {
        self.0.iter().for_each(JoinHandle::abort);
    }
}

/// One of them: whenever it is thrown out, it comes again.
fn stranger(manner: Manner, n: usize, source: usize, hub: SocketAddr, open: Arc<AtomicUsize>) -> JoinHandle<()> {
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_secs(1) * n as u32 / FRESH).await;
        loop {
            if manner == Manner::Mute {
                let Ok((mut stream, _)) = Box::pin(greet(hub)).await else {
                    tokio::time::sleep(AGAIN).await;
                    continue;
                };
                open.fetch_add(1, Ordering::Relaxed);
                while let Ok(Some(_)) = stream.receiver.recv().await {}
            } else if let Ok(mut tcp) = connect(source, hub).await {
                open.fetch_add(1, Ordering::Relaxed);
                let mut heard = [0; 64];
                for byte in HELLO.iter().copied().chain(std::iter::repeat(0)) {
                    if manner == Manner::Slow && tcp.write_all(&[byte]).await.is_err() {
                        break;
                    }
                    let heard = tokio::time::timeout(Duration::from_secs(1), tcp.read(&mut heard)).await;
                    if heard.is_ok() {
                        break;
                    }
                }
            } else {
                tokio::time::sleep(AGAIN).await;
                continue;
            }
            open.fetch_sub(1, Ordering::Relaxed);
            tokio::time::sleep(AGAIN).await;
        }
    })
}

async fn connect(source: usize, hub: SocketAddr) -> Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::new(address(source), 0))?;
    Ok(socket.connect(hub).await?)
}

/// Loopback has a /8 of them; the nodes have the first one.
fn address(source: usize) -> IpAddr {
    let [_, _, high, low] = (source as u32 + 1).to_be_bytes();
    Ipv4Addr::new(127, 1, high, low).into()
}

const STRANGERS: usize = 10_000;
/// Of them, how many come in a second at the beginning.
const FRESH: u32 = 2_000;
const FILL: Duration = Duration::from_secs(15);
/// When one that was thrown out comes again.
const AGAIN: Duration = Duration::from_secs(5);
/// Nodes that attach meanwhile, one after the other.
const ATTACHES: usize = 30;
const PAUSE: Duration = Duration::from_millis(100);
/// The beginning of a TLS record with a client's hello.
const HELLO: [u8; 9] = [0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc];
