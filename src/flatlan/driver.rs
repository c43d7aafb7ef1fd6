//! The control loop of a running node: streams, netlink, files and requests around one
//! [`flatlan_node::Node`], and no decision in it.
//!
//! In order: open and lock the state directory, persist the boot epoch, bind the socket, start the control
//! machine. The machine says what the overlay's interface is to be as soon as it knows a roster; then the
//! TUN is made and the packet threads start. Until then the orders for them wait.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv6Addr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use flatlan_datapath::{Event, Worker, WorkerConfig};
use flatlan_node::{Fatal, Interface, Node, Output, PersistResult, StreamId};
use flatlan_os::{
    ExitClass, clock, entropy,
    file::FileMode,
    route::{Connected, HostAddress, Ipv6, Netlink, RouteError},
    tun::{Offloads, Queues, Tun, TunConfig, TunError},
    udp::{UdpError, UdpOptions, UdpSocket},
};
use flatlan_packet::Gro;
use flatlan_relay::steer::owner_byte;
use flatlan_types::{Endpoint, HostPort, HubSlot, Prefix, Share, Workers};
use flatlan_wg::{Boringtun, Engine};
use ipnetwork::IpNetwork;
use tokio::sync::{mpsc, oneshot};

use crate::{
    config::{Dscp, NodeConfig, TransportChoice},
    control::{self, Request},
    gateway::{Gateway, LanProbe, LanWatch, Surroundings, moved_away, strictly},
    packet_loop::{ECN, PacketLoopError, Unstarted},
    refused::Refused,
    state::{NodeState, SOCKET, StateError},
    status::Status,
    streams::{StreamEvent, Streams},
    underlay::Underlay,
    workers::{PacketThreads, StartError},
};

/// A node that runs. Dropping it does not stop it; [`NodeHandle::stop`] does.
pub struct RunningNode {
    requests: mpsc::Sender<Request>,
    notices: mpsc::Receiver<Notice>,
    ended: tokio::task::JoinHandle<Result<(), NodeError>>,
}

/// What whoever started the node may want to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// Usable for the first time.
    Up {
        /// `NAME 10.77.0.1 fd..::.., 2 hubs`.
        summary: String,
    },
    /// Not usable yet, and why.
    Waiting {
        /// The reason.
        reason: String,
    },
}

/// Why a node does not run, or no longer.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The control socket cannot be made.
    #[error("cannot make the control socket {path}: {why}")]
    Control {
        /// Its path.
        path: String,
        /// Why.
        why: flatlan_os::Why,
    },
    /// This node cannot go on.
    #[error("{0}")]
    Fatal(Fatal),
    /// No network was joined.
    #[error("this node has not joined a network: {state} holds no network: run `flatlan join TOKEN --state {state}`")]
    NotJoined {
        /// The state directory.
        state: String,
    },
    /// The range of the overlay is in use by a network that this machine is in.
    #[error(
        "the overlay's {overlay} overlaps {lan}, which this machine is in by {device}: choose another range with `flatlan network create --range`, or leave that network"
    )]
    Overlap {
        /// Of the overlay.
        overlay: Prefix,
        /// Of the LAN.
        lan: Prefix,
        /// The device.
        device: String,
    },
    /// A packet thread ended.
    #[error("{0}")]
    Packets(String),
    /// A netlink request failed.
    #[error("{0}")]
    Route(RouteError),
    /// The state directory cannot be used.
    #[error("{0}")]
    State(StateError),
    /// The TUN device cannot be made.
    #[error("{0}")]
    Tun(TunError),
    /// The UDP socket cannot be bound.
    #[error("{0}")]
    Udp(UdpError),
}

impl NodeError {
    /// What it means to whoever started the program.
    pub fn exit_class(&self) -> ExitClass {
        match self {
            Self::Control { .. } | Self::Fatal(_) | Self::Packets(_) => ExitClass::Failed,
            Self::NotJoined { .. } | Self::Overlap { .. } => ExitClass::Wrong,
            Self::Route(error) => error.exit_class(),
            Self::State(error) => error.exit_class(),
            Self::Tun(error) => error.exit_class(),
            Self::Udp(error) => error.exit_class(),
        }
    }
}

