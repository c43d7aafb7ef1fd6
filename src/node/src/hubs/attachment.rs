//! One attachment: its control stream's health, and the addresses at which the hub may take UDP.

use std::{
    collections::VecDeque,
    net::IpAddr,
    time::{Duration, Instant},
};

use flatlan_datapath::{Command, HubUdp};
use flatlan_relay::{BindKey, Control};
use flatlan_types::{Endpoint, HostPort, HubSlot};

use super::{Context, Hubs};
use crate::{
    Transport,
    output::{Outbox, Output, StreamId},
    rng::Rng,
};

/// An attachment to a hub.
pub(super) struct Attachment {
    pub(super) stream: StreamId,
    pub(super) bind: Option<BindKey>,
    /// Where the hub may take UDP, best first, each once.
    pub(super) places: Vec<Endpoint>,
    pub(super) names: Vec<HostPort>,
    pub(super) place: usize,
    pub(super) place_until: Option<Instant>,
    pub(super) leg: Option<UdpLeg>,
    pub(super) since: Instant,
    pub(super) heard: Instant,
    /// Something must be heard by then, however short the silence was before.
    pub(super) answer_by: Option<Instant>,
    pub(super) asked: Option<Instant>,
    /// Pings without an answer: what each said, and when.
    pings: VecDeque<(u64, Instant)>,
    /// Where this attachment was dialled, without the port.
    pub(super) remote: Option<IpAddr>,
    pub(super) rtt: Option<Duration>,
    pub(super) draining: bool,
    /// It is left then: it is not needed any more.
    pub(super) leave_at: Option<Instant>,
}

pub(super) struct UdpLeg {
    pub(super) reflexive: Endpoint,
    pub(super) rtt: Duration,
}

impl Attachment {
    pub(super) fn new(stream: StreamId, bind: Option<BindKey>, remote: Option<Endpoint>, now: Instant) -> Self {
        Self {
            stream,
            bind,
            places: Vec::new(),
            names: Vec::new(),
            place: 0,
            place_until: None,
            leg: None,
            since: now,
            heard: now,
            answer_by: None,
            asked: None,
            pings: VecDeque::new(),
            remote: remote.map(|remote| remote.socket_addr().ip()),
            rtt: None,
            draining: false,
            leave_at: None,
        }
    }

    /// A place where the hub says that it takes UDP.
    pub(super) fn add_name(&mut self, place: &HostPort) {
        match place.literal() {
            Some(endpoint) if endpoint.socket_addr().ip().is_unspecified() => {
                if let Some(ip) = self.remote {
                    self.add_place(Endpoint::new((ip, place.port()).into()));
                }
            }
            Some(endpoint) => self.add_place(endpoint),
            None if self.names.contains(place) => {}
            None => self.names.push(place.clone()),
        }
    }

    pub(super) fn add_place(&mut self, endpoint: Endpoint) {
        if self.places.contains(&endpoint) || self.places.len() >= MAX_PLACES || !may_be_at(endpoint, self.remote) {
            return;
        }
        // the address that the stream reached is the likeliest to work
        if self.leg.is_none() && Some(endpoint.socket_addr().ip()) == self.remote {
            self.places.insert(0, endpoint);
        } else {
            self.places.push(endpoint);
        }
    }

    /// What a ping says cannot be foreseen: no hub answers before it was asked, to seem nearer than it is.
    pub(super) fn ask(&mut self, now: Instant, rng: &mut Rng, out: &mut Outbox) {
        self.asked = Some(now);
        let time = rng.opaque();
        self.pings.push_back((time, now));
        if self.pings.len() > MAX_PINGS {
            self.pings.pop_front();
        }
        out.send(self.stream, &Control::Ping { time });
    }

    /// The round trip, where this answers a ping.
    pub(super) fn answered(&mut self, time: u64, now: Instant) -> Option<Duration> {
        let place = self.pings.iter().position(|(ping, _)| *ping == time)?;
        let (_, sent) = self.pings.drain(..=place).next_back()?;
        (self.asked, self.rtt) = (None, Some(now.saturating_duration_since(sent)));
        self.rtt
    }

    /// When the control stream counts as dead unless something is heard on it before.
    pub(super) fn silent_at(&self) -> Instant {
        let patience = if self.leg.is_some() { SILENT_BESIDE_UDP } else { SILENT };
        let at = self.heard + patience;
        self.answer_by.map_or(at, |by| by.min(at))
    }

    /// Whether a ping was not answered yet.
    pub(super) fn is_asked(&self) -> bool {
        self.asked.is_some_and(|asked| asked >= self.heard)
    }

