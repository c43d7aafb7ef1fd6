//! The control loop of a running hub: streams, files and the admin port around one [`flatlan_hub::Hub`],
//! and no decision in it.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use flatlan_hub::{
    ForwardConfig, ForwardEvent, Hub, HubConfig, HubEvent, Loopback, Opened, Output, StoreOutcome, StreamId,
    StreamOrigin,
};
use flatlan_os::{
    ExitClass, Why, WorkersError, clock, entropy,
    file::FileError,
    harden,
    route::{Changes, Netlink, RouteError},
    stream::{Acceptor, IdentityError, ListenError, Listener, TlsIdentity},
    udp::{UdpError, UdpOptions, UdpSocket},
    watchdog,
};
use flatlan_relay::{auth::Exporter, steer::owner_byte};
use flatlan_types::{Endpoint, HostPort, NetworkId, Share, WorkerId};
use sd_notify::NotifyState;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
};

use crate::{
    admin::{self, View},
    args::Config,
    packet_loop::{Order, PacketThreads},
    state::{Found, HubState},
    streams::{Accepted, StreamEvent, Streams},
};

/// Why a hub does not run, or no longer.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// The admin port cannot be opened.
    #[error("cannot serve the admin port {at}: {why}: choose another address with --admin")]
    Admin {
        /// Where.
        at: SocketAddr,
        /// Why.
        why: Why,
    },
    /// Some networks and any network at once.
    #[error("config file: allow and allow_any exclude each other: remove one of them")]
    AllowTwice,
    /// The config file is wrong.
    #[error("config file {path}: {why}: `flatlan check {path}`")]
    Config {
        /// Which.
        path: String,
        /// Why.
        why: String,
    },
    /// The hub's key makes no sense.
    #[error(
        "{file} is damaged: restore it from a copy: nodes know this hub by its key; without it make a new hub: `flatlan hub init` in another directory, and `flatlan network hub add` with its key"
    )]
    DamagedKey {
        /// Which.
        file: String,
    },
    /// The state directory cannot be used.
    #[error("{0}")]
    File(FileError),
    /// A certificate without its key, or the reverse.
    #[error("config file: certificate and certificate_key go together: give both, or neither")]
    HalfCertificate,
    /// The certificate cannot be used.
    #[error("{0}")]
    Identity(IdentityError),
    /// Another process has the state directory.
    #[error(
        "state directory {path} is in use by another hub (process {pid}): stop it (`systemctl stop flatlan-hub`, or `kill {pid}`), or give this one another --state DIR"
    )]
    InUse {
        /// The state directory.
        path: String,
        /// The process; zero where it is not known.
        pid: u32,
    },
    /// The TCP port cannot be opened.
    #[error("{0}")]
    Listen(ListenError),
    /// What to log cannot be read.
    #[error("--log {filter}: {why}: use a level such as info or debug")]
    LogFilter {
        /// As given.
        filter: String,
        /// Why.
        why: String,
    },
    /// There is no such directory.
    #[error(
        "state directory {path} does not exist: run `flatlan hub init --state {path}`, or name the right one with --state DIR"
    )]
    Missing {
        /// The state directory.
        path: String,
    },
    /// There is no key.
    #[error("{path} holds no hub key: run `flatlan hub init --state {path}`")]
    NoKey {
        /// The state directory.
        path: String,
    },
    /// No network may be served.
    #[error("no network to serve: give --allow NETWORK_ID (as `flatlan network create` printed it), or --allow-any")]
    NothingAllowed,
    /// The packet thread ended.
    #[error("the packet thread ended: {0}")]
    Packets(String),
    /// A peer hub cannot be read.
    #[error("--peer {text}: give KEY@HOST:PORT, the key as `flatlan hub init` printed it there")]
    Peer {
        /// What was given.
        text: String,
    },
    /// No runtime.
    #[error("cannot start: {0}")]
    Runtime(Why),
    /// The UDP port cannot be opened.
    #[error("{0}")]
    Udp(UdpError),
    /// Not a number of workers.
    #[error("--workers: {0}")]
    Workers(WorkersError),
}

