use super::*;

const RTT: Duration = Duration::from_millis(8);

/// A leg and a hub that answers or does not.
struct Bench {
    leg: HubLeg,
    now: Instant,
    start: Instant,
    hub: Hub,
    reflexive: Endpoint,
    asked: Vec<Duration>,
    events: Vec<(Duration, HubLegEvent)>,
    answer_at: Option<Instant>,
    chance: Random,
}

#[derive(Clone, Copy, PartialEq)]
enum Hub {
    Answers,
    /// All but 19 of a hundred: what is left at 10 % loss each way.
    AnswersMost,
    Silent,
}

impl Bench {
    fn new(hub: Hub) -> Self {
        let now = Instant::now();
        let leg = HubLeg::new(HubLegConfig::default(), 1);
        let reflexive = Endpoint::new(([198, 51, 100, 7], 4000).into());
        Self {
            leg,
            now,
            start: now,
            hub,
            reflexive,
            asked: vec![],
            events: vec![],
            answer_at: None,
            chance: Random::new(3),
        }
    }

    fn drain(&mut self) {
        while let Some(BindProbe { .. }) = self.leg.poll_transmit() {
            self.asked.push(self.now - self.start);
            let answers = match self.hub {
                Hub::Answers => true,
                Hub::AnswersMost => self.chance.next_u16() % 100 >= 19,
                Hub::Silent => false,
            };
            if answers {
                self.answer_at = Some(self.now + RTT);
            }
        }
        while let Some(event) = self.leg.poll_event() {
            self.events.push((self.now - self.start, event));
        }
    }

    fn run(&mut self, time: Duration, traffic: bool) {
        self.drain();
        let end = self.now + time;
        let mut tick = self.now;
        loop {
            let next = [self.leg.poll_timeout(), self.answer_at, traffic.then_some(tick)].into_iter().flatten().min();
            let Some(next) = next.filter(|next| *next <= end) else { break };
            self.now = self.now.max(next);
            if traffic && tick <= self.now {
                self.leg.touch(self.now);
                tick = self.now + Duration::from_millis(10);
            }
            if self.answer_at.take_if(|at| *at <= next).is_some() {
                self.leg.handle_bound(RTT, self.reflexive, self.now);
            }
            self.leg.handle_timeout(self.now);
            self.drain();
        }
        self.now = end;
    }
}

fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

#[test]
fn without_a_key_nothing_is_sent() {
    let mut bench = Bench::new(Hub::Answers);
    bench.leg.touch(bench.now);
    bench.leg.reprobe(bench.now);
    bench.leg.handle_bound(RTT, bench.reflexive, bench.now);
    bench.run(secs(60), true);
    assert!(bench.asked.is_empty() && bench.events.is_empty());
    assert_eq!(bench.leg.state(), HubLegState::Down);
}

#[test]
fn a_key_and_one_answer_take_the_leg_up() {
    let mut bench = Bench::new(Hub::Answers);
    bench.leg.set_key(bench.now);
    assert_eq!(bench.leg.state(), HubLegState::Probing);
    bench.run(secs(1), false);
    assert_eq!(bench.events, [(RTT, HubLegEvent::Up { reflexive: bench.reflexive, rtt: RTT })]);
    assert_eq!((bench.leg.rtt(), bench.leg.reflexive()), (Some(RTT), Some(bench.reflexive)));
}

#[test]
fn an_unused_leg_is_asked_only_to_keep_the_mapping_open() {
    let mut bench = Bench::new(Hub::Answers);
    bench.leg.set_key(bench.now);
    bench.run(secs(60), false);
    assert!((12..=16).contains(&bench.asked.len()), "{}", bench.asked.len());
}

#[test]
fn a_used_leg_that_falls_silent_is_down_after_little_more_than_a_second_and_up_again_when_answered() {
    let mut bench = Bench::new(Hub::Answers);
    bench.leg.set_key(bench.now);
    bench.run(secs(3), true);
    bench.hub = Hub::Silent;
    bench.run(secs(30), true);
    let (at, event) = bench.events[1];
    assert_eq!(event, HubLegEvent::Down);
    assert!(at - secs(3) < Duration::from_millis(1200), "{at:?}");
    let asked = bench.asked.iter().filter(|at| **at > secs(10)).count();
    assert!((3..10).contains(&asked), "a silent hub is asked rarely, not {asked} times");
    bench.hub = Hub::Answers;
    bench.run(secs(6), true);
    assert!(matches!(bench.events[2].1, HubLegEvent::Up { .. }));
    assert_eq!(bench.events.len(), 3);
}

#[test]
fn traffic_after_silence_asks_at_once() {
    let mut bench = Bench::new(Hub::Answers);
    bench.leg.set_key(bench.now);
    bench.run(secs(12), false);
    let before = bench.asked.len();
    bench.leg.touch(bench.now);
    bench.drain();
    assert_eq!(bench.asked.len(), before + 1);
}

#[test]
fn another_reflexive_endpoint_is_told() {
    let mut bench = Bench::new(Hub::Answers);
    bench.leg.set_key(bench.now);
    bench.run(secs(1), false);
    bench.reflexive = Endpoint::new(([198, 51, 100, 7], 4001).into());
    bench.leg.reprobe(bench.now);
    bench.run(secs(1), false);
    assert_eq!(bench.events[1].1, HubLegEvent::Roamed { reflexive: bench.reflexive });
}

#[test]
fn a_lost_control_stream_takes_the_leg_down_and_a_new_key_counts_anew() {
    let mut bench = Bench::new(Hub::Answers);
    bench.leg.set_key(bench.now);
    bench.run(secs(1), false);
    bench.leg.clear_key(bench.now);
    assert_eq!((bench.leg.poll_event(), bench.leg.poll_timeout()), (Some(HubLegEvent::Down), None));
    bench.leg.set_key(bench.now);
    assert_eq!(bench.leg.poll_transmit(), Some(BindProbe { counter: 1 }));
}

#[test]
fn ten_minutes_at_ten_percent_loss_each_way_take_no_leg_down() {
    let mut bench = Bench::new(Hub::Answers);
    bench.leg.set_key(bench.now);
    bench.run(secs(1), true);
    bench.hub = Hub::AnswersMost;
    bench.run(secs(600), true);
    assert_eq!(bench.events.len(), 1, "{:?}", bench.events);
}

#[test]
fn one_lost_answer_changes_nothing() {
    let mut bench = Bench::new(Hub::Answers);
    bench.leg.set_key(bench.now);
    bench.run(secs(2), true);
    bench.answer_at = None;
    bench.hub = Hub::Silent;
    bench.run(Duration::from_millis(250), true);
    bench.hub = Hub::Answers;
    bench.run(secs(5), true);
    assert_eq!(bench.events.len(), 1);
}
