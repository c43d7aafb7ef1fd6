//! A small network, made anew for every test from fixed seeds.

use flatlan_roster::{
    Authority, Claim, CountersignedClaim, Ratchet, Source, VerifiedRoster, VerifyError,
    source::{NewInvite, NewKeys, NewMember, Replace, new_hub},
};
use flatlan_types::{
    AdminSecret, HubSecret, InviteSecret, Name, NetworkId, NodeSecret, NodeSeed, Prefix, RecoveryKey, UnixTime,
    VirtualIp,
};

pub(crate) const NOW: UnixTime = UnixTime(1_770_000_000);

pub(crate) struct World {
    pub(crate) admin: AdminSecret,
    pub(crate) recovery: AdminSecret,
    pub(crate) source: Source,
}

impl World {
    /// A network with one hub, `paris`, and no members.
    pub(crate) fn new() -> Self {
        Self::seeded(1)
    }

    pub(crate) fn seeded(seed: u8) -> Self {
        let (admin, recovery) = (AdminSecret::from_bytes(&[seed; 32]), AdminSecret::from_bytes(&[seed + 1; 32]));
        let range = prefix("10.77.0.0/24");
        let mut source = Source::create(&name("lab"), range, &admin.public(), &RecoveryKey::of(&recovery)).unwrap();
        source.add_hub(&new_hub(name("paris"), hub(1).public(), "192.0.2.1:443".parse().unwrap())).unwrap();
        Self { admin, recovery, source }
    }

    /// The same with a member `a` that has a key and a route, and `b` that is invited.
    pub(crate) fn with_two() -> Self {
        let mut world = Self::new();
        let routes = [prefix("192.168.7.0/24")];
        world.add(&NewMember { routes: &routes, ..with_key(&name("a"), 1) });
        world.invite("b", 1, Replace::No);
        world
    }

    pub(crate) fn add(&mut self, member: &NewMember<'_>) {
        self.source.add_member(member).unwrap();
    }

    /// Opens an invite whose secret is of `seed`, for a day.
    pub(crate) fn invite(&mut self, member: &str, seed: u8, replace: Replace) {
        let name = name(member);
        let key = invite(seed).public();
        let member = NewMember::named(&name);
        let invite = NewInvite { member, key, expires: NOW.after(86_400), hub: None, replace };
        self.source.invite(&invite).unwrap();
    }

    pub(crate) fn sign(&self, base: Option<&VerifiedRoster>) -> VerifiedRoster {
        self.source.sign(base, &self.admin, NOW).unwrap()
    }

    pub(crate) fn id(&self) -> NetworkId {
        self.source.network_id()
    }

    pub(crate) fn ratchet(&self) -> Ratchet {
        Ratchet::new(self.id())
    }

    pub(crate) fn verify(&self, bytes: &[u8]) -> Result<VerifiedRoster, VerifyError> {
        VerifiedRoster::verify(bytes, &self.ratchet(), None)
    }

    pub(crate) fn claim(&self, invite_seed: u8, node_seed: u8) -> Claim {
        Claim::make(&self.id(), &invite(invite_seed), &node(node_seed))
    }

    /// A claim that hub 1 countersigned without asking any roster.
    pub(crate) fn countersigned(&self, invite_seed: u8, node_seed: u8, time: UnixTime) -> CountersignedClaim {
        let bytes = crate::forge::countersign(&self.claim(invite_seed, node_seed), &hub(1), time);
        CountersignedClaim::decode(&bytes, &self.id()).unwrap()
    }

    pub(crate) fn authority(&self) -> &Authority {
        self.source.authority()
    }
}

pub(crate) fn name(text: &str) -> Name {
    text.parse().unwrap()
}

pub(crate) fn prefix(text: &str) -> Prefix {
    text.parse().unwrap()
}

pub(crate) fn ip(text: &str) -> VirtualIp {
    VirtualIp::new(text.parse().unwrap())
}

pub(crate) fn hub(seed: u8) -> HubSecret {
    HubSecret::from_bytes(&[100 + seed; 32])
}

pub(crate) fn invite(seed: u8) -> InviteSecret {
    InviteSecret::from_bytes(&[150 + seed; 32])
}

pub(crate) fn node(seed: u8) -> NodeSecret {
    NodeSeed::from_bytes([200 + seed; 32]).derive()
}

pub(crate) fn with_key(name: &Name, seed: u8) -> NewMember<'_> {
    NewMember { keys: NewKeys::Node(node(seed).public()), ..NewMember::named(name) }
}
