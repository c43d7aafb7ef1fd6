use super::*;

const SPAN: Duration = Duration::from_millis(200);

/// A ledger and the receiver's counters beside it.
struct Pair {
    ledger: Ledger,
    packets: u64,
    bytes: u64,
    now: Instant,
}

impl Pair {
    fn new() -> Self {
        let mut pair = Self { ledger: Ledger::default(), packets: 0, bytes: 0, now: Instant::now() };
        assert_eq!(pair.report(), Verdict::Unclear);
        pair
    }

    fn send(&mut self, packets: u32, size: u64, arrive: u32) {
        self.ledger.add(packets, u64::from(packets) * size);
        self.packets += u64::from(arrive);
        self.bytes += u64::from(arrive) * size;
    }

    fn report(&mut self) -> Verdict {
        self.now += Duration::from_millis(50);
        self.ledger.judge(self.ledger.tally(), Tally::new(self.packets, self.bytes), self.now, SPAN)
    }
}

#[test]
fn data_that_does_not_advance_for_the_span_is_a_black_hole() {
    let mut pair = Pair::new();
    let verdicts: Vec<Verdict> = (0..4)
        .map(|_| {
            pair.send(3, 1000, 0);
            pair.report()
        })
        .collect();
    assert_eq!(verdicts, [Verdict::Unclear, Verdict::Unclear, Verdict::Doubt, Verdict::BlackHole]);
}

#[test]
fn a_first_report_in_which_half_arrived_does_not_hide_the_black_hole() {
    let mut pair = Pair::new();
    pair.send(100, 1000, 40);
    let verdicts: Vec<Verdict> = (0..5)
        .map(|_| {
            let verdict = pair.report();
            pair.send(100, 1000, 0);
            verdict
        })
        .collect();
    assert_eq!(verdicts, [Verdict::Doubt, Verdict::Doubt, Verdict::Doubt, Verdict::Doubt, Verdict::BlackHole]);
}

#[test]
fn seven_lost_packets_are_not_enough() {
    let mut pair = Pair::new();
    pair.send(7, 1000, 0);
    for _ in 0..100 {
        assert_eq!(pair.report(), Verdict::Unclear);
    }
}

#[test]
fn data_that_arrives_but_for_a_tenth_delivers() {
    let mut pair = Pair::new();
    for _ in 0..100 {
        pair.send(10, 1000, 9);
        assert_eq!(pair.report(), Verdict::Delivers);
    }
}

#[test]
fn small_packets_that_pass_do_not_hide_large_ones_that_do_not() {
    let mut pair = Pair::new();
    pair.send(10, 1440, 0);
    pair.send(5, 96, 5);
    assert_eq!(pair.report(), Verdict::Doubt);
}

#[test]
fn a_hub_that_passes_one_packet_in_twenty_is_lossy() {
    let mut pair = Pair::new();
    let last = (0..20)
        .map(|_| {
            pair.send(20, 1000, 1);
            pair.report()
        })
        .find(|verdict| *verdict != Verdict::Doubt);
    assert_eq!(last, Some(Verdict::Lossy));
}

#[test]
fn counters_that_go_down_are_a_new_beginning() {
    let mut pair = Pair::new();
    pair.send(100, 1000, 100);
    assert_eq!(pair.report(), Verdict::Delivers);
    (pair.packets, pair.bytes) = (3, 3000);
    pair.send(100, 1000, 0);
    assert_eq!(pair.report(), Verdict::Unclear);
    pair.send(100, 1000, 100);
    assert_eq!(pair.report(), Verdict::Delivers);
}

#[test]
fn counters_wrap() {
    let mut pair = Pair::new();
    (pair.ledger.packets, pair.packets) = (u64::from(u32::MAX) - 2, u64::from(u32::MAX) - 2);
    pair.ledger.restart();
    pair.report();
    pair.send(10, 1000, 10);
    assert_eq!(pair.report(), Verdict::Delivers);
}

#[test]
fn an_advance_dates_back_to_the_report_before() {
    let start = Instant::now();
    let at = |ms| start + Duration::from_millis(ms);
    let mut ledger = Ledger::default();
    assert_eq!(ledger.hear(Tally::new(5, 500), at(0)), None);
    assert_eq!(ledger.hear(Tally::new(5, 500), at(50)), None);
    assert_eq!(ledger.hear(Tally::new(9, 900), at(100)), Some(at(50)));
    assert_eq!(ledger.hear(Tally::new(12, 900), at(90)), None, "overtaken");
}

#[test]
fn the_inbox_reports_by_the_peers_own_names() {
    let now = Instant::now();
    let relay = |leg| PathKind::Relay { hub: HubSlot(3), leg };
    let mut inbox = Inbox::default();
    inbox.count(relay(crate::kind::Leg::Udp), 2, 320, now);
    assert_eq!(inbox.report(PathId(7)), None, "nobody called it by that name yet");
    inbox.hear(PathId(7), 41, 1, relay(crate::kind::Leg::Tls), now);
    inbox.hear(PathId(7), 40, 1, relay(crate::kind::Leg::Tls), now);
    assert_eq!(inbox.report(PathId(7)), Some(Received { packets: 2, units: 20, heard: 41 }));
    assert_eq!(inbox.hear(PathId(8), 1, 2, relay(crate::kind::Leg::Udp), now), Restarted::Yes);
    assert_eq!(inbox.report(PathId(7)), None, "another instance has other names");
}

#[test]
fn the_inbox_is_bounded() {
    let now = Instant::now();
    let mut inbox = Inbox::default();
    for i in 0..10_000_u16 {
        let endpoint = Endpoint::new(([192, 0, 2, 1], i.wrapping_add(1)).into());
        inbox.hear(PathId(i), u32::from(i), 1, PathKind::Direct(endpoint), now + Duration::from_millis(i.into()));
    }
    assert_eq!((inbox.counters.len(), inbox.names.len()), (MAX_INGRESS, MAX_NAMES));
    assert!(inbox.report(PathId(9_999)).is_some());
}
