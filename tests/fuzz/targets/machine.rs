//! A hub's control machine, spoken to by strangers, members, admins and hubs, honest or not, in any order.

use std::time::{Duration, Instant};

use flatlan_fuzz::{Fuzz, outcome, steps};
use flatlan_hub::{Allow, Hub, HubConfig, Limits, Opened, Output, StoreOutcome, StoreToken, StreamId, StreamOrigin};
use flatlan_relay::{
    Attach, ByteVec, ClaimsSummary, Control, Echo, Leg, Lsa, LsaEntry, LsaLink, LsaVersion, MAX_MESSAGE, NetworkTag,
    PathOpen, PathReason, Presence, PresenceOrder, PresenceSummary, Proof, Role, SignedLsa, VERSION,
    auth::{AttachScope, Exporter},
};
use flatlan_roster::Claim;
use flatlan_types::{BootEpoch, Endpoint, InviteSecret, Label, NetworkId, UnixTime};

use crate::{hub, node, roster::world};

#[test]
fn hub_machine() {
    let said = Said::new();
    let all = said.messages.len() as u8;
    // an admin publishes, a node attaches and asks for everything; then each message by each kind of stream
    let seeds = [
        vec![OPEN, 0, SAY, 1, 0, SAY, 1, 1, STORED, 1, 0, OPEN, 0, SAY | 1, 1, 2, WAIT, 0],
        vec![OPEN, 0, SAY, 1, 0, SAY, 1, 1, STORED, 1, 0, OPEN, 0, SAY | 1, 1, 4, SAY | 1, 1, 6, STORED, 1, 0],
        [vec![OPEN, 0, SAY, 1, 0, SAY, 1, 1, OPEN, 0, SAY | 1, 1, 2], (6..all).flat_map(|n| [SAY | 1, 1, n]).collect()]
            .concat(),
        [vec![OPEN, 0, SAY, 1, 5], (6..all).flat_map(|n| [SAY, 1, n]).collect()].concat(),
        vec![OPEN, 0, RAW, 3, 0x82, 0x18, 0x1e],
    ];
    Fuzz::new("hub-machine").seeds(seeds).longest(256).run(|input| {
        let mut net = Net::new(&said);
        let mut what = Vec::new();
        for (operation, bytes) in steps(input, 1) {
            what.push(net.step(operation, bytes));
        }
        what.truncate(8);
        outcome(&what)
    });
}

const OPEN: u8 = 0x00;
const SAY: u8 = 0x20;
const RAW: u8 = 0x40;
const CLOSE: u8 = 0x60;
const WAIT: u8 = 0x80;
const STORED: u8 = 0xa0;

struct Net<'a> {
    hub: Hub,
    now: Instant,
    streams: u64,
    stores: Vec<StoreToken>,
    said: &'a Said,
}

impl<'a> Net<'a> {
    fn new(said: &'a Said) -> Self {
        let config = HubConfig {
            secret: hub(1),
            allow: Allow::Networks([said.network].into()),
            peers: Vec::new(),
            udp: vec!["0.0.0.0:51820".parse().unwrap()],
            limits: Limits::default(),
            incarnation: 1,
            seed: [3; 32],
        };
        let now = Instant::now();
        let hub = Hub::new(config, Vec::new(), now, NOW);
        Self { hub, now, streams: 0, stores: Vec::new(), said }
    }

    /// The low bits of the operation choose one of the last streams.
    fn step(&mut self, operation: u8, bytes: &[u8]) -> (u8, usize) {
        let stream = StreamId(self.streams.saturating_sub(u64::from(operation & 3)));
        match operation & 0xe0 {
            OPEN => {
                self.streams += 1;
                let remote = Endpoint::new("198.51.100.1:4000".parse().unwrap());
                let opened = Opened { remote, exporter: Exporter([9; 32]), origin: StreamOrigin::Accepted };
                self.hub.handle_stream_opened(StreamId(self.streams), opened, self.now);
            }
            // a message that is right, with a few bytes changed where the input says so
            SAY => {
                let [which, changes @ ..] = bytes else { return (0, 0) };
                let mut message = self.said.messages[usize::from(*which) % self.said.messages.len()].clone();
                for change in changes.chunks_exact(3) {
                    let at = usize::from(u16::from_be_bytes([change[0], change[1]])) % message.len();
                    message[at] ^= change[2];
                }
                self.hub.handle_message(stream, &message, self.now);
            }
            RAW => self.hub.handle_message(stream, bytes, self.now),
            CLOSE => self.hub.handle_stream_closed(stream, self.now),
            STORED => {
                let Some(token) = self.stores.pop() else { return (0, 1) };
                let outcome = if bytes.first() == Some(&0) { StoreOutcome::Stored } else { StoreOutcome::Failed };
                self.hub.handle_stored(token, outcome, self.now);
            }
            _ => {
                self.now += Duration::from_millis(u64::from(operation & 31) * 100);
                self.hub.handle_timeout(self.now);
            }
        }
        self.drain()
    }

