use std::collections::BTreeMap;

use flatlan_relay::{MAX_HOPS, bind::LEN, frame::pack};
use proptest::prelude::*;

use super::*;

#[test]
fn a_batch_is_cut_into_runs_of_equal_label_and_rewritten_in_place() {
    let mut net = Net::new();
    let (a, b) = (net.bound_node(1, "192.0.2.1:1000"), net.bound_node(2, "192.0.2.2:2000"));
    net.label(Label::new(1, 1), a, b, Label::new(7, 7));
    net.label(Label::new(2, 1), a, b, Label::new(8, 8));
    let batch = [frame(1, 1, b"aaaa"), frame(1, 1, b"bbbb"), frame(2, 1, b"cccc"), frame(2, 1, b"d")].concat();
    net.udp("192.0.2.1:1000", batch, 12, TrafficClass(0xba));
    let sent = net.sent();
    assert_eq!(sent.len(), 2);
    assert_eq!(sent[0].to, To::Udp(at("192.0.2.2:2000")));
    assert_eq!((sent[0].stride, sent[0].class), (12, TrafficClass(0xba)));
    let header = |label| Header { hops: MAX_HOPS - 1, label }.to_bytes();
    let seven = header(Label::new(7, 7));
    let eight = header(Label::new(8, 8));
    assert_eq!(sent[0].batch, [&seven[..], b"aaaa", &seven, b"bbbb"].concat());
    assert_eq!(sent[1].batch, [&eight[..], b"cccc", &eight, b"d"].concat());
    assert_eq!(net.forwarder.stats().forwarded, Carried { packets: 4, bytes: 45 });
}

#[test]
fn a_frame_that_was_not_sent_after_all_counts_as_dropped_and_not_as_forwarded() {
    let mut net = Net::new();
    let (a, b) = (net.bound_node(1, "192.0.2.1:1000"), net.bound_node(2, "192.0.2.2:2000"));
    net.label(Label::new(1, 1), a, b, Label::new(7, 7));
    let batch = || [frame(1, 1, b"aaaa"), frame(1, 1, b"bbbb")].concat();
    net.udp("192.0.2.1:1000", batch(), 12, TrafficClass(0));
    net.sink.1 = Carried { packets: 1, bytes: 12 };
    net.udp("192.0.2.1:1000", batch(), 12, TrafficClass(0));
    assert_eq!(net.forwarder.stats().forwarded, Carried { packets: 3, bytes: 36 });
    assert_eq!(net.dropped(ForwardDrop::SocketFull), 1);
    // nor does the answer to a BIND
    net.sent();
    net.bind(a, "192.0.2.1:1000", 99, 0);
    assert_eq!(net.forwarder.stats().forwarded, Carried { packets: 3, bytes: 36 });
    assert_eq!(net.dropped(ForwardDrop::SocketFull), 2);
}

/// The first worker and the second; what one learns for the other is told.
struct Pair(Net, Net);

impl Pair {
    fn new() -> Self {
        let of = Workers::new(2).unwrap();
        Self(Net::of(Share { worker: WorkerId(0), of }), Net::of(Share { worker: WorkerId(1), of }))
    }

    fn label(&mut self, label: Label, upstream: AttachmentId, downstream: AttachmentId) {
        self.0.label(label, upstream, downstream, Label::new(7, 7));
        self.1.label(label, upstream, downstream, Label::new(7, 7));
    }

    /// A node that binds at the first worker.
    fn bound_node(&mut self, n: u32, place: &str) -> AttachmentId {
        let attachment = self.0.node(n);
        self.1.node(n);
        let Verdict::Challenge(nonce) = self.0.bind(attachment, place, 1, 0).verdict else { panic!() };
        self.0.bind(attachment, place, 2, nonce);
        self.talk();
        attachment
    }

    /// Time passes, and all is told.
    fn pass(&mut self, seconds: u64) -> Vec<(usize, ForwardEvent)> {
        let mut told = Vec::new();
        for _ in 0..seconds * 10 {
            for net in [&mut self.0, &mut self.1] {
                net.now += Duration::from_millis(100);
                net.timeouts();
            }
            told.extend(self.talk());
        }
        told
    }

    fn talk(&mut self) -> Vec<(usize, ForwardEvent)> {
        let (first, second) = (self.0.events(), self.1.events());
        first.iter().filter_map(ForwardEvent::echo).for_each(|command| self.1.apply(command));
        second.iter().filter_map(ForwardEvent::echo).for_each(|command| self.0.apply(command));
        first.into_iter().map(|event| (0, event)).chain(second.into_iter().map(|event| (1, event))).collect()
    }
}

