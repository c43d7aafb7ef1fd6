//! A node's packet engine, spoken to by a member that holds valid keys and means ill, by the hub, and by strangers:
//! datagrams, batches of them, stream messages, in any order, between commands of the control machine. Nothing may
//! panic, and what reaches the TUN comes from an address of that member's own.

use std::{
    mem::take,
    sync::Arc,
    time::{Duration, Instant},
};

use flatlan_datapath::{
    Command, DropReason, HubUdp, Owner, PeerInfo, PeerKeys, Sink, Snapshot, Transmit, Worker, WorkerConfig,
};
use flatlan_fuzz::{Fuzz, outcome, steps};
use flatlan_packet::{Gro, VNET_LEN};
use flatlan_relay::{
    BindKey, BindSecret,
    frame::{HEADER_LEN, Header, pack},
};
use flatlan_roster::OwnerTable;
use flatlan_types::{BootEpoch, Endpoint, HubSlot, Label, PeerSlot, Prefix, Share, VirtualIp};
use flatlan_wg::{Engine, Plain};

use crate::{network, node};

#[test]
fn worker() {
    let packet = [0x45, 0, 0, 28, 0, 1, 0, 0, 64, 17, 0, 0, 10, 0, 0, 3, 10, 0, 0, 1, 0x9c, 0x40, 0, 53, 0, 8, 0, 0];
    let mut forged = packet;
    forged[15] = 2;
    let meet = vec![COMMAND, 1, 0, SPEAK, 1, 0, WAIT, 1, 50, WAIT, 1, 50];
    let spoken = |packet: &[u8], how: u8| [&meet[..], &[SPEAK, 28], packet, &[how, 0, WAIT, 1, 1]].concat();
    let seeds = [
        meet.clone(),
        spoken(&packet, DIRECT),
        spoken(&packet, BY_HUB),
        spoken(&packet, BY_STREAM),
        spoken(&forged, DIRECT),
        (0..9).flat_map(|n| [COMMAND, 1, n, WAIT, 1, 20]).collect(),
        [&[RAW, 33][..], &[0], &[5; 32]].concat(),
        [&[RAW, 33][..], &[1], &[1; 32]].concat(),
        [&[RAW, 33][..], &[3], &[0, 16], &[3; 30]].concat(),
    ];
    let (mut net, mut served) = (Net::new(), 0);
    Fuzz::new("worker").seeds(seeds).longest(512).run(|input| {
        if served == INPUTS {
            (net, served) = (Net::new(), 0);
        }
        served += 1;
        let what: Vec<u64> = steps(input, 1).map(|(operation, bytes)| net.step(operation, bytes)).take(64).collect();
        outcome(&what.into_iter().take(8).collect::<Vec<_>>())
    });
}

/// Bytes as they are: the first says from where.
const RAW: u8 = 0;
/// The member has a packet to send, whatever its source.
const SPEAK: u8 = 1;
/// What the member sent last arrives changed: directly, from the hub's UDP port, on the hub's stream.
const DIRECT: u8 = 2;
const BY_HUB: u8 = 3;
const BY_STREAM: u8 = 4;
/// Time passes, and what is on its way arrives as it is.
const WAIT: u8 = 5;
const COMMAND: u8 = 6;

struct Net {
    victim: Worker<Engine<Plain>>,
    evil: Worker<Engine<Plain>>,
    now: Instant,
    to_victim: Vec<Vec<u8>>,
    to_evil: Vec<Vec<u8>>,
    /// What the evil member sent last.
    last: Vec<u8>,
}

impl Net {
    fn new() -> Self {
        let now = Instant::now();
        let mut net = Self {
            victim: new_worker(VICTIM),
            evil: new_worker(EVIL),
            now,
            to_victim: Vec::new(),
            to_evil: Vec::new(),
            last: Vec::new(),
        };
        net.victim.set_snapshot(snapshot(VICTIM, true), now);
        net.evil.set_snapshot(snapshot(EVIL, true), now);
        for command in [
            hub(),
            Command::AddInLabel { label: IN, hub: HUB, peer: EVIL },
            Command::SetLabel { peer: EVIL, hub: HUB, label: Some(Label::new(7, 7)) },
        ] {
            net.command(command);
        }
        let at = at(VICTIM);
        net.by_evil(|evil, now, out| {
            evil.handle_command(Command::SetDirect { peer: VICTIM, endpoints: vec![at] }, now, out);
        });
        net
    }