impl HubError {
    /// What it means to whoever started the program.
    pub fn exit_class(&self) -> ExitClass {
        match self {
            Self::Admin { .. } | Self::InUse { .. } | Self::Packets(_) | Self::Runtime(_) => ExitClass::Failed,
            Self::AllowTwice
            | Self::Config { .. }
            | Self::DamagedKey { .. }
            | Self::HalfCertificate
            | Self::LogFilter { .. }
            | Self::Missing { .. }
            | Self::NoKey { .. }
            | Self::NothingAllowed
            | Self::Peer { .. }
            | Self::Workers(_) => ExitClass::Wrong,
            Self::File(error) => error.exit_class(),
            Self::Identity(error) => error.exit_class(),
            Self::Listen(error) => error.exit_class(),
            Self::Udp(error) => error.exit_class(),
        }
    }
}

/// A hub that runs.
pub struct RunningHub {
    hub: Hub,
    state: HubState,
    streams: Streams,
    stream_events: mpsc::Receiver<StreamEvent>,
    packets: PacketThreads,
    forward_events: mpsc::Receiver<(WorkerId, ForwardEvent)>,
    packets_ended: mpsc::Receiver<std::io::Result<()>>,
    questions: mpsc::Receiver<oneshot::Sender<View>>,
    asking: admin::Questions,
    own: Option<OwnAddresses>,
    certificate: Certificate,
    tasks: Vec<JoinHandle<()>>,
}

/// Runs a hub until a signal ends it.
pub(crate) async fn serve(config: Config) -> Result<(), HubError> {
    let limit = harden::raise_open_files(WANTED_FILES);
    if limit < WANTED_FILES {
        tracing::warn!(
            limit,
            wanted = WANTED_FILES,
            "few open files allowed: raise the hard limit (LimitNOFILE) for many nodes"
        );
    }
    let mut hub = RunningHub::start(config).await?;
    let on = |kind| signal(kind).map_err(|error| HubError::Runtime(error.into()));
    let (mut term, mut int, mut hup) =
        (on(SignalKind::terminate())?, on(SignalKind::interrupt())?, on(SignalKind::hangup())?);
    let _ = sd_notify::notify(&[NotifyState::Ready]);
    let certificate = hub.certificate.clone();
    let asking = hub.asking.clone();
    // the control loop asks the packet thread for its part of the answer
    let watchdog = tokio::spawn(watchdog::watch(move || {
        let asking = asking.clone();
        async move { admin::view(&asking).await.is_some() }
    }));
    let ended = hub
        .run(async {
            loop {
                tokio::select! {
                    _ = term.recv() => return,
                    _ = int.recv() => return,
                    // rosters come from their admins; flags and config are read at the start
                    _ = hup.recv() => certificate.reload(),
                }
            }
        })
        .await;
    let _ = sd_notify::notify(&[NotifyState::Stopping]);
    watchdog.abort();
    hub.stop().await;
    ended
}