#[test]
fn each_worker_forwards_to_endpoints_that_the_first_has_proven() {
    let mut pair = Pair::new();
    let (a, b) = (pair.bound_node(1, "192.0.2.1:1000"), pair.bound_node(2, "192.0.2.2:2000"));
    pair.label(Label::new(1, 1), a, b);
    for net in [&mut pair.0, &mut pair.1] {
        net.udp("192.0.2.1:1000", frame(1, 1, b"x"), 0, TrafficClass(0));
        assert_eq!(net.sent()[0].to, To::Udp(at("192.0.2.2:2000")));
    }
    // it moves: from there the second takes no frame before the first has proof
    pair.1.udp("192.0.2.9:9", frame(1, 1, b"x"), 0, TrafficClass(0));
    assert!(pair.1.sent().is_empty());
    let Verdict::Challenge(nonce) = pair.0.bind(a, "192.0.2.9:9", 3, 0).verdict else { panic!() };
    pair.0.bind(a, "192.0.2.9:9", 4, nonce);
    pair.talk();
    pair.1.udp("192.0.2.9:9", frame(1, 1, b"x"), 0, TrafficClass(0));
    assert_eq!(pair.1.sent().len(), 1);
}

#[test]
fn a_bind_that_comes_to_another_worker_is_told_and_not_answered() {
    let mut pair = Pair::new();
    let a = pair.bound_node(1, "192.0.2.1:1000");
    let bind = Bind { id: a.0, counter: 9, time: 77, nonce: 0 }.encode(&key(a));
    pair.1.udp("192.0.2.1:1000", bind.to_vec(), 0, TrafficClass(0));
    assert!(pair.1.sent().is_empty());
    assert_eq!(pair.talk(), [(1, ForwardEvent::BindAstray { from: at("192.0.2.1:1000"), frame: bind })]);
}

#[test]
fn only_the_worker_that_a_label_names_frees_it_and_not_while_another_forwards_its_frames() {
    let mut pair = Pair::new();
    let (a, b) = (pair.bound_node(1, "192.0.2.1:1000"), pair.bound_node(2, "192.0.2.2:2000"));
    let label = Label::new(1, 1);
    pair.label(label, a, b);
    for n in 0..20 {
        // all of it behind frames of another label, which the first worker has
        pair.0.udp("192.0.2.1:1000", frame(1, 1, b"x"), 0, TrafficClass(0));
        // both nodes go on binding
        for (node, place) in [(a, "192.0.2.1:1000"), (b, "192.0.2.2:2000")] {
            pair.0.sent();
            pair.0.bind(node, place, 10 + n, 0);
        }
        let told = pair.pass(5);
        assert!(told.iter().all(|(_, event)| !matches!(event, ForwardEvent::LabelIdle { .. })), "{told:?}");
    }
    let told = pair.pass(80);
    let idle: Vec<_> = told.iter().filter(|(_, event)| matches!(event, ForwardEvent::LabelIdle { .. })).collect();
    assert_eq!(idle, [&(1, ForwardEvent::LabelIdle { label })]);
}

#[test]
fn the_first_worker_hears_where_many_frames_of_a_hub_cross_another_and_not_of_what_idle_nodes_say() {
    let mut pair = Pair::new();
    let (a, hub) = (pair.bound_node(1, "192.0.2.1:1000"), AttachmentId(Label::new(4, 4).0));
    for net in [&mut pair.0, &mut pair.1] {
        net.add(hub, AttachmentKind::Hub, Quota::default());
        net.apply(ForwardCommand::SetStream { attachment: hub, stream: Some(StreamId(1)) });
    }
    pair.label(Label::new(1, 1), a, hub);
    let used = |told: &[(usize, ForwardEvent)]| told.contains(&(1, ForwardEvent::HubUsed { attachment: hub }));
    let carries = |net: &Net| net.forwarder.attachments.get(hub.0).is_some_and(|state| state.carries(net.now));
    for _ in 0..30 {
        pair.1.udp("192.0.2.1:1000", frame(1, 1, b"x"), 0, TrafficClass(0));
        assert!(!used(&pair.pass(1)) && !carries(&pair.0));
    }
    let many = (0..MANY).flat_map(|_| frame(1, 1, b"x")).collect::<Vec<_>>();
    pair.1.udp("192.0.2.1:1000", many, 9, TrafficClass(0));
    assert!(used(&pair.talk()) && carries(&pair.0));
    pair.pass(CARRYING.as_secs());
    assert!(!carries(&pair.0));
}