    fn step(&mut self, operation: u8, bytes: &[u8]) -> u64 {
        let before: Vec<u64> = self.victim.stats().drops.iter().map(|(_, count)| count).collect();
        match operation % 7 {
            RAW => {
                let [how, bytes @ ..] = bytes else { return 0 };
                let stride = usize::from(how >> 4).max(1) * 16;
                let from = [at(EVIL), at_hub(), Endpoint::new(([203, 0, 113, 9], 9).into())];
                self.by_victim(|victim, now, out| match from.get(usize::from(how % 4)) {
                    Some(from) => victim.handle_network(*from, bytes, stride, how >> 6, now, out),
                    None => victim.handle_stream(HUB, bytes, now, out),
                });
            }
            SPEAK => {
                let mut frame = [&[0; VNET_LEN], bytes].concat();
                self.by_evil(|evil, now, out| {
                    evil.handle_tun(&mut frame, now, out);
                    evil.flush_outbound(out);
                });
            }
            DIRECT => {
                let datagram = self.changed(bytes);
                self.by_victim(|victim, now, out| {
                    victim.handle_network(at(EVIL), &datagram, datagram.len(), 0, now, out);
                });
            }
            BY_HUB => {
                let framed = labelled(&self.changed(bytes));
                self.by_victim(|victim, now, out| {
                    victim.handle_network(at_hub(), &framed, framed.len(), 0, now, out);
                });
            }
            BY_STREAM => {
                let mut packed = Vec::new();
                let _ = pack(&mut packed, &labelled(&self.changed(bytes)));
                self.by_victim(|victim, now, out| victim.handle_stream(HUB, &packed, now, out));
            }
            WAIT => {
                self.now += Duration::from_millis(10) * u32::from(bytes.first().copied().unwrap_or(1));
                self.by_evil(|evil, now, out| evil.handle_timeout(now, out));
                self.by_victim(|victim, now, out| victim.handle_timeout(now, out));
                for _ in 0..4 {
                    for datagram in take(&mut self.to_victim) {
                        self.by_victim(|victim, now, out| {
                            victim.handle_network(at(EVIL), &datagram, datagram.len(), 0, now, out);
                        });
                    }
                    for datagram in take(&mut self.to_evil) {
                        self.by_evil(|evil, now, out| {
                            evil.handle_network(at(VICTIM), &datagram, datagram.len(), 0, now, out);
                            evil.flush_inbound(now, out);
                        });
                    }
                }
            }
            _ => self.control(bytes.first().copied().unwrap_or(0)),
        }
        let after = self.victim.stats().drops.iter();
        let dropped = after.zip(before).fold(0, |mask, ((_, now), then)| mask << 1 | u64::from(now > then));
        dropped << 8 | u64::from(operation % 7)
    }

    /// Something that the control machine may say at any time.
    fn control(&mut self, which: u8) {
        match which % 10 {
            0 => self.command(Command::SetDirect { peer: EVIL, endpoints: vec![at(EVIL)] }),
            1 => self.command(Command::Connect { peer: EVIL }),
            2 => self.command(Command::SendMessage { peer: EVIL, bytes: vec![7; 40], path: None }),
            3 => self.command(Command::DrainHub { hub: HUB }),
            4 => {
                self.command(Command::RemoveHub { hub: HUB });
                self.command(hub());
                self.command(Command::AddInLabel { label: IN, hub: HUB, peer: EVIL });
            }
            5 => self.command(Command::RemoveInLabel { label: IN }),
            6 => self.command(Command::NetworkChanged),
            7 => self.command(Command::SetPeerEpoch { peer: EVIL, epoch: BootEpoch(1) }),
            // revoked, and back
            8 => self.victim.set_snapshot(snapshot(VICTIM, false), self.now),
            _ => self.victim.set_snapshot(snapshot(VICTIM, true), self.now),
        }
    }

    fn command(&mut self, command: Command) {
        self.by_victim(|victim, now, out| victim.handle_command(command, now, out));
    }

    fn changed(&self, changes: &[u8]) -> Vec<u8> {
        let mut datagram = self.last.clone();
        for change in changes.chunks_exact(3) {
            let at = usize::from(u16::from_be_bytes([change[0], change[1]])) % datagram.len().max(1);
            if let Some(byte) = datagram.get_mut(at) {
                *byte ^= change[2];
            }
        }
        datagram
    }

    fn by_victim(&mut self, call: impl FnOnce(&mut Worker<Engine<Plain>>, Instant, &mut Out)) {
        let mut out = Out::default();
        call(&mut self.victim, self.now, &mut out);
        self.victim.flush_inbound(self.now, &mut out);
        while self.victim.poll_event().is_some() {}
        for packet in &out.tun {
            let packet = &packet[VNET_LEN..];
            let own = match packet[0] >> 4 {
                4 => packet[12..16] == [10, 0, 0, 3],
                _ => packet[8..24] == V6,
            };
            assert!(own, "a packet came from an address that is not the sender's: {packet:02x?}");
        }
        self.to_evil.extend(out.udp.into_iter().filter(|(to, _)| *to == at(EVIL)).map(|(_, datagram)| datagram));
        self.to_evil.truncate(64);
    }