impl RunningNode {
    /// Starts a node; returns once its state is read, its port bound and its control socket open.
    ///
    /// # Errors
    /// Whatever is wrong before that: see [`NodeError`].
    pub async fn start(config: NodeConfig) -> Result<Self, NodeError> {
        let (requests, requests_rx) = mpsc::channel(16);
        let (notices_tx, notices) = mpsc::channel(16);
        let driver = Box::new(Driver::open(config, requests.clone(), notices_tx).await?);
        let ended = tokio::spawn(driver.run(requests_rx));
        Ok(Self { requests, notices, ended })
    }

    /// The next thing worth saying; `None` once the node has ended.
    pub async fn notice(&mut self) -> Option<Notice> {
        self.notices.recv().await
    }

    /// How things are; `None` once the node has ended.
    pub async fn status(&self) -> Option<Status> {
        self.handle().status().await
    }

    /// A handle by which the node is asked, and told to stop or to look around again.
    pub fn handle(&self) -> NodeHandle {
        NodeHandle { requests: self.requests.clone() }
    }

    /// Waits until the node has ended.
    ///
    /// # Errors
    /// Why it ended, where it was not told to.
    pub async fn ended(self) -> Result<(), NodeError> {
        match self.ended.await {
            Ok(ended) => ended,
            Err(error) => Err(NodeError::Packets(format!("the control loop broke: {error}"))),
        }
    }
}

/// See [`RunningNode::handle`].
#[derive(Clone)]
pub struct NodeHandle {
    requests: mpsc::Sender<Request>,
}

impl NodeHandle {
    /// How things are; `None` once the node has ended.
    pub async fn status(&self) -> Option<Status> {
        let (reply, status) = oneshot::channel();
        self.requests.send(Request::Status(reply)).await.ok()?;
        status.await.ok().map(|status| *status)
    }

    /// Ends the node: what is to be remembered is written, the TUN goes.
    pub async fn stop(&self) {
        let _ = self.requests.send(Request::Stop).await;
    }

    /// The network may have changed: everything is tried again at once.
    pub async fn reload(&self) {
        let _ = self.requests.send(Request::Reload).await;
    }
}

/// A name and what it resolved to.
type Resolved = (HostPort, Vec<Endpoint>);

struct Driver {
    config: NodeConfig,
    state: NodeState,
    node: Node,
    streams: Streams,
    stream_events: mpsc::Receiver<StreamEvent>,
    packets: PacketThreads,
    worker_events: mpsc::Receiver<Event>,
    /// What the packet threads are started with, until they are.
    unstarted: Option<(Vec<Unstarted>, Vec<UdpSocket>, WorkerConfig)>,
    packets_ended: mpsc::Receiver<Result<(), PacketLoopError>>,
    /// The data stream of each hub that has one.
    data_streams: BTreeMap<HubSlot, StreamId>,
    interface: Option<Interface>,
    /// Prefixes that are LANs of this machine: no route leads to them.
    over_lans: BTreeSet<Prefix>,
    /// What this machine does for its site.
    gateway: Gateway,
    /// When to try again what it could not.
    gateway_again: Option<Instant>,
    /// When to look whether it still forwards, where it is to.
    forwards_until: Option<Instant>,
    /// Whether it reaches its site.
    lan: LanWatch,
    lan_probe: LanProbe,
    /// What the kernel refused, and when to try again.
    unset: Option<(Interface, Instant)>,
    netlink: Netlink,
    underlay: Underlay,
    port: u16,
    notices: mpsc::Sender<Notice>,
    up: bool,
    next_waiting: Instant,
    /// Why the last stream ended: what an operator wants to know while nothing works.
    trouble: Option<String>,
    resolver: (mpsc::Sender<Resolved>, mpsc::Receiver<Resolved>),
    control: tokio::task::JoinHandle<()>,
}