impl RunningHub {
    async fn start(config: Config) -> Result<Self, HubError> {
        let state = HubState::open(&config.state)?;
        let secret = state.secret()?;
        let key = secret.public();
        let options = UdpOptions { gso: config.udp_gso, ..UdpOptions::default() };
        let udp = UdpSocket::bind_group(config.udp, options, config.workers, owner_byte).map_err(HubError::Udp)?;
        let listener = Listener::bind(config.tls).map_err(HubError::Listen)?;
        let certificate = Certificate::open(config.certificate)?;
        let local = udp.first().map_or(config.udp, UdpSocket::local);
        let mut own = OwnAddresses::open(local);
        let addresses = match &mut own {
            Some(own) => {
                let read = own.read().await;
                own.take(read, clock::now()).unwrap_or_else(|| own.endpoints(Vec::new()))
            }
            None => vec![Endpoint::new(local)],
        };
        let now = clock::now();
        let loopback = if config.tls.ip().is_loopback() { Loopback::Allowed } else { Loopback::Refused };
        let forward = ForwardConfig {
            own: addresses,
            loopback,
            network_quota: config.network_quota,
            seed: entropy::bytes(),
            share: Share::default(),
            quotas: Arc::default(),
        };
        let unix = clock::unix();
        let networks = state.networks(&config.allow)?;
        let hub_config = HubConfig {
            secret,
            allow: config.allow,
            peers: config.peers,
            udp: vec![HostPort::from(Endpoint::new(local))],
            limits: config.limits,
            incarnation: unix.0.saturating_mul(1_000_000),
            seed: entropy::bytes(),
        };
        let (mut stored, mut damaged, mut unreadable) = (Vec::new(), Vec::new(), Vec::new());
        for (network, found) in networks {
            match found {
                Found::CutOff => damaged.push(network),
                Found::Unreadable(error) => unreadable.push((network, error)),
                Found::Whole(network) => stored.push(network),
            }
        }
        let mut hub = Hub::new(hub_config, stored, now, unix);
        for network in damaged {
            set_aside(&state, &mut hub, network, "it was cut off");
        }
        for (network, error) in unreadable {
            withhold(&mut hub, network, &error);
        }
        let (streams, stream_events) = Streams::new();
        let (packets, forward_events, packets_ended) = PacketThreads::spawn(config.workers, &forward, udp, now)
            .map_err(|error| HubError::Packets(error.to_string()))?;
        let mut tasks = vec![streams.listen(listener, certificate.acceptor.subscribe())];
        let (asking, questions) = mpsc::channel(16);
        if let Some(at) = config.admin {
            let listener =
                tokio::net::TcpListener::bind(at).await.map_err(|why| HubError::Admin { at, why: why.into() })?;
            tasks.push(tokio::spawn(admin::serve(listener, asking.clone())));
        }
        tracing::info!(hub = %key, endpoint = %config.tls, "hub serves");
        Ok(Self {
            hub,
            state,
            streams,
            stream_events,
            packets,
            forward_events,
            packets_ended,
            questions,
            asking,
            own,
            certificate,
            tasks,
        })
    }

    /// Serves until `stop` is done; then tells the nodes to leave and gives them a moment.
    async fn run(&mut self, stop: impl Future<Output = ()>) -> Result<(), HubError> {
        tokio::pin!(stop);
        let mut draining: Option<Instant> = None;
        loop {
            self.drain().await;
            let mut deadline = self.hub.poll_timeout();
            if let Some(until) = draining {
                if until <= clock::now() || self.hub.stats().attachments == 0 {
                    return Ok(());
                }
                deadline = deadline.min(until);
            }
            // a flood of messages must not keep a timer waiting
            let now = clock::now();
            if self.hub.poll_timeout() <= now {
                self.hub.set_time(clock::unix(), now);
                self.hub.handle_timeout(now);
                continue;
            }
            tokio::select! {
                () = &mut stop, if draining.is_none() => {
                    self.hub.drain();
                    draining = Some(clock::now() + DRAIN);
                }
                ended = self.packets_ended.recv() => return Err(HubError::Packets(match ended {
                    Some(Ok(())) => "it stopped".to_owned(),
                    Some(Err(error)) => error.to_string(),
                    None => "it is gone".to_owned(),
                })),
                Some(event) = self.stream_events.recv() => self.handle_stream(event).await,
                Some((worker, event)) = self.forward_events.recv() => {
                    self.packets.echo(worker, &event).await;
                    self.hub.handle_forward(event, clock::now());
                }
                Some(question) = self.questions.recv() => { let _ = question.send(self.view().await); }
                addresses = changed(&mut self.own) => self.packets.order(|| Order::SetOwn(addresses.clone())).await,
                () = tokio::time::sleep(clock::until(deadline)) => {}
            }
        }
    }

    async fn stop(self) {
        for task in &self.tasks {
            task.abort();
        }
        self.packets.stop().await;
    }