#[test]
fn a_frame_from_anyone_but_the_labels_upstream_is_dropped() {
    let mut net = Net::new();
    let (a, b) = (net.bound_node(1, "192.0.2.1:1000"), net.bound_node(2, "192.0.2.2:2000"));
    net.bound_node(3, "192.0.2.3:3000");
    net.label(Label::new(1, 1), a, b, Label::new(7, 7));
    net.udp("192.0.2.3:3000", frame(1, 1, b"x"), 0, TrafficClass(0));
    net.udp("203.0.113.9:9", frame(1, 1, b"x"), 0, TrafficClass(0));
    assert!(net.sent().is_empty());
    assert_eq!(net.dropped(ForwardDrop::NotUpstream), 2);
}

#[test]
fn an_unknown_label_is_counted_and_told_to_its_sender_now_and_then() {
    let mut net = Net::new();
    let a = net.bound_node(1, "192.0.2.1:1000");
    for _ in 0..10 {
        net.udp("192.0.2.1:1000", frame(9, 9, b"x"), 0, TrafficClass(0));
    }
    assert_eq!(net.dropped(ForwardDrop::LabelUnknown), 10);
    assert_eq!(net.events(), [ForwardEvent::LabelUnknown { attachment: a, label: Label::new(9, 9) }]);
}

#[test]
fn a_freed_label_is_not_the_one_that_took_its_slot() {
    let mut net = Net::new();
    let (a, b) = (net.bound_node(1, "192.0.2.1:1000"), net.bound_node(2, "192.0.2.2:2000"));
    net.label(Label::new(1, 1), a, b, Label::new(7, 7));
    net.apply(ForwardCommand::RemoveLabel { label: Label::new(1, 1) });
    net.label(Label::new(1, 2), a, b, Label::new(7, 7));
    net.udp("192.0.2.1:1000", frame(1, 1, b"x"), 0, TrafficClass(0));
    assert!(net.sent().is_empty());
    net.udp("192.0.2.1:1000", frame(1, 2, b"x"), 0, TrafficClass(0));
    assert_eq!(net.sent().len(), 1);
}

#[test]
fn a_frame_that_crossed_as_many_hubs_as_it_may_is_dropped() {
    let mut net = Net::new();
    let (a, b) = (net.bound_node(1, "192.0.2.1:1000"), net.bound_node(2, "192.0.2.2:2000"));
    net.label(Label::new(1, 1), a, b, Label::new(7, 7));
    let header = Header { hops: 0, label: Label::new(1, 1) };
    net.udp("192.0.2.1:1000", [&header.to_bytes()[..], b"x"].concat(), 0, TrafficClass(0));
    assert_eq!(net.dropped(ForwardDrop::HopLimit), 1);
}

#[test]
fn a_label_never_leads_back_to_where_it_came_from() {
    let mut net = Net::new();
    let (a, b) = (net.bound_node(1, "192.0.2.1:1000"), net.bound_node(2, "192.0.2.2:2000"));
    net.label(Label::new(1, 1), a, a, Label::new(7, 7));
    net.label(Label::new(2, 1), a, b, Label::new(7, 7));
    net.apply(ForwardCommand::RedirectLabel { label: Label::new(2, 1), downstream: a, out: Label::new(9, 9) });
    net.udp("192.0.2.1:1000", frame(1, 1, b"x"), 0, TrafficClass(0));
    net.udp("192.0.2.1:1000", frame(2, 1, b"x"), 0, TrafficClass(0));
    let sent = net.sent();
    assert_eq!(sent.len(), 1);
    assert_eq!(sent[0].to, To::Udp(at("192.0.2.2:2000")));
}

#[test]
fn one_bind_after_a_nat_change_moves_all_labels_once_the_new_address_has_answered() {
    let mut net = Net::new();
    let (a, b) = (net.bound_node(1, "192.0.2.1:1000"), net.bound_node(2, "192.0.2.2:2000"));
    net.label(Label::new(1, 1), a, b, Label::new(7, 7));
    let bound = net.bind(b, "198.51.100.9:5", 10, 0);
    let Verdict::Challenge(nonce) = bound.verdict else { panic!("{bound:?}") };
    net.udp("192.0.2.1:1000", frame(1, 1, b"x"), 0, TrafficClass(0));
    assert_eq!(net.sent()[0].to, To::Udp(at("192.0.2.2:2000")));
    let bound = net.bind(b, "198.51.100.9:5", 11, nonce);
    assert_eq!(bound.verdict, Verdict::Bound);
    assert_eq!(bound.reflexive, at("198.51.100.9:5"));
    net.udp("192.0.2.1:1000", frame(1, 1, b"x"), 0, TrafficClass(0));
    assert_eq!(net.sent()[0].to, To::Udp(at("198.51.100.9:5")));
}

