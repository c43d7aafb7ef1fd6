//! A link, packet by packet.

use super::*;

const MS: Duration = Duration::from_millis(1);

fn due(fate: Fate) -> Option<Instant> {
    match fate {
        Fate::Arrives(arrival) => Some(arrival.due),
        Fate::Lost => None,
    }
}

#[test]
fn a_good_link_passes_everything_at_once_and_whole() {
    let mut link = Link::new(Quality::default(), 1);
    let now = Instant::now();
    let whole = Arrival { due: now, copies: Copies::One, damage: None };
    for _ in 0..1000 {
        assert_eq!(link.handle_packet(100, now), Fate::Arrives(whole));
    }
    assert_eq!(link.counts(), Counts { came: 1000, ..Counts::default() });
}

#[test]
fn the_same_seed_gives_the_same_fates_and_another_other_ones() {
    let now = Instant::now();
    let fates = |seed| {
        let bursts = Bursts { begin: 10, end: 100, lost: 900 };
        let mut link = Link::new(Quality { lost: 100, doubled: 50, damaged: 20, bursts, ..Quality::default() }, seed);
        (0..1000).map(|_| link.handle_packet(100, now)).collect::<Vec<_>>()
    };
    assert_eq!(fates(7), fates(7));
    assert_ne!(fates(7), fates(8));
}

#[test]
fn chance_takes_the_share_that_it_was_given() {
    let now = Instant::now();
    let quality = Quality { lost: 100, doubled: 50, held: 20, hold: MS, damaged: 10, ..Quality::default() };
    let mut link = Link::new(quality, 3);
    for _ in 0..100_000 {
        link.handle_packet(100, now);
    }
    let counts = link.counts();
    assert_eq!(counts.came, 100_000);
    assert!((9_500..10_500).contains(&counts.lost), "{counts:?}");
    assert!((4_200..4_800).contains(&counts.doubled), "{counts:?}");
    assert!((1_650..1_950).contains(&counts.held), "{counts:?}");
    assert!((800..1_000).contains(&counts.damaged), "{counts:?}");
}

#[test]
fn bursts_lose_in_a_row_what_chance_alone_would_spread() {
    let now = Instant::now();
    // bad for a sixth of all packets, ten at a time
    let bursts = Bursts { begin: 20, end: 100, lost: 1000 };
    let mut link = Link::new(Quality { bursts, ..Quality::default() }, 3);
    let lost: Vec<bool> = (0..100_000).map(|_| link.handle_packet(100, now) == Fate::Lost).collect();
    let runs = lost.chunk_by(|a, b| a == b).filter(|run| run.first() == Some(&true)).count();
    let count = lost.iter().filter(|lost| **lost).count();
    assert!((14_500..19_000).contains(&count), "{count}");
    assert!((8..13).contains(&(count / runs)), "{count} in {runs} runs");
}

#[test]
fn damage_names_a_bit_of_the_packet() {
    let now = Instant::now();
    let mut link = Link::new(Quality { damaged: 1000, ..Quality::default() }, 3);
    for _ in 0..1000 {
        let Fate::Arrives(Arrival { damage: Some(bit), .. }) = link.handle_packet(10, now) else { panic!("no damage") };
        let mut packet = [0; 10];
        turn_bit(&mut packet, bit);
        assert_eq!(packet.iter().map(|byte| byte.count_ones()).sum::<u32>(), 1);
    }
}

#[test]
fn a_packet_that_is_held_back_is_overtaken() {
    let now = Instant::now();
    let mut link = Link::new(Quality { held: 1000, hold: MS * 10, shortest: 2, ..Quality::default() }, 3);
    assert_eq!(due(link.handle_packet(2, now)), Some(now + MS * 10));
    assert_eq!(due(link.handle_packet(1, now)), Some(now));
}

#[test]
fn a_rate_lets_packets_wait_for_each_other_and_drops_what_the_queue_does_not_hold() {
    let now = Instant::now();
    // 1000 bytes take a millisecond, and two of them may wait
    let quality = Quality { rate: Some(8_000_000), queue: 2000, ..Quality::default() };
    let mut link = Link::new(quality, 3);
    let dues: Vec<_> = (0..5).map(|_| due(link.handle_packet(1000, now))).collect();
    assert_eq!(dues, [Some(now + MS), Some(now + MS * 2), Some(now + MS * 3), None, None]);
    assert_eq!(due(link.handle_packet(1000, now + MS * 3)), Some(now + MS * 4));
    assert_eq!(link.counts().overflowed, 2);
}

#[test]
fn short_packets_are_spared_by_chance_and_by_the_queue() {
    let now = Instant::now();
    let quality = Quality { lost: 1000, rate: Some(8_000), queue: 1, shortest: 100, ..Quality::default() };
    let mut link = Link::new(quality, 3);
    for _ in 0..10 {
        assert!(due(link.handle_packet(99, now)).is_some());
        assert_eq!(link.handle_packet(100, now), Fate::Lost);
    }
    assert_eq!(link.counts().lost, 10);
}