impl Driver {
    async fn open(
        config: NodeConfig,
        requests: mpsc::Sender<Request>,
        notices: mpsc::Sender<Notice>,
    ) -> Result<Self, NodeError> {
        let state = NodeState::open(&config.state).map_err(NodeError::State)?;
        let Some(network) = state.network().map_err(NodeError::State)? else {
            return Err(NodeError::NotJoined { state: config.state.display().to_string() });
        };
        let seed = state.seed().map_err(NodeError::State)?;
        Tun::check(&config.tun).map_err(NodeError::Tun)?;
        let read = |file: &str| {
            let bytes = state.dir().read(file).map_err(|e| NodeError::State(StateError::File(e)))?;
            let known = bytes.as_deref().map_or(Ok(()), |bytes| flatlan_node::persist::check(file, bytes));
            known.map(|()| bytes).map_err(|e| NodeError::State(StateError::Later(e)))
        };
        let unix = clock::unix();
        let (epoch, epoch_file) =
            flatlan_node::persist::next_epoch(read(flatlan_node::persist::EPOCH)?.as_deref(), unix);
        state
            .dir()
            .write(flatlan_node::persist::EPOCH, &epoch_file, FileMode::Secret)
            .map_err(|e| NodeError::State(StateError::File(e)))?;
        let options = UdpOptions { gso: config.udp_gso, arrivals: true, ..UdpOptions::default() };
        let any = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), config.port);
        let udp = UdpSocket::bind_group(any, options, config.workers, owner_byte).map_err(NodeError::Udp)?;
        let port = udp.first().map_or(config.port, |udp| udp.local().port());
        let socket = config.state.join(SOCKET);
        let listener = control::bind(&socket)
            .map_err(|why| NodeError::Control { path: socket.display().to_string(), why: why.into() })?;
        state.dir().share_socket(SOCKET, GROUP).map_err(|e| NodeError::State(StateError::File(e)))?;
        let secret = Arc::new(seed.derive());
        let persisted = flatlan_node::Persisted {
            roster: read(flatlan_node::persist::ROSTER)?,
            ratchet: read(flatlan_node::persist::RATCHET)?,
            peers: read(flatlan_node::persist::PEERS)?,
        };
        let now = clock::now();
        let node_config = flatlan_node::NodeConfig {
            network: network.network,
            secret: secret.clone(),
            epoch,
            bootstrap: network.hubs,
            transport: config.transport.into(),
            workers: config.workers,
        };
        let mut node = Node::new(node_config, persisted, entropy::seed(), now, unix);
        let (streams, stream_events) = Streams::new(config.proxy.clone());
        let (packets, unstarted, told) =
            PacketThreads::prepare(config.workers).map_err(|e| NodeError::Packets(e.to_string()))?;
        let worker = WorkerConfig {
            network: network.network,
            secret,
            epoch,
            mtu: usize::from(DEFAULT_MTU),
            gro: Gro::ALL,
            class_mask: class_mask(config.dscp),
            spread: config.spread.into(),
            seed: entropy::seed(),
            share: Share::default(),
        };
        let netlink = Netlink::open().map_err(NodeError::Route)?;
        let underlay = Underlay::watch(&netlink).await.map_err(NodeError::Route)?;
        if config.transport != TransportChoice::Tcp {
            node.handle_host_candidates(candidates(underlay.hosts(), port), now, unix);
        }
        Ok(Self {
            state,
            node,
            streams,
            stream_events,
            packets,
            worker_events: told.events,
            unstarted: Some((unstarted, udp, worker)),
            packets_ended: told.ended,
            data_streams: BTreeMap::new(),
            interface: None,
            over_lans: BTreeSet::new(),
            gateway: Gateway::default(),
            gateway_again: None,
            forwards_until: None,
            lan: LanWatch::default(),
            lan_probe: LanProbe::start(config.lan_probe),
            unset: None,
            netlink,
            underlay,
            port,
            notices,
            up: false,
            next_waiting: now + FIRST_WAITING,
            trouble: None,
            resolver: mpsc::channel(16),
            control: tokio::spawn(control::serve(listener, requests)),
            config,
        })
    }

    async fn run(mut self: Box<Self>, mut requests: mpsc::Receiver<Request>) -> Result<(), NodeError> {
        let ended = self.run_until_stopped(&mut requests).await;
        self.node.handle_shutdown(clock::now());
        // what is to be remembered is written even where the end is an error
        let drained = self.drain().await;
        self.control.abort();
        let _ = std::fs::remove_file(self.config.state.join(SOCKET));
        if let Err(error) = self.gateway.clear(&self.netlink).await {
            tracing::warn!(reason = %error, "routes of addresses that moved stay behind");
        }
        if self.unstarted.is_none() {
            self.packets.stop().await;
        }
        ended.and(drained)
    }

    async fn run_until_stopped(&mut self, requests: &mut mpsc::Receiver<Request>) -> Result<(), NodeError> {
        loop {
            self.drain().await?;
            let waiting = (!self.up).then_some(self.next_waiting);
            let again = self.unset.as_ref().map(|(_, at)| *at);
            let gateway = [self.gateway_again, self.forwards_until];
            let deadline = [self.node.poll_timeout(), waiting, again].into_iter().chain(gateway).flatten().min();
            // a flood of messages must not keep a timer waiting
            if deadline.is_some_and(|deadline| deadline <= clock::now()) {
                self.handle_timeout().await?;
                continue;
            }
            tokio::select! {
                Some(request) = requests.recv() => match request {
                    Request::Stop => return Ok(()),
                    Request::Status(reply) => { let _ = reply.send(Box::new(self.status().await)); }
                    Request::Reload => self.look(Changed::Said).await?,
                },
                Some(event) = self.stream_events.recv() => self.handle_stream(event).await,
                Some((place, found)) = self.resolver.1.recv() => self.node.handle_resolved(&place, &found, clock::now()),
                Some(event) = self.worker_events.recv() => {
                    self.packets.echo(&event).await;
                    self.node.handle_event(event, clock::now(), clock::unix());
                }
                ended = packets_ended(&mut self.packets_ended) => return Err(ended),
                () = self.underlay.changed() => self.look(Changed::Perhaps).await?,
                answered = self.lan_probe.next() => {
                    if self.lan.handle_probe(answered) {
                        self.look_at_lan().await;
                    }
                }
                () = until(deadline) => {}
            }
        }
    }

    async fn handle_timeout(&mut self) -> Result<(), NodeError> {
        let now = clock::now();
        self.node.handle_timeout(now, clock::unix());
        if let Some((interface, _)) = self.unset.take_if(|(_, at)| *at <= now) {
            self.set_interface(interface).await?;
        }
        if self.gateway_again.take_if(|at| *at <= now).is_some() {
            self.set_interface_again().await?;
        }
        if self.forwards_until.take_if(|at| *at <= now).is_some()
            && let Some(interface) = &self.interface
        {
            self.gateway.keep_settings(interface);
            self.forwards_until = Some(now + FORWARDS);
        }
        if !self.up && self.next_waiting <= now {
            self.next_waiting = now + WAITING;
            if let Some(waiting) = self.node.waiting() {
                let reason = match &self.trouble {
                    Some(trouble) => format!("{waiting}: {trouble}"),
                    None => waiting.to_string(),
                };
                let _ = self.notices.try_send(Notice::Waiting { reason });
            }
        }
        Ok(())
    }

    async fn handle_stream(&mut self, event: StreamEvent) {
        let now = clock::now();
        match event {
            StreamEvent::Opened { stream, exporter, remote } => {
                self.node.handle_opened(stream, exporter, self.direct_remote(remote), now)
            }
            StreamEvent::Message { stream, bytes } => self.node.handle_message(stream, &bytes, now, clock::unix()),
            StreamEvent::Closed { stream, reason } => {
                self.close(stream).await;
                tracing::debug!(%reason, "stream to a hub ended");
                self.trouble = Some(reason);
                self.node.handle_closed(stream, now, clock::unix());
            }
            StreamEvent::HandedOver { stream, data } => {
                if let Some(hub) = self.streams.bound(stream) {
                    self.packets.open_stream(hub, data).await;
                }
            }
        }
    }

    async fn close(&mut self, stream: StreamId) {
        self.streams.close(stream);
        let hub = self.data_streams.iter().find(|(_, of)| **of == stream).map(|(hub, _)| *hub);
        if let Some(hub) = hub {
            self.data_streams.remove(&hub);
            self.packets.close_stream(hub).await;
        }
    }

    /// Does what the control machine wants, in order.
    async fn drain(&mut self) -> Result<(), NodeError> {
        while let Some(output) = self.node.poll_output() {
            let now = clock::now();
            match output {
                Output::Dial { stream, target, role, hub: _ } => self.streams.dial(stream, target, role),
                Output::Send { stream, bytes } => {
                    if let Err(reason) = self.streams.send(stream, bytes) {
                        self.trouble = Some(reason.to_owned());
                        self.node.handle_closed(stream, now, clock::unix());
                    }
                }
                Output::Close { stream } => {
                    self.close(stream).await;
                }
                Output::BindData { stream, hub } => {
                    if self.streams.bind(stream, hub) {
                        self.data_streams.insert(hub, stream);
                        self.packets.expect_stream(hub).await;
                    }
                }
                Output::Worker(command) => self.packets.command(command).await,
                Output::Snapshot(snapshot) => self.packets.snapshot(snapshot).await,
                Output::Interface(interface) => self.set_interface(interface).await?,
                Output::Resolve { place } => {
                    let answers = self.resolver.0.clone();
                    tokio::spawn(async move {
                        let found = flatlan_os::resolve::resolve(&place, RESOLVE).await.unwrap_or_default();
                        let _ = answers.send((place, found)).await;
                    });
                }
                Output::Persist { file, bytes, token } => {
                    let written = self.state.dir().write(&file, &bytes, FileMode::Secret);
                    if let Err(error) = &written {
                        tracing::error!(reason = %error, "the state directory cannot be written");
                    }
                    if let Some(token) = token {
                        let result = if written.is_ok() { PersistResult::Written } else { PersistResult::Failed };
                        self.node.handle_persisted(token, result, now, clock::unix());
                    }
                }
                Output::Up { hubs } => self.tell_up(hubs).await,
                Output::Fatal(fatal) => return Err(NodeError::Fatal(fatal)),
            }
        }
        Ok(())
    }

    /// Where the hub itself is; behind a proxy that is not to be seen.
    fn direct_remote(&self, remote: Endpoint) -> Option<Endpoint> {
        self.config.proxy.is_none().then_some(remote)
    }

    async fn set_interface(&mut self, interface: Interface) -> Result<(), NodeError> {
        // what could not be set before is overtaken
        self.unset = None;
        let first = self.unstarted.is_some();
        if first {
            self.start_packets(&interface).await?;
        }
        let mtu = self.interface.as_ref().map(|now| now.mtu).filter(|now| *now != interface.mtu);
        if let Some(now) = mtu {
            tracing::warn!(
                bytes = interface.mtu,
                was = now,
                "the network's MTU changed: it holds from this node's next start"
            );
        }
        match self.configure(&interface).await {
            Ok(()) => {
                self.forwards_until = (!interface.served.is_empty()).then(|| clock::now() + FORWARDS);
                self.interface = Some(interface);
            }
            Err(error) if first => return Err(NodeError::Route(error)),
            // what runs goes on running
            Err(error) => {
                tracing::error!(reason = %error, "the overlay's addresses and routes are not as the roster says");
                self.unset = Some((interface, clock::now() + SET_AGAIN));
            }
        }
        self.look_at_lan().await;
        Ok(())
    }

    /// Tells the control machine which of this node's own prefixes the machine reaches.
    async fn look_at_lan(&mut self) {
        let Some(interface) = &self.interface else { return };
        let lost = match (self.netlink.connected(&[]).await, self.netlink.links().await) {
            (Ok(mut lans), Ok(links)) => {
                lans.retain(|lan| lan.device != self.config.tun);
                self.lan.lost(interface, &lans, &links, self.config.lan.as_deref())
            }
            (Err(error), _) | (_, Err(error)) => {
                tracing::warn!(reason = %error, "whether this machine reaches its LAN cannot be told");
                return;
            }
        };
        self.node.handle_lan(lost, clock::now());
    }

    /// Makes the TUN and starts the packet threads.
    async fn start_packets(&mut self, interface: &Interface) -> Result<(), NodeError> {
        self.refuse_overlap(interface).await?;
        let Some((unstarted, udp, mut config)) = self.unstarted.take() else { return Ok(()) };
        let tun = TunConfig {
            name: self.config.tun.clone(),
            mtu: u32::from(interface.mtu),
            backend: self.config.tun_backend,
            offload: self.config.tun_offload,
            queues: if self.config.workers == Workers::ONE { Queues::One } else { Queues::Many },
            addresses: addresses(interface),
        };
        // making a device waits for the kernel
        let tun = tokio::task::spawn_blocking(move || Tun::create(&tun))
            .await
            .map_err(|e| NodeError::Packets(e.to_string()))?
            .map_err(NodeError::Tun)?;
        config.mtu = usize::from(interface.mtu);
        config.gro = gro(tun.offloads());
        let refused = Refused::new(self.config.tun_offload, config.gro);
        let started = self.packets.start(unstarted, udp, (tun, refused), |share| {
            let config = WorkerConfig { seed: entropy::seed(), share, ..config.clone() };
            let engine = Engine::<Boringtun>::shared(&config.secret, config.seed, share);
            Worker::new(config, engine)
        });
        started.map_err(|error| match error {
            StartError::Thread(error) => NodeError::Packets(error.to_string()),
            StartError::Tun(error) => NodeError::Tun(error),
        })
    }

    /// Gives the TUN the addresses and routes that it is to have.
    async fn configure(&mut self, interface: &Interface) -> Result<(), RouteError> {
        let link = self.netlink.link(&self.config.tun).await?;
        if self.netlink.set_addresses(link, &addresses(interface)).await? == Ipv6::Disabled {
            tracing::warn!("IPv6 is switched off on this machine: it has its virtual IPv4 address only");
        }
        let lans = self.netlink.connected(&[link]).await?;
        let mut routes = BTreeMap::new();
        for prefix in interface.routes.iter().copied() {
            // a part of an own LAN that moved away is elsewhere
            let ours = |lan: &&Connected| {
                prefix.lies_in(lan.prefix) && !(moved_away(prefix, interface) && strictly(prefix, lan.prefix))
            };
            if let Some(lan) = lans.iter().find(|lan| ours(lan) && !is_overlay(prefix, interface)) {
                if self.over_lans.insert(prefix) {
                    let reason = format_args!("{} is the LAN of {}", lan.prefix, lan.device);
                    tracing::warn!(vip = %prefix, %reason, "no route into the overlay over an own LAN");
                }
                continue;
            }
            self.over_lans.remove(&prefix);
            let source = interface.ips.iter().map(|ip| ip.ip()).find(|ip| ip.is_ipv4() == prefix.ip().is_ipv4());
            routes.insert(prefix, source);
        }
        self.netlink.set_routes(link, &routes).await?;
        let led = routes.into_keys().collect();
        let around = Surroundings { lans: &lans, lan: self.config.lan.as_deref(), led: &led };
        // the overlay works without it
        if let Err(error) = self.gateway.set(interface, around, &self.netlink).await {
            tracing::warn!(reason = %error, "what moved is not where it should be");
            self.gateway_again = Some(clock::now() + SET_AGAIN);
        }
        Ok(())
    }

    async fn refuse_overlap(&self, interface: &Interface) -> Result<(), NodeError> {
        for lan in self.netlink.connected(&[]).await.map_err(NodeError::Route)? {
            // a device of our own name is no LAN: making ours tells who has the name
            if lan.prefix.overlaps(interface.range) && lan.device != self.config.tun {
                return Err(NodeError::Overlap { overlay: interface.range, lan: lan.prefix, device: lan.device });
            }
        }
        Ok(())
    }

    /// Looks at the machine's network, and starts over with every path where it is another one.
    async fn look(&mut self, changed: Changed) -> Result<(), NodeError> {
        // what could not be set yet is newer than what is set
        self.set_interface_again().await?;
        let differs = match self.underlay.look(&self.netlink).await {
            Ok(differs) => differs,
            Err(error) => {
                tracing::warn!(reason = %error, "what changed in this machine's network cannot be read");
                true
            }
        };
        if !differs && changed == Changed::Perhaps {
            return Ok(());
        }
        let (now, unix) = (clock::now(), clock::unix());
        let started_over = self.config.transport != TransportChoice::Tcp
            && self.node.handle_host_candidates(candidates(self.underlay.hosts(), self.port), now, unix);
        if !started_over {
            self.node.handle_network_changed(now, unix);
        }
        Ok(())
    }

    /// Whatever somebody else changed is as it should be again.
    async fn set_interface_again(&mut self) -> Result<(), NodeError> {
        // what could not be set yet is newer than what is set
        let wanted = self.unset.as_ref().map(|(interface, _)| interface).or(self.interface.as_ref());
        if let Some(interface) = wanted.cloned() {
            self.set_interface(interface).await?;
        }
        Ok(())
    }

    async fn tell_up(&mut self, hubs: usize) {
        self.up = true;
        let Some(interface) = &self.interface else { return };
        let ips: Vec<String> = interface.ips.iter().map(ToString::to_string).collect();
        let hubs = match hubs {
            1 => "1 hub".to_owned(),
            hubs => format!("{hubs} hubs"),
        };
        let summary = format!("{} {}, {hubs}", interface.name, ips.join(" "));
        let _ = self.notices.send(Notice::Up { summary }).await;
    }

    async fn status(&self) -> Status {
        let report = if self.unstarted.is_some() { None } else { self.packets.report().await };
        Status::new(&self.node.status(), &report.unwrap_or_default(), &self.config.tun, self.port)
    }
}