    async fn handle_stream(&mut self, event: StreamEvent) {
        let now = clock::now();
        match event {
            StreamEvent::Accepted(accepted) => {
                let Accepted { stream, remote, place } = *accepted;
                let opened = Opened { remote, exporter: Exporter(stream.exporter), origin: StreamOrigin::Accepted };
                let id = self.streams.add_stranger(stream, place);
                self.hub.handle_stream_opened(id, opened, now);
            }
            StreamEvent::Dialled { stream, dial, role } => {
                let origin = StreamOrigin::Dialled(dial);
                let opened = Opened { remote: stream.remote, exporter: Exporter(stream.exporter), origin };
                let id = self.streams.add(*stream, role);
                self.hub.handle_stream_opened(id, opened, now);
            }
            StreamEvent::DialFailed { dial } => self.hub.handle_dial_failed(dial, now),
            StreamEvent::Message { stream, bytes } => {
                self.hub.handle_message(stream, &bytes, now);
                if self.streams.is_stranger(stream) && self.hub.knows(stream) {
                    self.streams.admit(stream);
                }
            }
            StreamEvent::Closed { stream } => {
                self.close(stream).await;
                self.hub.handle_stream_closed(stream, now);
            }
            StreamEvent::HandedOver { stream, data } => {
                if let Some(attachment) = self.streams.handed_over(stream) {
                    self.packets.order_holder(stream, Order::OpenStream(stream, attachment, data)).await;
                }
            }
        }
    }

    /// Does what the control machine wants, in order.
    async fn drain(&mut self) {
        // our frames go behind our answer
        let mut bound = Vec::new();
        while let Some(output) = self.hub.poll_output() {
            match output {
                Output::Close { stream } => self.close(stream).await,
                Output::Data { stream, attachment } => {
                    bound.push((stream, attachment));
                    self.packets.order_holder(stream, Order::ExpectStream(stream)).await;
                }
                Output::Dial { dial, at, role } => self.streams.dial(dial, at, role),
                Output::Event(event) => log(&event),
                Output::Forward(command) => self.packets.order(|| Order::Command(command.clone())).await,
                Output::Send { stream, message } => {
                    if !self.streams.send(stream, message.encode()) {
                        self.packets.order_holder(stream, Order::CloseStream(stream)).await;
                        self.hub.handle_stream_closed(stream, clock::now());
                    }
                }
                Output::SetAside { network, reason } => set_aside(&self.state, &mut self.hub, network, &reason),
                Output::Store { token, network, bundle, ratchet } => {
                    let outcome = match self.state.store(&network, &bundle, &ratchet) {
                        Ok(()) => StoreOutcome::Stored,
                        Err(error) => {
                            tracing::error!(reason = %error, "the state directory cannot be written");
                            StoreOutcome::Failed
                        }
                    };
                    self.hub.handle_stored(token, outcome, clock::now());
                }
            }
        }
        for (stream, attachment) in bound {
            self.streams.bind(stream, attachment);
        }
    }

    async fn close(&mut self, stream: StreamId) {
        self.streams.close(stream);
        self.packets.order_holder(stream, Order::CloseStream(stream)).await;
    }

    async fn view(&self) -> View {
        View {
            key: self.hub.key().full(),
            stats: self.hub.stats(),
            networks: self.hub.networks().collect(),
            neighbours: self.hub.neighbours().collect(),
            report: self.packets.report().await.unwrap_or_default(),
        }
    }
}

/// What streams are accepted with.
#[derive(Clone)]
struct Certificate {
    files: Option<(PathBuf, PathBuf)>,
    acceptor: watch::Sender<Arc<Acceptor>>,
}

impl Certificate {
    fn open(files: Option<(PathBuf, PathBuf)>) -> Result<Self, HubError> {
        let identity = match &files {
            Some((chain, key)) => TlsIdentity::from_pem_files(chain, key),
            None => TlsIdentity::self_signed(vec!["flatlan-hub".to_owned()]),
        };
        let acceptor = identity.and_then(Acceptor::new).map_err(HubError::Identity)?;
        Ok(Self { files, acceptor: watch::Sender::new(Arc::new(acceptor)) })
    }