#[test]
fn an_address_that_turns_out_to_be_the_hubs_own_gets_nothing_more() {
    let mut net = Net::new();
    let (a, b) = (net.bound_node(1, "192.0.2.1:1000"), net.bound_node(2, "192.0.2.2:2000"));
    net.label(Label::new(1, 1), a, b, Label::new(7, 7));
    net.forwarder.set_own(vec![at("192.0.2.2:2000")], net.now);
    assert_eq!(net.events(), [ForwardEvent::Unbound { attachment: b }]);
    net.udp("192.0.2.1:1000", frame(1, 1, b"x"), 0, TrafficClass(0));
    let bind = Bind { id: b.0, counter: 90, time: 0, nonce: 0 }.encode(&key(b));
    net.udp("192.0.2.2:2000", bind.to_vec(), 0, TrafficClass(0));
    assert!(net.sent().is_empty());
    assert_eq!((net.dropped(ForwardDrop::NoLeg), net.dropped(ForwardDrop::BindAddress)), (1, 1));
}

#[test]
fn a_replayed_bind_from_another_address_moves_nothing() {
    let mut net = Net::new();
    let a = net.bound_node(1, "192.0.2.1:1000");
    let frame = Bind { id: a.0, counter: 10, time: 0, nonce: 0 }.encode(&key(a));
    net.udp("192.0.2.1:1000", frame.to_vec(), 0, TrafficClass(0));
    assert_eq!(net.sent().len(), 1);
    net.udp("203.0.113.9:9", frame.to_vec(), 0, TrafficClass(0));
    assert!(net.sent().is_empty());
    assert_eq!(net.dropped(ForwardDrop::BindReplayed), 1);
    assert_eq!(net.forwarder.endpoint(a), Some(at("192.0.2.1:1000")));
}

#[test]
fn a_challenge_is_worth_nothing_at_another_address_or_for_another_attachment() {
    let mut net = Net::new();
    let (a, b) = (net.bound_node(1, "192.0.2.1:1000"), net.bound_node(2, "192.0.2.2:2000"));
    let Verdict::Challenge(nonce) = net.bind(a, "198.51.100.9:5", 10, 0).verdict else { panic!() };
    assert!(matches!(net.bind(a, "203.0.113.9:9", 11, nonce).verdict, Verdict::Challenge(_)));
    assert!(matches!(net.bind(b, "198.51.100.9:5", 11, nonce).verdict, Verdict::Challenge(_)));
}

#[test]
fn a_bind_from_port_zero_loopback_multicast_or_the_hub_itself_is_not_answered() {
    let mut net = Net::new();
    let a = net.bound_node(1, "192.0.2.1:1000");
    for (n, from) in ["192.0.2.9:0", "127.0.0.1:5", "224.0.0.1:5", "[::]:5", "192.0.2.100:51820"].iter().enumerate() {
        let frame = Bind { id: a.0, counter: 10 + n as u64, time: 0, nonce: 0 }.encode(&key(a));
        net.udp(from, frame.to_vec(), 0, TrafficClass(0));
        assert!(net.sent().is_empty(), "{from}");
    }
    assert_eq!(net.dropped(ForwardDrop::BindAddress), 5);
}

#[test]
fn a_node_gets_frames_by_the_leg_that_it_asks_for() {
    let mut net = Net::new();
    let (a, b) = (net.bound_node(1, "192.0.2.1:1000"), net.bound_node(2, "192.0.2.2:2000"));
    net.label(Label::new(1, 1), a, b, Label::new(7, 7));
    net.apply(ForwardCommand::SetStream { attachment: b, stream: Some(StreamId(5)) });
    let way = |net: &mut Net| {
        net.udp("192.0.2.1:1000", frame(1, 1, b"x"), 0, TrafficClass(0));
        net.sent().first().map(|sent| sent.to)
    };
    assert_eq!(way(&mut net), Some(To::Udp(at("192.0.2.2:2000"))));
    net.apply(ForwardCommand::SetDownlink { attachment: b, leg: Some(Leg::Tls) });
    assert_eq!(way(&mut net), Some(To::Stream(StreamId(5))));
    net.apply(ForwardCommand::SetStream { attachment: b, stream: None });
    assert_eq!(way(&mut net), None);
    assert_eq!(net.dropped(ForwardDrop::NoLeg), 1);
}