    fn drain(&mut self) -> (u8, usize) {
        let (mut kinds, mut count) = (0, 0);
        while let Some(output) = self.hub.poll_output() {
            count += 1;
            assert!(count < 1000, "one input, outputs without end");
            kinds |= match output {
                Output::Close { .. } => 1,
                Output::Data { .. } => 2,
                Output::Dial { .. } => 4,
                Output::Event(_) | Output::SetAside { .. } => 8,
                Output::Forward(_) => 16,
                Output::Send { message, .. } => {
                    let bytes = message.encode();
                    assert!(bytes.len() <= MAX_MESSAGE);
                    assert_eq!(Control::decode(&bytes).unwrap(), Some(message), "what is said can be read");
                    32
                }
                Output::Store { token, .. } => {
                    self.stores.push(token);
                    64
                }
            };
        }
        (kinds, count)
    }
}

/// What those who hold keys may say.
struct Said {
    network: NetworkId,
    messages: Vec<Vec<u8>>,
}

impl Said {
    fn new() -> Self {
        let (source, admin) = world();
        let network = source.network_id();
        let bundle = source.sign(None, &admin, NOW).unwrap();
        let (a, invite, other) = (node(7), InviteSecret::from_bytes(&[150; 32]), hub(2));
        let key = hub(1).public();
        let exporter = Exporter([9; 32]);
        let scope = |role| AttachScope { exporter: &exporter, hub: &key, network: &network, role };
        let attach = |role, proof| Control::Attach(Attach { version: VERSION, network, role, proof });
        let order = PresenceOrder { epoch: BootEpoch(NOW.0), counter: 3 };
        let presence = Presence::sign(&a, network, key, order).encode();
        let id = a.public().id;
        let by_node = |role, presence| Proof::Node { id, presence, signature: scope(role).sign_node(&a) };
        let by_invite = Proof::Invite { key: invite.public(), signature: scope(Role::Join).sign_invite(&invite) };
        let by_hub = Proof::Hub { key: other.public(), signature: scope(Role::HubControl).sign_hub(&other) };
        let bytes = bundle.encode();
        let (total, head) = (bytes.len() as u32, bundle.signed_head().encode());
        let version = LsaVersion { incarnation: 1, sequence: 2 };
        let lsa = Lsa {
            origin: other.public(),
            version,
            links: vec![LsaLink { to: key, rtt_us: 900 }],
            serves: vec![NetworkTag::of(&network)],
        };
        let lsa = SignedLsa::sign(&other, lsa).bytes().to_vec();
        let label = Label::new(5, 6);
        let open =
            PathOpen { request: 3, network, from: id, to: node(8).public().id, hops: 8, via: vec![], avoid: vec![] };
        let claims = ClaimsSummary { count: 2, hash: [4; 32] };
        let messages = [
            attach(Role::Admin, Proof::Nothing),
            Control::PutRoster { network, total, offset: 0, bytes },
            attach(Role::Control, by_node(Role::Control, presence.clone())),
            attach(Role::Data, by_node(Role::Data, Vec::new())),
            attach(Role::Join, by_invite),
            attach(Role::HubControl, by_hub),
            Control::Redeem { network, claim: Claim::make(&network, &invite, &node(9)).encode() },
            Control::GetRoster { network, offset: 0 },
            Control::Head { network, head, claims },
            Control::GetClaims { network, from: 0 },
            Control::Claims { network, from: 0, total: 1, claims: vec![ByteVec::from(b"claim".to_vec())] },
            Control::Watch { peers: vec![id, node(8).public().id] },
            Control::Unwatch { peers: vec![id] },
            Control::Presence { presence: presence.clone() },
            Control::PathOpen(open),
            Control::PathOpened { request: 0, label, via: vec![key], rtt_us: 900 },
            Control::PathFailed { request: 0, reason: PathReason::NotAttached },
            Control::PathClose { label },
            Control::PathLost { label, reason: PathReason::HubLost },
            Control::LabelUnknown { label },
            Control::PathMoved { label, via: Vec::new() },
            Control::Downlink { leg: Leg::Tls },
            Control::Ping { time: 1 },
            Control::Pong { time: 1 },
            Control::Hello { time: 5, echo: Some(Echo { time: 4, held_us: 100 }) },
            Control::Serves { networks: vec![network] },
            Control::Lsa { lsa },
            Control::LsaDigest { entries: vec![LsaEntry { origin: other.public(), version }] },
            Control::PresenceFlood { network, presences: vec![ByteVec::from(presence)] },
            Control::PresenceGone { network, member: id, hub: other.public(), order },
            Control::PresenceDigest {
                network,
                entries: vec![PresenceSummary { hub: other.public(), count: 1, hash: [6; 16] }],
            },
            Control::PresencePull { network, hub: key },
            Control::Draining,
        ];
        Self { network, messages: messages.iter().map(Control::encode).collect() }
    }
}

const NOW: UnixTime = UnixTime(1_770_000_000);
