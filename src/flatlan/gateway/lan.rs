//! Whether this machine reaches the LAN that it carries prefixes of: by the link of its device, and by a machine there that
//! answers, where the operator named one.
//!
//! What follows from that is the control machine's to say. A prefix is behind the device that has an address in it, or had
//! one when it was last seen: an address goes with its device. Of a prefix that no device ever was in, nothing is known,
//! and it does not count as lost.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use flatlan_node::{Interface, LanLoss};
use flatlan_os::{
    echo,
    route::{Connected, LinkState},
};
use flatlan_types::Prefix;
use tokio::{sync::mpsc, task::JoinHandle, time};

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct LanWatch {
    /// The devices behind which each prefix is, or was when it was last seen.
    behind: BTreeMap<Prefix, BTreeSet<String>>,
    /// The machine that does not answer.
    unanswered: Option<IpAddr>,
    /// How often in a row it did not.
    misses: u32,
}

impl LanWatch {
    /// The machine of the LAN was asked. Whether that changes what is lost.
    pub(crate) fn handle_probe(&mut self, Probed { target, answered }: Probed) -> bool {
        let before = self.unanswered;
        if answered {
            (self.misses, self.unanswered) = (0, None);
        } else {
            self.misses = self.misses.saturating_add(1);
            self.unanswered = (self.misses >= MISSES).then_some(target);
        }
        before != self.unanswered
    }

    /// What of this member's own cannot be reached, and why. `lan`: the device of the site's LAN, where the operator named
    /// one.
    pub(crate) fn lost(
        &mut self,
        interface: &Interface,
        lans: &[Connected],
        links: &BTreeMap<String, LinkState>,
        lan: Option<&str>,
    ) -> BTreeMap<Prefix, LanLoss> {
        self.behind.retain(|prefix, _| interface.served.contains(prefix));
        for prefix in interface.served.iter().copied() {
            let there = lans.iter().filter(|lan| lan.prefix.overlaps(prefix)).map(|lan| lan.device.clone());
            let mut there: BTreeSet<String> = there.collect();
            if lan.is_some_and(|lan| there.contains(lan)) {
                there.retain(|device| Some(device.as_str()) == lan);
            }
            if !there.is_empty() {
                self.behind.insert(prefix, there);
            }
        }
        let all: BTreeSet<String> = self.behind.values().flatten().cloned().collect();
        let of_probe = self.unanswered.map(|target| {
            let on = lans.iter().filter(|lan| lan.prefix.contains(target)).map(|lan| lan.device.clone());
            (target, on.collect::<BTreeSet<String>>())
        });
        let mut lost = BTreeMap::new();
        for prefix in interface.served.iter().copied() {
            let named = || lan.map(|lan| BTreeSet::from([lan.to_owned()]));
            let moved = || interface.moved.contains(&prefix).then(|| all.clone()).filter(|all| all.len() == 1);
            let behind = self.behind.get(&prefix).cloned().or_else(named).or_else(moved);
            let loss = behind.as_ref().and_then(|devices| no_link(devices, links)).or_else(|| {
                // the probe speaks for what is behind its own device, or for everything where that cannot be told
                let (target, on) = of_probe.as_ref()?;
                let elsewhere = behind.as_ref().is_some_and(|devices| !on.is_empty() && devices.is_disjoint(on));
                (!elsewhere).then_some(LanLoss::NoAnswer { target: *target })
            });
            lost.extend(loss.map(|loss| (prefix, loss)));
        }
        lost
    }
}

/// Why nothing leaves by any of these devices, if nothing does.
fn no_link(devices: &BTreeSet<String>, links: &BTreeMap<String, LinkState>) -> Option<LanLoss> {
    if devices.iter().any(|device| links.get(device) == Some(&LinkState::Up)) {
        return None;
    }
    let device = devices.first()?.clone();
    Some(if links.contains_key(&device) { LanLoss::NoLink { device } } else { LanLoss::NoDevice { device } })
}

/// What came of one question.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Probed {
    target: IpAddr,
    answered: bool,
}

/// Asks the machine of the LAN, again and again. Ends with its owner.
#[derive(Debug)]
pub(crate) struct LanProbe {
    probed: mpsc::Receiver<Probed>,
    task: Option<JoinHandle<()>>,
}

impl LanProbe {
    /// Asks from here on, where there is whom to ask. Needs a tokio runtime.
    pub(crate) fn start(target: Option<IpAddr>) -> Self {
        let (tell, probed) = mpsc::channel(1);
        Self { probed, task: target.map(|target| tokio::spawn(ask(target, tell))) }
    }

    /// What came of the next question; never returns where nobody is asked. Safe to cancel.
    pub(crate) async fn next(&mut self) -> Probed {
        match self.probed.recv().await {
            Some(probed) => probed,
            None => std::future::pending().await,
        }
    }
}

