//! The admin's desk of one network: who is a member, and every roster that was ever signed.

use flatlan_roster::{
    Authority, DEFAULT_LIFE, Draft, Expiry, HubRecord, Invite, MemberRecord, NetworkRecord, Record, Records,
    VerifiedRoster,
};
use flatlan_types::{
    AdminSecret, HubSecret, InviteSecret, NetworkId, NodeSecret, NodeSeed, RecoveryKey, UnixTime, VirtualIp,
};

use crate::party::Party;

/// The admin of one network. All networks of a simulation have equal names, addresses and node keys.
pub(crate) struct Admin {
    secret: AdminSecret,
    authority: Authority,
    hubs: Vec<usize>,
    members: Vec<Member>,
    /// By serial, from 1.
    rosters: Vec<VerifiedRoster>,
}

/// A member as the admin knows it.
#[derive(Clone, Copy)]
pub(crate) struct Member {
    /// Its number in the network.
    pub(crate) number: usize,
    /// Its address: the one of this number, which may have been another's.
    pub(crate) address: usize,
    /// It gets its keys by an invite, which this hub redeems.
    pub(crate) invited_at: Option<usize>,
}

impl Member {
    pub(crate) fn new(number: usize) -> Self {
        Self { number, address: number, invited_at: None }
    }
}

impl Admin {
    pub(crate) fn new(network: usize, hubs: Vec<usize>) -> Self {
        let secret = AdminSecret::from_bytes(&numbered(network, 1));
        let recovery = AdminSecret::from_bytes(&numbered(network, 2));
        let authority = Authority::new(secret.public(), RecoveryKey::of(&recovery));
        Self { secret, authority, hubs, members: Vec::new(), rosters: Vec::new() }
    }

    pub(crate) fn network(&self) -> NetworkId {
        self.authority.network()
    }

    pub(crate) fn members(&self) -> &[Member] {
        &self.members
    }

    pub(crate) fn members_mut(&mut self) -> &mut Vec<Member> {
        &mut self.members
    }

    /// The newest roster.
    pub(crate) fn newest(&self) -> Option<&VerifiedRoster> {
        self.rosters.last()
    }

    pub(crate) fn roster(&self, serial: u64) -> Option<&VerifiedRoster> {
        self.rosters.get(usize::try_from(serial).ok()?.checked_sub(1)?)
    }

    /// The serial of the newest roster.
    pub(crate) fn serial(&self) -> u64 {
        self.rosters.len() as u64
    }

    /// Signs what there is.
    pub(crate) fn sign(&mut self, now: UnixTime) {
        let network = NetworkRecord {
            name: "lan".parse().expect("a name"),
            range: "10.77.0.0/16".parse().expect("a prefix"),
            mtu: MTU,
            expiry: Expiry::Warn,
        };
        let hub = |n: &usize| {
            Record::Hub(HubRecord {
                name: format!("hub{n}").parse().expect("a name"),
                key: hub_secret(*n).public(),
                tls: Party::Hub(*n).tls(),
                udp: None,
                region: None,
                weight: 1,
            })
        };
        let member = |member: &Member| {
            let secret = node_secret(member.number);
            Record::Member(MemberRecord {
                ips: vec![address(member.address)],
                keys: member.invited_at.is_none().then(|| secret.public()),
                invite: member.invited_at.map(|hub| Invite {
                    key: invite(member.number).public(),
                    redeemer: hub_secret(hub).public(),
                    expires: now.after(86_400),
                }),
                ..MemberRecord::new(format!("n{}", member.number).parse().expect("a name"))
            })
        };
        let records = std::iter::once(Record::Network(network))
            .chain(self.hubs.iter().map(hub))
            .chain(self.members.iter().map(member));
        let records = Records::compile(records.collect(), &self.network()).expect("the admin's records fit");
        let base = self.rosters.last();
        let draft = Draft { authority: &self.authority, records: &records, base, now, life: DEFAULT_LIFE };
        let roster = VerifiedRoster::sign(draft, &self.secret).expect("the admin's own key");
        self.rosters.push(roster);
    }
}

/// The number of the member that owns an address, as a roster says.
pub(crate) fn owner(roster: &VerifiedRoster, ip: VirtualIp) -> Option<usize> {
    let record = roster.records().members().find(|member| member.ips.contains(&ip))?;
    record.name.as_str().strip_prefix('n')?.parse().ok()
}

/// The address of a member's number.
pub(crate) fn address(number: usize) -> VirtualIp {
    VirtualIp::new([10, 77, (number / 200) as u8, (number % 200) as u8 + 1].into())
}

pub(crate) fn hub_secret(number: usize) -> HubSecret {
    HubSecret::from_bytes(&numbered(number, 3))
}

pub(crate) fn node_seed(number: usize) -> NodeSeed {
    NodeSeed::from_bytes(numbered(number, 4))
}

pub(crate) fn node_secret(number: usize) -> NodeSecret {
    node_seed(number).derive()
}

pub(crate) fn invite(number: usize) -> InviteSecret {
    InviteSecret::from_bytes(&numbered(number, 5))
}

fn numbered(number: usize, salt: u8) -> [u8; 32] {
    let mut bytes = [salt; 32];
    if let Some(place) = bytes.first_chunk_mut() {
        *place = (number as u64).to_be_bytes();
    }
    bytes
}

/// Of every member's interface.
pub(crate) const MTU: u16 = 1400;