    fn by_evil(&mut self, call: impl FnOnce(&mut Worker<Engine<Plain>>, Instant, &mut Out)) {
        let mut out = Out::default();
        call(&mut self.evil, self.now, &mut out);
        while self.evil.poll_event().is_some() {}
        for (_, datagram) in out.udp {
            self.last.clone_from(&datagram);
            self.to_victim.push(datagram);
        }
        self.to_victim.truncate(64);
    }
}

#[derive(Default)]
struct Out {
    udp: Vec<(Endpoint, Vec<u8>)>,
    tun: Vec<Vec<u8>>,
}

impl Sink for Out {
    fn send_udp(&mut self, transmit: &Transmit<'_>) -> Result<(), DropReason> {
        let datagrams = transmit.contents.chunks(transmit.segment.max(1));
        self.udp.extend(datagrams.map(|datagram| (transmit.to, datagram.to_vec())));
        Ok(())
    }

    fn send_stream(&mut self, _: HubSlot, _: &[u8]) -> Result<(), DropReason> {
        Ok(())
    }

    fn write_tun(&mut self, packet: &mut [u8]) -> Result<(), DropReason> {
        self.tun.push(packet.to_vec());
        Ok(())
    }
}

fn new_worker(me: PeerSlot) -> Worker<Engine<Plain>> {
    let secret = node(me.0 as u8 + 1);
    let engine = Engine::new(&secret, me.0.into());
    let config = WorkerConfig {
        network: network(),
        secret: Arc::new(secret),
        epoch: BootEpoch(1),
        mtu: 1400,
        gro: Gro::ALL,
        class_mask: 0xff,
        spread: flatlan_path::Spread::On,
        seed: me.0.into(),
        share: Share::default(),
    };
    Worker::new(config, engine)
}

/// The victim knows who owns what. The evil member believes that everything is the victim's, and that it may send as
/// anybody.
fn snapshot(me: PeerSlot, whole: bool) -> Arc<Snapshot> {
    let mut owners = Vec::new();
    let mut add = |prefix: &str, owner| owners.push((prefix.parse::<Prefix>().unwrap(), owner));
    if me == VICTIM {
        add("10.0.0.1/32", Owner::Me);
        add("fd00::1/128", Owner::Me);
        add("10.0.0.2/32", Owner::Peer(OTHER));
        add("10.0.0.3/32", Owner::Peer(EVIL));
        add("fd00::3/128", Owner::Peer(EVIL));
    } else {
        add("0.0.0.0/0", Owner::Me);
        add("::/0", Owner::Me);
        add("10.0.0.1/32", Owner::Peer(VICTIM));
        add("fd00::1/128", Owner::Peer(VICTIM));
    }
    let all = [VICTIM, OTHER, EVIL].into_iter().filter(|slot| *slot != me && (whole || *slot != EVIL));
    let peers = all.map(|slot| {
        let keys = PeerKeys::Node(node(slot.0 as u8 + 1).public());
        (slot, PeerInfo { name: format!("n{}", slot.0).parse().unwrap(), keys, psk: None, priority: 0 })
    });
    let own = VirtualIp::new([10, 0, 0, me.0 as u8 + 1].into());
    Arc::new(Snapshot::new(1, &network(), peers, OwnerTable::new(owners), vec![own]))
}

fn hub() -> Command {
    let bind = BindKey { id: 1, key: BindSecret::from_bytes([6; 32]) };
    Command::SetHub { hub: HUB, udp: Some(HubUdp { endpoint: at_hub(), bind }), stream: true }
}

fn labelled(sealed: &[u8]) -> Vec<u8> {
    let mut frame = vec![0; HEADER_LEN];
    frame.extend_from_slice(sealed);
    Header::new(IN).write(&mut frame);
    frame
}

fn at(of: PeerSlot) -> Endpoint {
    Endpoint::new(([192, 0, 2, of.0 as u8 + 1], 51820).into())
}

fn at_hub() -> Endpoint {
    Endpoint::new(([198, 51, 100, 1], 443).into())
}

const VICTIM: PeerSlot = PeerSlot(0);
const OTHER: PeerSlot = PeerSlot(1);
const EVIL: PeerSlot = PeerSlot(2);
const HUB: HubSlot = HubSlot(0);
/// The victim's label for what the hub relays from the evil member.
const IN: Label = Label::new(1000, 2);
const V6: [u8; 16] = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3];
/// Workers are made anew after so many inputs.
const INPUTS: u32 = 256;