    /// Reads the files again: streams that are there stay, the next ones see what was read.
    fn reload(&self) {
        let Some((chain, key)) = &self.files else {
            return tracing::info!("nothing to load again: flags and config are read at the start");
        };
        match TlsIdentity::from_pem_files(chain, key).and_then(Acceptor::new) {
            Ok(acceptor) => {
                self.acceptor.send_replace(Arc::new(acceptor));
                tracing::info!("certificate loaded");
            }
            Err(error) => tracing::error!(reason = %error, "the certificate is not replaced"),
        }
    }
}

/// The machine's addresses with the hub's UDP port, and when they change.
struct OwnAddresses {
    local: SocketAddr,
    netlink: Netlink,
    changes: Changes,
    /// When to read them: they changed, or could not be read.
    due: Option<Instant>,
}

impl OwnAddresses {
    /// `None` where the socket has one address, or the kernel does not tell.
    fn open(local: SocketAddr) -> Option<Self> {
        if !local.ip().is_unspecified() {
            return None;
        }
        let told = |error: &RouteError| tracing::warn!(reason = %error, "the machine's own addresses are not known");
        let netlink = Netlink::open().inspect_err(told).ok()?;
        let changes = Changes::watch(&[]).inspect_err(told).ok()?;
        Some(Self { local, netlink, changes, due: None })
    }

    async fn read(&self) -> Result<Vec<Endpoint>, RouteError> {
        let hosts = self.netlink.host_addresses().await?;
        Ok(self.endpoints(hosts.into_iter().map(|host| host.ip).collect()))
    }

    fn endpoints(&self, hosts: Vec<IpAddr>) -> Vec<Endpoint> {
        let loopback = [IpAddr::from(Ipv4Addr::LOCALHOST), IpAddr::from(Ipv6Addr::LOCALHOST)];
        let all = hosts.into_iter().chain(loopback).chain([self.local.ip()]);
        all.map(|ip| Endpoint::new(SocketAddr::new(ip, self.local.port()))).collect()
    }

    /// What was read; nothing where that failed: what is known stays, and is read again after a pause.
    fn take(&mut self, read: Result<Vec<Endpoint>, RouteError>, now: Instant) -> Option<Vec<Endpoint>> {
        match read {
            Ok(addresses) => {
                self.due = None;
                Some(addresses)
            }
            Err(error) => {
                tracing::warn!(reason = %error, "the machine's own addresses cannot be read");
                self.due = Some(now + READ_AGAIN);
                None
            }
        }
    }
}

/// Returns with the machine's addresses once they may have changed. Safe to cancel.
async fn changed(own: &mut Option<OwnAddresses>) -> Vec<Endpoint> {
    let Some(own) = own else { return std::future::pending().await };
    loop {
        if let Some(due) = own.due {
            let pause = clock::until(due);
            // other events cancel even the shortest sleep
            if !pause.is_zero() {
                tokio::time::sleep(pause).await;
            }
        } else {
            own.changes.changed().await;
            own.due = Some(clock::now());
        }
        let read = own.read().await;
        if let Some(addresses) = own.take(read, clock::now()) {
            return addresses;
        }
    }
}

/// What is damaged is kept, and a copy of it may be of use; the network's roster comes again from an admin, a
/// hub or a node.
fn set_aside(state: &HubState, hub: &mut Hub, network: NetworkId, reason: &str) {
    match state.set_aside(&network) {
        Ok(file) => {
            let reason = format!("{reason}; kept as {file}");
            tracing::error!(%network, reason, "what was stored of a network is damaged: publish it again");
        }
        Err(error) => {
            hub.withhold(network);
            tracing::error!(
                %network, reason = %error,
                "what was stored of a network is damaged and cannot be set aside: the network is not served"
            );
        }
    }
}

/// What cannot be read may be good: beginning anew would let an older roster in, and overwrite it.
fn withhold(hub: &mut Hub, network: NetworkId, error: &FileError) {
    hub.withhold(network);
    tracing::error!(
        %network, reason = %error,
        "what was stored of a network cannot be read: the network is not served; start the hub again once it can"
    );
}

