//! A node without a data path: what a hub sees of a node, with the sockets of one, and none of its decisions.
//!
//! Control stream, data stream and a bound UDP socket. It watches, opens paths and gives labels as it is told, so that
//! ten thousand members of one network fit into this process: a real node knows the whole roster, and these share it.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use flatlan_os::stream::{DialConfig, Stream, dial};
use flatlan_relay::bind::{self, Bind, Bound, Verdict};
use flatlan_relay::{
    Attach, BindKey, Control, Presence, PresenceOrder, Proof, Role, VERSION,
    auth::{AttachScope, Exporter, verify_hello},
};
use flatlan_types::{BootEpoch, Endpoint, HostPort, HubKey, Label, MemberId, NetworkId, NodeSecret};
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::hub::Site;

/// Who attaches, where.
#[derive(Clone)]
pub(crate) struct Who {
    /// The member.
    pub(crate) secret: Arc<NodeSecret>,
    /// Its network.
    pub(crate) network: NetworkId,
    /// The hub.
    pub(crate) site: Site,
}

/// What an attached client heard.
#[derive(Debug)]
pub(crate) struct Heard {
    /// Which client, by the number that it was given.
    pub(crate) client: usize,
    /// When.
    pub(crate) at: Instant,
    /// What.
    pub(crate) message: Control,
}

/// An attached client whose streams are served by a task. It detaches with this.
#[derive(Debug)]
pub(crate) struct Client {
    /// The member.
    pub(crate) id: MemberId,
    /// The bound socket, connected to the hub; the crowd does not keep its own.
    pub(crate) udp: Option<UdpSocket>,
    orders: mpsc::Sender<Control>,
    _task: Task,
    _data: Option<Stream>,
}

/// Which streams a client has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Streams {
    /// As a node: control and data.
    Both,
    /// As a node whose data stream broke.
    Control,
}

impl Client {
    /// Attaches with everything that a node has. What it hears goes to `heard`, where there is room.
    pub(crate) async fn attach(who: &Who, number: usize, heard: mpsc::Sender<Heard>) -> Result<Self> {
        Self::attach_with(who, number, Streams::Both, heard).await
    }

    /// One of a crowd: bound as well, but its socket is closed then, for this process may not have so many files.
    pub(crate) async fn attend(who: &Who, number: usize, streams: Streams, heard: mpsc::Sender<Heard>) -> Result<Self> {
        Ok(Self { udp: None, ..Self::attach_with(who, number, streams, heard).await? })
    }

    async fn attach_with(who: &Who, number: usize, streams: Streams, heard: mpsc::Sender<Heard>) -> Result<Self> {
        let (control, key, bind) = attach_control(who).await?;
        let udp = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await?;
        udp.connect(who.site.udp).await?;
        bind_udp(&udp, &bind).await.context("no UDP")?;
        let data = match streams {
            Streams::Both => Some(attach_data(who, &key).await?),
            Streams::Control => None,
        };
        let (orders, orders_rx) = mpsc::channel(64);
        let task = tokio::spawn(live(control, number, heard, orders_rx));
        Ok(Self { id: who.secret.public().id, udp: Some(udp), orders, _task: Task(task), _data: data })
    }

    /// Says something to the hub.
    pub(crate) async fn say(&self, message: Control) -> Result<()> {
        self.orders.send(message).await.ok().context("the client has lost its hub")
    }
}