#[test]
fn frames_of_a_stream_go_out_as_runs_without_the_lengths_between_them() {
    let mut net = Net::new();
    let (a, b) = (net.node(1), net.bound_node(2, "192.0.2.2:2000"));
    net.label(Label::new(1, 1), a, b, Label::new(7, 7));
    let mut message = Vec::new();
    for payload in [&b"aaaa"[..], b"bbbb", b"c", b"dddd"] {
        pack(&mut message, &frame(1, 1, payload)).unwrap();
    }
    pack(&mut message, b"").unwrap();
    pack(&mut message, &frame(3, 3, b"x")).unwrap();
    message.push(0);
    net.stream(a, message);
    let header = Header { hops: MAX_HOPS - 1, label: Label::new(7, 7) }.to_bytes();
    let sent = net.sent();
    assert_eq!(sent.len(), 2);
    assert_eq!(sent[0].batch, [&header[..], b"aaaa", &header, b"bbbb", &header, b"c"].concat());
    assert_eq!(sent[0].stride, 12);
    assert_eq!(sent[1].batch, [&header[..], b"dddd"].concat());
    assert_eq!(net.dropped(ForwardDrop::Malformed), 2);
    assert_eq!(net.dropped(ForwardDrop::LabelUnknown), 1);
}

#[test]
fn an_attachment_that_sends_more_than_its_quota_is_cut_and_no_other() {
    let mut net = Net::new();
    let quota = Quota { bytes: 0, packets: 1000 };
    let (a, b) = (net.bound_node(1, "192.0.2.1:1000"), net.bound_node(2, "192.0.2.2:2000"));
    let c = net.bound_node(3, "192.0.2.3:3000");
    net.add(a, AttachmentKind::Node, quota);
    net.prove(a, "192.0.2.1:1000", 1);
    net.label(Label::new(1, 1), a, b, Label::new(7, 7));
    net.label(Label::new(2, 1), c, b, Label::new(8, 8));
    for _ in 0..1000 {
        net.udp("192.0.2.1:1000", frame(1, 1, b"x"), 0, TrafficClass(0));
        net.udp("192.0.2.3:3000", frame(2, 1, b"x"), 0, TrafficClass(0));
    }
    assert_eq!(net.dropped(ForwardDrop::Quota), 900);
    assert_eq!(net.sent().len(), 1100);
}

#[test]
fn a_networks_quota_is_shared_by_its_attachments_only() {
    let mut net = Net::new();
    let (a, b) = (net.bound_node(1, "192.0.2.1:1000"), net.bound_node(2, "192.0.2.2:2000"));
    net.apply(ForwardCommand::SetNetworkQuota { network: network(1), quota: Quota { bytes: 0, packets: 640 } });
    net.label(Label::new(1, 1), a, b, Label::new(7, 7));
    net.apply(ForwardCommand::AddLabel {
        label: Label::new(2, 1),
        network: network(2),
        upstream: a,
        downstream: b,
        out: Label::new(8, 8),
    });
    for _ in 0..100 {
        net.udp("192.0.2.1:1000", frame(1, 1, b"x"), 0, TrafficClass(0));
        net.udp("192.0.2.1:1000", frame(2, 1, b"x"), 0, TrafficClass(0));
    }
    assert_eq!(net.dropped(ForwardDrop::NetworkQuota), 36);
    let carried: Vec<_> = net.forwarder.network_stats().map(|(_, carried)| carried.packets).collect();
    assert_eq!(carried, [64, 100]);
}

#[test]
fn a_label_not_used_for_long_is_freed_and_told_and_a_used_one_stays() {
    let mut net = Net::new();
    let (a, b) = (net.bound_node(1, "192.0.2.1:1000"), net.bound_node(2, "192.0.2.2:2000"));
    net.label(Label::new(1, 1), a, b, Label::new(7, 7));
    net.label(Label::new(900, 1), a, b, Label::new(8, 8));
    let mut freed = Vec::new();
    for _ in 0..70 {
        net.now += Duration::from_secs(1);
        net.udp("192.0.2.1:1000", frame(900, 1, b"x"), 0, TrafficClass(0));
        net.timeouts();
        freed.extend(net.events().into_iter().filter(|event| matches!(event, ForwardEvent::LabelIdle { .. })));
    }
    assert_eq!(freed, [ForwardEvent::LabelIdle { label: Label::new(1, 1) }]);
    assert_eq!(net.forwarder.labels(), 1);
}

#[test]
fn an_endpoint_from_which_nothing_comes_is_forgotten() {
    let mut net = Net::new();
    let a = net.bound_node(1, "192.0.2.1:1000");
    net.now += NODE_STALE;
    for _ in 0..SWEEPS {
        net.timeouts();
        net.now += SWEEP;
    }
    assert_eq!(net.forwarder.endpoint(a), None);
    assert_eq!(net.events(), [ForwardEvent::Unbound { attachment: a }]);
}