/// An idle hub says nothing: INFO is for what an operator did or must know.
fn log(event: &HubEvent) {
    match event {
        HubEvent::ClaimRedeemed { network, member } => {
            let member = member.as_ref().map(ToString::to_string).unwrap_or_default();
            tracing::info!(%network, peer = member, "invite redeemed");
        }
        HubEvent::Forked { network } => {
            tracing::error!(%network, "two rosters that exclude each other were published: is the admin key stolen?");
        }
        HubEvent::NeighbourLate { hub } => tracing::debug!(%hub, "neighbouring hub is late"),
        HubEvent::NeighbourDown { hub } => tracing::warn!(%hub, "neighbouring hub is not reachable"),
        HubEvent::NeighbourUp { hub } => tracing::info!(%hub, "neighbouring hub is reachable"),
        HubEvent::NodeAttached { network, member, endpoint } => {
            tracing::info!(%network, peer = %member, %endpoint, "node attached");
        }
        HubEvent::NodeDetached { network, member, reason } => {
            tracing::info!(%network, peer = %member, ?reason, "node detached");
        }
        // anyone may be refused as often as they like: counted, and told to whoever looks for it
        HubEvent::Refused { endpoint, code } => tracing::debug!(%endpoint, reason = ?code, "stream refused"),
        HubEvent::RosterAdopted { network, version } => tracing::info!(%network, %version, "roster adopted"),
        HubEvent::Withheld { network, reason } => {
            tracing::error!(%network, reason, "a network is not served: what is stored of it is of a later version: upgrade");
        }
        HubEvent::StoreFailed { network } => {
            tracing::error!(%network, "the roster is in force, but would not survive a restart");
        }
    }
}

/// How long nodes have to leave a hub that stops.
const DRAIN: Duration = Duration::from_millis(1500);
/// When to read the machine's addresses again, where that failed.
const READ_AGAIN: Duration = Duration::from_secs(2);
/// Open files for which a hub is comfortable: three streams a node.
const WANTED_FILES: u64 = 65_536;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_for_every_address_has_the_machines_addresses_and_one_for_one_has_that() {
        let own = OwnAddresses::open("[::]:51820".parse().unwrap()).unwrap();
        let addresses = own.read().await.unwrap();
        for here in ["127.0.0.1:51820", "[::1]:51820"] {
            assert!(addresses.contains(&Endpoint::new(here.parse().unwrap())), "{addresses:?}");
        }
        let hosts = own.netlink.host_addresses().await.unwrap();
        assert!(hosts.iter().all(|host| addresses.contains(&Endpoint::new(SocketAddr::new(host.ip, 51820)))));
        assert!(OwnAddresses::open("192.0.2.1:51820".parse().unwrap()).is_none());
    }

    #[tokio::test]
    async fn addresses_that_could_not_be_read_replace_none_and_are_read_again_without_a_change() {
        let mut own = OwnAddresses::open("[::]:51820".parse().unwrap()).unwrap();
        let now = clock::now();
        let failed = Err(RouteError::NoLink { name: "eth0".to_owned() });
        assert_eq!(own.take(failed, now), None);
        assert_eq!(own.due, Some(now + READ_AGAIN));
        own.due = Some(now);
        let known = own.read().await.unwrap();
        let mut own = Some(own);
        assert_eq!(changed(&mut own).await, known);
        assert_eq!(own.unwrap().due, None);
    }

    #[test]
    fn a_renewed_certificate_takes_effect_and_a_damaged_one_does_not() {
        let temp = tempfile::tempdir().unwrap();
        let (chain, key) = (temp.path().join("chain.pem"), temp.path().join("key.pem"));
        let renew = || {
            let made = rcgen::generate_simple_self_signed(vec!["hub.example".to_owned()]).unwrap();
            std::fs::write(&chain, made.cert.pem()).unwrap();
            std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
        };
        renew();
        let certificate = Certificate::open(Some((chain.clone(), key.clone()))).unwrap();
        let mut accepting = certificate.acceptor.subscribe();
        renew();
        certificate.reload();
        assert!(accepting.has_changed().unwrap());
        accepting.mark_unchanged();
        std::fs::write(&chain, "junk").unwrap();
        certificate.reload();
        assert!(!accepting.has_changed().unwrap());
    }
}