impl Drop for LanProbe {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

async fn ask(target: IpAddr, tell: mpsc::Sender<Probed>) {
    let mut turns = time::interval(PROBE_EVERY);
    turns.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
    let mut said = false;
    for sequence in (0..=u16::MAX).cycle() {
        turns.tick().await;
        match echo::answers(target, sequence, PROBE_EVERY).await {
            Ok(answered) => {
                said = false;
                if tell.send(Probed { target, answered }).await.is_err() {
                    return;
                }
            }
            Err(error) if !said => {
                said = true;
                let reason = flatlan_os::Why::from(error);
                tracing::warn!(%reason, "the LAN's machine cannot be asked, and counts as there: lan_probe needs CAP_NET_RAW");
            }
            Err(_) => {}
        }
    }
}

/// How often the machine is asked, and how long it has for an answer.
const PROBE_EVERY: Duration = Duration::from_millis(200);
/// It counts as gone when it did not answer so often in a row: before TCP sends again for the fourth time.
const MISSES: u32 = 4;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::testing::{interface, lan, prefix};

    fn links(states: &[(&str, LinkState)]) -> BTreeMap<String, LinkState> {
        states.iter().map(|(device, state)| ((*device).to_owned(), *state)).collect()
    }

    fn no_link(device: &str) -> LanLoss {
        LanLoss::NoLink { device: device.to_owned() }
    }

    const UP: [(&str, LinkState); 3] = [("eth0", LinkState::Up), ("eth1", LinkState::Up), ("eth2", LinkState::Up)];

    #[test]
    fn a_lan_is_lost_with_the_link_of_its_device_and_with_the_device_and_what_is_behind_others_is_not() {
        let mut watch = LanWatch::default();
        let interface = interface(&[], &["192.168.1.0/24", "192.168.2.0/24", "10.9.0.0/16"], &[]);
        let lans = [lan("eth0", "203.0.113.0/24"), lan("eth1", "192.168.1.0/24"), lan("eth2", "192.168.2.0/24")];
        assert!(watch.lost(&interface, &lans, &links(&UP), None).is_empty());
        let down = links(&[UP[0], ("eth1", LinkState::Down), UP[2]]);
        let lost = BTreeMap::from([(prefix("192.168.1.0/24"), no_link("eth1"))]);
        assert_eq!(watch.lost(&interface, &lans, &down, None), lost);
        // its address went with it
        let gone = BTreeMap::from([(prefix("192.168.1.0/24"), LanLoss::NoDevice { device: "eth1".to_owned() })]);
        assert_eq!(watch.lost(&interface, &lans[..1], &links(&[UP[0], UP[2]]), None), gone);
        assert!(watch.lost(&interface, &lans, &links(&UP), None).is_empty());
    }

    #[test]
    fn a_prefix_with_two_devices_is_lost_with_both_and_one_that_was_never_seen_is_not_unless_its_device_is_named() {
        let mut watch = LanWatch::default();
        let interface = interface(&[], &["192.168.0.0/16"], &[]);
        assert!(watch.lost(&interface, &[], &links(&UP), None).is_empty());
        let missing = watch.lost(&interface, &[], &links(&UP), Some("eth7"));
        assert_eq!(missing.into_values().next(), Some(LanLoss::NoDevice { device: "eth7".to_owned() }));
        let lans = [lan("eth1", "192.168.1.0/24"), lan("eth2", "192.168.2.0/24")];
        let one = links(&[("eth1", LinkState::Down), UP[2]]);
        assert!(watch.lost(&interface, &lans, &one, None).is_empty());
        let both = links(&[("eth1", LinkState::Down), ("eth2", LinkState::Down)]);
        assert_eq!(watch.lost(&interface, &lans, &both, None).into_values().next(), Some(no_link("eth1")));
    }

    #[test]
    fn what_moved_here_is_lost_with_the_only_lan_that_there_is() {
        let mut watch = LanWatch::default();
        let interface = interface(&[], &["192.168.1.0/24"], &["192.168.9.5/32"]);
        let lans = [lan("eth1", "192.168.1.0/24")];
        let lost = watch.lost(&interface, &lans, &links(&[("eth1", LinkState::Down)]), None);
        assert_eq!(lost.get(&prefix("192.168.9.5/32")), Some(&no_link("eth1")));
    }

    #[test]
    fn a_machine_that_does_not_answer_some_times_in_a_row_is_gone_until_it_answers() {
        let mut watch = LanWatch::default();
        let interface = interface(&[], &["192.168.1.0/24", "192.168.2.0/24"], &[]);
        let lans = [lan("eth1", "192.168.1.0/24"), lan("eth2", "192.168.2.0/24")];
        let target: IpAddr = [192, 168, 1, 11].into();
        let probe = |watch: &mut LanWatch, answered| watch.handle_probe(Probed { target, answered });
        for _ in 1..MISSES {
            assert!(!probe(&mut watch, false));
        }
        assert!(!probe(&mut watch, true));
        for _ in 1..MISSES {
            assert!(!probe(&mut watch, false));
        }
        assert!(probe(&mut watch, false));
        let lost = BTreeMap::from([(prefix("192.168.1.0/24"), LanLoss::NoAnswer { target })]);
        assert_eq!(watch.lost(&interface, &lans, &links(&UP), None), lost, "the other LAN may be there");
        assert!(!probe(&mut watch, false));
        assert!(probe(&mut watch, true));
        assert!(watch.lost(&interface, &lans, &links(&UP), None).is_empty());
    }
}