#[test]
fn silent_nodes_are_looked_for_a_part_at_a_time_and_a_silent_hub_every_time() {
    let mut net = Net::new();
    let nodes: Vec<_> = (1..=400).map(|n| net.bound_node(n, &format!("192.0.2.1:{}", 1000 + n))).collect();
    let hub = AttachmentId(Label::new(401, 1).0);
    net.add(hub, AttachmentKind::Hub, Quota::default());
    net.now += NODE_STALE - HUB_STALE;
    let Verdict::Challenge(nonce) = net.bind(hub, "192.0.2.10:51820", 1, 0).verdict else { panic!() };
    assert_eq!(net.bind(hub, "192.0.2.10:51820", 2, nonce).verdict, Verdict::Bound);
    net.events();
    net.now += HUB_STALE;
    let mut silent = Vec::new();
    for sweep in 0..SWEEPS {
        net.timeouts();
        let told = net.events();
        let of_hub = ForwardEvent::Unbound { attachment: hub };
        assert_eq!(told.contains(&of_hub), sweep == 0);
        assert!(told.len() <= 1 + nodes.len().div_ceil(SWEEPS) + 1, "{} at once", told.len());
        silent.extend(told.into_iter().filter(|event| *event != of_hub));
        net.now += SWEEP;
    }
    assert_eq!(silent, nodes.iter().map(|node| ForwardEvent::Unbound { attachment: *node }).collect::<Vec<_>>());
}

#[test]
fn two_hubs_bind_to_each_other_and_find_out_when_one_is_gone() {
    let (mut x, mut y) = (Net::new(), Net::new());
    let at_x = AttachmentId(Label::new(4, 4).0);
    let at_y = AttachmentId(Label::new(5, 5).0);
    x.add(at_x, AttachmentKind::Hub, Quota::default());
    y.add(at_y, AttachmentKind::Hub, Quota::default());
    let (x_at, y_at) = (at("192.0.2.10:51820"), at("192.0.2.20:51820"));
    x.apply(ForwardCommand::SetLeg { attachment: at_x, id: at_y.0, key: key(at_y), endpoints: vec![y_at] });
    let run = |x: &mut Net, y: &mut Net, ms: u64, connected: bool| {
        for _ in 0..ms / 10 {
            (x.now, y.now) = (x.now + Duration::from_millis(10), y.now + Duration::from_millis(10));
            x.timeouts();
            y.timeouts();
            loop {
                let (to_y, to_x) = (x.sent(), y.sent());
                if !connected || (to_y.is_empty() && to_x.is_empty()) {
                    break;
                }
                to_y.into_iter().for_each(|sent| y.udp(&x_at.to_string(), sent.batch, 0, TrafficClass(0)));
                to_x.into_iter().for_each(|sent| x.udp(&y_at.to_string(), sent.batch, 0, TrafficClass(0)));
            }
        }
    };
    run(&mut x, &mut y, 50, true);
    assert!(matches!(x.events()[..], [ForwardEvent::LegUp { attachment, .. }] if attachment == at_x));
    assert_eq!(y.events(), [ForwardEvent::Bound { attachment: at_y, endpoint: x_at }]);
    assert_eq!(x.forwarder.endpoint(at_x), Some(y_at));
    run(&mut x, &mut y, 5_000, true);
    assert!(x.events().is_empty() && y.events().is_empty());
    run(&mut x, &mut y, 1_500, false);
    assert_eq!(x.events(), [ForwardEvent::LegDown { attachment: at_x }]);
    assert_eq!(y.events(), [ForwardEvent::Unbound { attachment: at_y }]);
    run(&mut x, &mut y, 6_000, true);
    assert!(matches!(x.events()[..], [ForwardEvent::LegUp { .. }]));
}

#[test]
fn every_drop_has_a_counter_and_a_name_of_its_own() {
    assert_eq!(ForwardDrops::default().0.len(), ForwardDrop::ALL.len());
    let names: std::collections::BTreeSet<_> = ForwardDrop::ALL.iter().map(|reason| reason.label()).collect();
    assert_eq!(names.len(), ForwardDrop::ALL.len());
}

/// What an attacker, or a member gone bad, may send.
#[derive(Clone, Debug)]
enum Input {
    /// A `BIND` under the key of an attachment, from any address, with or without the right nonce.
    Bind { attachment: u8, from: u8, counter: u64, answer: bool },
    /// Frames under any label from any address.
    Frames { from: u8, labels: Vec<u8>, stride: usize },
    /// Anything.
    Bytes { from: u8, bytes: Vec<u8>, stride: usize },
    /// Time passes.
    Wait { ms: u64 },
}

