//! Short streams from elsewhere: the admin who publishes, a machine that joins.

use flatlan_relay::{
    Attach, Control, MAX_PART, Proof, Role, VERSION,
    auth::{AttachScope, Exporter},
};
use flatlan_roster::Claim;

use crate::{
    admin::{hub_secret, invite, node_secret},
    datagram::Trail,
    node_site::exporter,
    party::Party,
    sim::{Event, Sim},
    stream::{ConnId, Side},
};

/// What somebody wants of one hub. It is tried until it is done, or refused often.
pub(crate) struct Visit {
    pub(crate) hub: usize,
    pub(crate) network: usize,
    pub(crate) errand: Errand,
    conn: Option<ConnId>,
    tries: u32,
}

#[derive(Clone)]
pub(crate) enum Errand {
    /// Store this roster.
    Upload(Vec<u8>),
    /// Redeem the invite of this member.
    Redeem(usize),
}

impl Sim {
    pub(crate) fn visit(&mut self, hub: usize, network: usize, errand: Errand) {
        let id = self.next_id();
        self.visits.insert(id, Visit { hub, network, errand, conn: None, tries: 0 });
        self.visit_again(id);
    }

    /// Dials for an errand that is not done.
    pub(crate) fn visit_again(&mut self, id: u64) {
        let Some(visit) = self.visits.get_mut(&id) else { return };
        visit.tries += 1;
        if visit.tries > TRIES {
            self.visits.remove(&id);
            return;
        }
        let (hub, role) = (visit.hub, role(&visit.errand));
        let conn = self.dial((Party::Outside, 0), id, Party::Hub(hub), role);
        if let Some(visit) = self.visits.get_mut(&id) {
            visit.conn = Some(conn);
        }
    }

    pub(crate) fn visit_hears(&mut self, id: u64, bytes: &[u8]) {
        let Some(visit) = self.visits.get(&id) else { return };
        let (Some(conn), Ok(Some(message))) = (visit.conn, Control::decode(bytes)) else { return };
        let (errand, hub, network) = (visit.errand.clone(), visit.hub, self.admins[visit.network].network());
        match (message, errand) {
            (Control::HubHello { .. }, errand) => {
                let role = role(&errand);
                let exporter = Exporter(exporter(conn));
                let key = hub_secret(hub).public();
                let proof = match errand {
                    Errand::Upload(_) => Proof::Nothing,
                    Errand::Redeem(number) => {
                        let scope = AttachScope { exporter: &exporter, hub: &key, network: &network, role };
                        let invite = invite(number);
                        Proof::Invite { key: invite.public(), signature: scope.sign_invite(&invite) }
                    }
                };
                self.say(conn, &Control::Attach(Attach { version: VERSION, network, role, proof }));
            }
            (Control::Attached(_), Errand::Upload(bundle)) => {
                let total = bundle.len() as u32;
                for (at, part) in bundle.chunks(MAX_PART).enumerate() {
                    let offset = (at * MAX_PART) as u32;
                    self.say(conn, &Control::PutRoster { network, total, offset, bytes: part.to_vec() });
                }
            }
            (Control::Attached(_), Errand::Redeem(number)) => {
                let claim = Claim::make(&network, &invite(number), &node_secret(number)).encode();
                self.say(conn, &Control::Redeem { network, claim });
            }
            (Control::Stored { .. } | Control::Redeemed { .. }, _) => {
                self.note(Party::Outside, &[1], format_args!("h{hub} has done an errand"));
                self.visits.remove(&id);
                self.close(conn, Side::Dialler);
            }
            (Control::Refused { code, text, .. }, _) => {
                self.note(Party::Outside, &[2], format_args!("h{hub} refuses: {code:?} {text}"));
                self.close(conn, Side::Dialler);
                self.visit_ended(id);
            }
            _ => {}
        }
    }

    /// The stream of an errand ended before it was done.
    pub(crate) fn visit_ended(&mut self, id: u64) {
        self.at(PAUSE, Event::Visit(id));
    }

    fn say(&mut self, conn: ConnId, message: &Control) {
        self.send_message(conn, Side::Dialler, message.encode(), Trail::default());
    }
}

fn role(errand: &Errand) -> Role {
    match errand {
        Errand::Upload(_) => Role::Admin,
        Errand::Redeem(_) => Role::Join,
    }
}

/// Before an errand is tried again.
const PAUSE: std::time::Duration = std::time::Duration::from_secs(2);
/// How often it is tried.
const TRIES: u32 = 30;