/// A task that ends with this.
#[derive(Debug)]
struct Task(JoinHandle<()>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Dials, and hears the hub's name.
pub(crate) async fn greet(at: SocketAddr) -> Result<(Stream, HubKey)> {
    let target = HostPort::from(Endpoint::new(at));
    let mut stream = Box::pin(dial(DialConfig::new(&target))).await.context("cannot dial")?;
    let Control::HubHello { key, signature, .. } = hear(&mut stream).await? else { bail!("no hub greets") };
    verify_hello(&key, &Exporter(stream.exporter), &signature).context("another hub")?;
    Ok((stream, key))
}

/// Says one message.
pub(crate) async fn say(stream: &mut Stream, message: &Control) -> Result<()> {
    stream.sender.send(message.encode().into()).await.context("the stream broke")
}

/// Hears one message.
pub(crate) async fn hear(stream: &mut Stream) -> Result<Control> {
    loop {
        let message = timeout(ANSWER, stream.receiver.recv()).await.context("the hub is silent")?;
        let message = message.context("the stream broke")?.context("the hub ended the stream")?;
        if let Some(message) = Control::decode(&message).context("not a message")? {
            return Ok(message);
        }
    }
}

/// A control stream and the key for binding.
pub(crate) async fn attach_control(who: &Who) -> Result<(Stream, HubKey, BindKey)> {
    let (mut stream, key) = greet(who.site.tls).await?;
    let order = PresenceOrder { epoch: BootEpoch(EPOCH), counter: COUNTER.fetch_add(1, Ordering::Relaxed) };
    let presence = Presence::sign(&who.secret, who.network, key, order).encode();
    ask(&mut stream, who, &key, Role::Control, presence).await?;
    loop {
        match hear(&mut stream).await? {
            Control::Attached(attached) => {
                return Ok((stream, key, attached.bind.context("no key for binding")?));
            }
            Control::Refused { code, text, .. } => bail!("refused: {code:?}: {text}"),
            _ => {}
        }
    }
}

async fn attach_data(who: &Who, key: &HubKey) -> Result<Stream> {
    let (mut stream, _) = greet(who.site.tls).await?;
    ask(&mut stream, who, key, Role::Data, Vec::new()).await?;
    match hear(&mut stream).await? {
        Control::Attached(_) => Ok(stream),
        other => bail!("no data stream: {other:?}"),
    }
}

async fn ask(stream: &mut Stream, who: &Who, key: &HubKey, role: Role, presence: Vec<u8>) -> Result<()> {
    let exporter = Exporter(stream.exporter);
    let scope = AttachScope { exporter: &exporter, hub: key, network: &who.network, role };
    let (id, signature) = (who.secret.public().id, scope.sign_node(&who.secret));
    let proof = Proof::Node { id, presence, signature };
    say(stream, &Control::Attach(Attach { version: VERSION, network: who.network, role, proof })).await
}

/// Proves the socket's address to the hub.
pub(crate) async fn bind_udp(udp: &UdpSocket, key: &BindKey) -> Result<()> {
    let mut nonce = 0;
    let mut answer = [0; bind::LEN];
    for _ in 0..BINDS {
        let counter = COUNTER.fetch_add(1, Ordering::Relaxed);
        udp.send(&Bind { id: key.id, counter, time: 1, nonce }.encode(&key.key)).await?;
        let Ok(Ok(_)) = timeout(BIND_AGAIN, udp.recv(&mut answer)).await else { continue };
        match Bound::open(&answer, &key.key).map(|bound| bound.verdict) {
            Some(Verdict::Bound) => return Ok(()),
            Some(Verdict::Challenge(challenge)) => nonce = challenge,
            None => {}
        }
    }
    bail!("the hub does not bind")
}

/// A label that no other client has given.
fn fresh_label() -> Label {
    Label::new(LABEL.fetch_add(1, Ordering::Relaxed) & 0xf_ffff, 1)
}

/// Answers the hub, and tells what it says.
async fn live(stream: Stream, client: usize, heard: mpsc::Sender<Heard>, mut orders: mpsc::Receiver<Control>) {
    let Stream { mut sender, mut receiver, .. } = stream;
    loop {
        let answer = tokio::select! {
            message = receiver.recv() => {
                let at = Instant::now();
                let Ok(Some(message)) = message else { return };
                match Control::decode(&message) {
                    Ok(Some(Control::Ping { time })) => Control::Pong { time },
                    Ok(Some(Control::PathOpen(open))) => {
                        Control::PathOpened { request: open.request, label: fresh_label(), via: Vec::new(), rtt_us: 0 }
                    }
                    Ok(Some(message)) => {
                        let _ = heard.try_send(Heard { client, at, message });
                        continue;
                    }
                    Ok(None) => continue,
                    Err(_) => return,
                }
            }
            order = orders.recv() => match order {
                Some(order) => order,
                None => return,
            },
        };
        if sender.send(answer.encode().into()).await.is_err() {
            return;
        }
    }
}

/// Rises over everything that this process says: presences, binds.
static COUNTER: AtomicU64 = AtomicU64::new(1);
static LABEL: AtomicU32 = AtomicU32::new(1);
const EPOCH: u64 = 1_800_000_000;
/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(20);
const BINDS: usize = 40;
const BIND_AGAIN: Duration = Duration::from_millis(250);