fn inputs() -> impl Strategy<Value = Vec<Input>> {
    let input = prop_oneof![
        4 => (0u8..4, 0u8..6, 0u64..50, any::<bool>())
            .prop_map(|(attachment, from, counter, answer)| Input::Bind { attachment, from, counter, answer }),
        4 => (0u8..6, prop::collection::vec(0u8..8, 1..6), 9usize..40)
            .prop_map(|(from, labels, stride)| Input::Frames { from, labels, stride }),
        1 => (0u8..6, prop::collection::vec(any::<u8>(), 0..200), 0usize..100)
            .prop_map(|(from, bytes, stride)| Input::Bytes { from, bytes, stride }),
        1 => (0u64..30_000).prop_map(|ms| Input::Wait { ms }),
    ];
    prop::collection::vec(input, 1..120)
}

proptest! {
    #[test]
    fn a_hub_never_sends_to_an_address_that_has_not_answered_and_never_more_than_it_received(inputs in inputs()) {
        let mut net = Net::new();
        let nodes: Vec<_> = (0..4).map(|n| net.node(n)).collect();
        for n in 0..8u32 {
            let (up, down) = (nodes[n as usize % 4], nodes[(n as usize + 1) % 4]);
            net.label(Label::new(n, 1), up, down, Label::new(n, 2));
        }
        let places: Vec<_> = (0..6).map(|n| format!("198.51.100.{}:{}", n / 2, 4000 + n)).collect();
        // By address: bytes in, bytes out, the challenges it got, and whether it answered one.
        let mut received: BTreeMap<Endpoint, usize> = BTreeMap::new();
        let mut sent: BTreeMap<Endpoint, usize> = BTreeMap::new();
        let mut challenges: BTreeMap<(Endpoint, u32), u64> = BTreeMap::new();
        let mut answered: BTreeMap<Endpoint, ()> = BTreeMap::new();
        for input in inputs {
            let (from, bytes, stride) = match input {
                Input::Bind { attachment, from, counter, answer } => {
                    let (attachment, from) = (nodes[attachment as usize], &places[from as usize]);
                    let nonce = challenges.get(&(at(from), attachment.0)).copied().filter(|_| answer);
                    if nonce.is_some() {
                        answered.insert(at(from), ());
                    }
                    let bind = Bind { id: attachment.0, counter, time: 0, nonce: nonce.unwrap_or(0) };
                    (from, bind.encode(&key(attachment)).to_vec(), 0)
                }
                Input::Frames { from, labels, stride } => {
                    let payload = vec![0; stride - 8];
                    let batch = labels.iter().map(|label| frame(u32::from(*label), 1, &payload)).collect::<Vec<_>>();
                    (&places[from as usize], batch.concat(), stride)
                }
                Input::Bytes { from, bytes, stride } => (&places[from as usize], bytes, stride),
                Input::Wait { ms } => {
                    net.now += Duration::from_millis(ms);
                    net.timeouts();
                    prop_assert!(net.sent().is_empty());
                    continue;
                }
            };
            *received.entry(at(from)).or_default() += bytes.len();
            net.udp(from, bytes, stride, TrafficClass(0));
            for out in net.sent() {
                let To::Udp(to) = out.to else { panic!("no streams here") };
                for frame in out.batch.chunks(out.stride) {
                    if let Some(id) = Bound::peek_id(frame)
                        && let Some(Bound { verdict: Verdict::Challenge(nonce), .. }) =
                            Bound::open(frame, &key(AttachmentId(id)))
                    {
                        challenges.insert((to, id), nonce);
                    }
                }
                *sent.entry(to).or_default() += out.batch.len();
            }
            for (to, sent) in &sent {
                let received = received.get(to).copied().unwrap_or(0);
                prop_assert!(answered.contains_key(to) || *sent <= received, "{sent} bytes to {to} for {received}");
            }
        }
    }
}

fn at(text: &str) -> Endpoint {
    Endpoint::new(text.parse().unwrap())
}

fn network(n: u8) -> NetworkId {
    NetworkId::from_bytes([n; 32])
}

fn key(attachment: AttachmentId) -> BindSecret {
    BindSecret::from_bytes([(attachment.0 >> 12) as u8; 32])
}