    pub(super) fn ask_at(&self) -> Instant {
        self.asked.unwrap_or(self.heard).max(self.heard) + QUIET
    }
}

/// Whether a hub that was reached at `remote` may be there: no hub sends our BINDs into a LAN that it is not in
/// itself.
fn may_be_at(endpoint: Endpoint, remote: Option<IpAddr>) -> bool {
    let ip = endpoint.socket_addr().ip();
    match reach(ip) {
        Reach::Everywhere => true,
        Reach::Site => remote.is_some_and(|remote| reach(remote) != Reach::Everywhere),
        Reach::Machine => remote == Some(ip),
    }
}

/// From where an address means the same.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reach {
    Machine,
    Site,
    Everywhere,
}

fn reach(ip: IpAddr) -> Reach {
    let (machine, site) = match ip {
        IpAddr::V4(v4) => (v4.is_link_local() || v4.is_broadcast(), v4.is_private()),
        IpAddr::V6(v6) => (v6.is_unicast_link_local(), v6.is_unique_local()),
    };
    if machine || ip.is_loopback() || ip.is_unspecified() || ip.is_multicast() {
        return Reach::Machine;
    }
    if site { Reach::Site } else { Reach::Everywhere }
}

impl Hubs {
    /// Tells the workers how a hub can be reached at this moment.
    pub(super) fn tell_workers(&mut self, slot: HubSlot, ctx: &mut Context<'_>) {
        let transport = self.transport;
        let Some(hub) = self.hub_mut(slot) else { return };
        let stream = hub.data.open.is_some();
        let Some(attachment) = &mut hub.control else { return };
        let udp = match (transport, &attachment.bind, attachment.places.get(attachment.place)) {
            (Transport::Auto | Transport::Udp, Some(bind), Some(endpoint)) => {
                Some(HubUdp { endpoint: *endpoint, bind: bind.clone() })
            }
            (Transport::Auto | Transport::Udp | Transport::Tcp, _, _) => None,
        };
        if attachment.leg.is_none() && udp.is_some() && attachment.places.len() > 1 {
            attachment.place_until.get_or_insert(ctx.now + TRY_PLACE);
        }
        ctx.out.worker(Command::SetHub { hub: slot, udp, stream });
    }

    /// The hub does not answer at this address: the next one; its names are resolved again after the last.
    pub(super) fn next_place(&mut self, slot: HubSlot, ctx: &mut Context<'_>) {
        let Some(attachment) = self.attachment_mut(slot) else { return };
        attachment.place_until = None;
        attachment.place += 1;
        if attachment.place >= attachment.places.len() {
            attachment.place = 0;
            for place in attachment.names.clone() {
                ctx.out.push(Output::Resolve { place });
            }
        }
        if attachment.places.len() > 1 {
            self.tell_workers(slot, ctx);
        }
    }
}

/// UDP addresses of one hub that are tried.
pub(super) const MAX_PLACES: usize = 8;
/// A control stream is asked when nothing was heard for this long.
pub(super) const QUIET: Duration = Duration::from_secs(1);
/// And dead after this.
pub(super) const SILENT: Duration = Duration::from_secs(3);
/// The same while the hub answers datagrams, so that it is not the hub that is dead: at 10 % loss each way a stream stands
/// still for three seconds every few minutes, and with an attachment go all paths by its hub. Less than after which a hub
/// gives up a node that it does not hear.
const SILENT_BESIDE_UDP: Duration = Duration::from_secs(8);
/// Pings of which answers are still taken.
const MAX_PINGS: usize = 4;
/// A UDP address of a hub with several is tried for so long.
const TRY_PLACE: Duration = Duration::from_secs(3);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hub_names_no_place_in_a_network_that_it_is_not_in() {
        let at = |place: &str, remote: Option<&str>| {
            may_be_at(Endpoint::new(place.parse().unwrap()), remote.map(|remote| remote.parse().unwrap()))
        };
        let public = Some("203.0.113.1");
        assert!(at("198.51.100.1:51820", public) && at("[2001:db8::1]:51820", None));
        for inside in
            ["127.0.0.1:53", "192.168.1.1:53", "10.0.0.1:53", "[fd00::1]:53", "[::1]:53", "169.254.169.254:80"]
        {
            assert!(!at(inside, public) && !at(inside, None), "{inside}");
        }
        assert!(at("192.168.1.1:53", Some("192.168.1.9")) && at("[fd00::1]:53", Some("10.0.0.1")));
        assert!(at("127.0.0.1:53", Some("127.0.0.1")) && !at("127.0.0.1:53", Some("192.168.1.9")));
        assert!(!at("224.0.0.1:53", Some("192.168.1.9")));
    }
}