fn addresses(interface: &Interface) -> Vec<IpNetwork> {
    interface.ips.iter().map(|ip| IpNetwork::from(ip.ip())).collect()
}

/// Whether a prefix is the overlay's own: it stays so, whatever LAN claims to hold it.
fn is_overlay(prefix: Prefix, interface: &Interface) -> bool {
    prefix.lies_in(interface.range) || interface.ips.iter().any(|ip| prefix.contains(ip.ip()))
}

fn candidates(hosts: &[HostAddress], port: u16) -> Vec<Endpoint> {
    hosts.iter().map(|host| Endpoint::new(SocketAddr::new(host.ip, port))).collect()
}

/// What of a packet's traffic class its datagram has.
fn class_mask(dscp: Dscp) -> u8 {
    match dscp {
        Dscp::Copy => 0xff,
        Dscp::Zero => ECN,
    }
}

fn gro(offloads: Offloads) -> Gro {
    let of = |on: bool| if on { flatlan_packet::Offload::On } else { flatlan_packet::Offload::Off };
    Gro { tcp: of(offloads.tcp), udp: of(offloads.udp) }
}

async fn packets_ended(ended: &mut mpsc::Receiver<Result<(), PacketLoopError>>) -> NodeError {
    match ended.recv().await {
        Some(Ok(())) => NodeError::Packets("a packet thread stopped".to_owned()),
        Some(Err(error)) => NodeError::Packets(error.to_string()),
        None => NodeError::Packets("a packet thread is gone".to_owned()),
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep(clock::until(deadline)).await,
        None => std::future::pending().await,
    }
}

/// Whether the machine's network is another one.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Changed {
    /// The kernel's tables changed.
    Perhaps,
    /// An operator says so.
    Said,
}

/// The overlay's MTU until the roster says otherwise.
const DEFAULT_MTU: u16 = 1400;
/// Whose members may ask a running node.
const GROUP: &str = "flatlan";
/// The first word on why a node is not up yet, and the pause between the others.
const FIRST_WAITING: Duration = Duration::from_secs(2);
/// When addresses and routes that the kernel refused are tried again.
const SET_AGAIN: Duration = Duration::from_secs(5);
/// How long it may go unnoticed that somebody switched forwarding off: the kernel tells nobody.
const FORWARDS: Duration = Duration::from_secs(2);
const WAITING: Duration = Duration::from_secs(10);
/// How long a name may take to resolve.
const RESOLVE: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests;