fn frame(slot: u32, generation: u16, payload: &[u8]) -> Vec<u8> {
    [&Header::new(Label::new(slot, generation)).to_bytes()[..], payload].concat()
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum To {
    Stream(StreamId),
    Udp(Endpoint),
}

#[derive(Debug)]
struct Sent {
    to: To,
    batch: Vec<u8>,
    stride: usize,
    class: TrafficClass,
}

struct Net {
    forwarder: Forwarder,
    now: Instant,
    sink: Sink,
}

/// What was sent, and what each further send gives up.
#[derive(Default)]
struct Sink(Vec<Sent>, Carried);

impl ForwardSink for Sink {
    fn udp(&mut self, to: Endpoint, batch: &[u8], stride: usize, class: TrafficClass) -> Carried {
        self.0.push(Sent { to: To::Udp(to), batch: batch.to_vec(), stride, class });
        self.1
    }

    fn stream(&mut self, to: StreamId, batch: &[u8], stride: usize) -> Carried {
        self.0.push(Sent { to: To::Stream(to), batch: batch.to_vec(), stride, class: TrafficClass(0) });
        self.1
    }
}

impl Net {
    fn new() -> Self {
        Self::of(Share::default())
    }

    /// One worker of several.
    fn of(share: Share) -> Self {
        let config = ForwardConfig {
            own: vec![at("192.0.2.100:51820")],
            loopback: Loopback::Refused,
            network_quota: Quota::default(),
            seed: [3; 32],
            share,
            quotas: Arc::default(),
        };
        let now = Instant::now();
        Self { forwarder: Forwarder::new(config, now), now, sink: Sink::default() }
    }

    fn apply(&mut self, command: ForwardCommand) {
        self.forwarder.apply(command, self.now);
    }

    fn add(&mut self, attachment: AttachmentId, kind: AttachmentKind, quota: Quota) {
        self.apply(ForwardCommand::AddAttachment { attachment, kind, bind: key(attachment), quota });
    }

    fn node(&mut self, n: u32) -> AttachmentId {
        let attachment = AttachmentId(Label::new(n, 5).0);
        self.add(attachment, AttachmentKind::Node, Quota::default());
        attachment
    }

    fn bound_node(&mut self, n: u32, place: &str) -> AttachmentId {
        let attachment = self.node(n);
        self.prove(attachment, place, 1);
        attachment
    }

    fn prove(&mut self, attachment: AttachmentId, place: &str, counter: u64) {
        let Verdict::Challenge(nonce) = self.bind(attachment, place, counter, 0).verdict else { panic!() };
        assert_eq!(self.bind(attachment, place, counter + 1, nonce).verdict, Verdict::Bound);
        assert_eq!(self.events(), [ForwardEvent::Bound { attachment, endpoint: at(place) }]);
    }

    fn bind(&mut self, attachment: AttachmentId, from: &str, counter: u64, nonce: u64) -> Bound {
        let frame = Bind { id: attachment.0, counter, time: 77, nonce }.encode(&key(attachment));
        assert_eq!(frame.len(), LEN);
        self.udp(from, frame.to_vec(), 0, TrafficClass(0));
        let sent = self.sent();
        assert_eq!(sent[0].to, To::Udp(at(from)));
        Bound::open(&sent[0].batch, &key(attachment)).unwrap()
    }

    fn label(&mut self, label: Label, upstream: AttachmentId, downstream: AttachmentId, out: Label) {
        self.apply(ForwardCommand::AddLabel { label, network: network(1), upstream, downstream, out });
    }

    fn udp(&mut self, from: &str, mut contents: Vec<u8>, stride: usize, class: TrafficClass) {
        let batch = UdpBatch { from: at(from), contents: &mut contents, stride, class };
        self.forwarder.handle_udp(batch, self.now, &mut self.sink);
    }

    fn stream(&mut self, attachment: AttachmentId, mut message: Vec<u8>) {
        self.forwarder.handle_stream(attachment, &mut message, self.now, &mut self.sink);
    }

    fn timeouts(&mut self) {
        for _ in 0..100 {
            if self.forwarder.poll_timeout() > self.now {
                break;
            }
            self.forwarder.handle_timeout(self.now, &mut self.sink);
        }
    }

    fn sent(&mut self) -> Vec<Sent> {
        std::mem::take(&mut self.sink.0)
    }

    /// All but signs of life.
    fn events(&mut self) -> Vec<ForwardEvent> {
        let events = std::iter::from_fn(|| self.forwarder.poll_event());
        events.filter(|event| !matches!(event, ForwardEvent::HubHeard { .. })).collect()
    }

    fn dropped(&self, reason: ForwardDrop) -> u64 {
        self.forwarder.stats().dropped.of(reason)
    }
}
