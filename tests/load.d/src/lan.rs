//! Networks with many members, signed here.

use anyhow::{Context as _, Result};
use flatlan_roster::{
    Authority, DEFAULT_LIFE, Draft, Expiry, HubRecord, MemberRecord, NetworkRecord, Ratchet, Record, Records,
    VerifiedRoster,
};
use flatlan_types::{AdminSecret, HubKey, NetworkId, NodeSecret, NodeSeed, RecoveryKey, VirtualIp};

use crate::hub::Site;

/// A network and the secrets of all its members.
#[derive(Debug)]
pub(crate) struct Lan {
    /// Its id.
    pub(crate) id: NetworkId,
    /// What its admin signed.
    pub(crate) roster: Vec<u8>,
    /// The same, as a node remembers it.
    pub(crate) ratchet: Vec<u8>,
    number: u8,
}

impl Lan {
    /// The network of that number, with so many members, on one hub.
    pub(crate) fn new(number: u8, members: usize, hub: &HubKey, site: &Site) -> Result<Self> {
        let (admin, recovery) = (AdminSecret::from_bytes(&[number; 32]), AdminSecret::from_bytes(&[!number; 32]));
        let authority = Authority::new(admin.public(), RecoveryKey::of(&recovery));
        let id = authority.network();
        let network = NetworkRecord {
            name: format!("lan-{number}").parse()?,
            range: "10.77.0.0/16".parse()?,
            mtu: 1400,
            expiry: Expiry::Warn,
        };
        let hub = HubRecord {
            name: "hub".parse()?,
            key: *hub,
            tls: site.tls.to_string().parse()?,
            udp: None,
            region: None,
            weight: 100,
        };
        let mut records = vec![Record::Network(network), Record::Hub(hub)];
        for n in 0..members {
            let keys = Some(secret(number, n).public());
            let ips = vec![Self::address(n)];
            records.push(Record::Member(MemberRecord { ips, keys, ..MemberRecord::new(format!("n{n}").parse()?) }));
        }
        let records = Records::compile(records, &id).context("the roster does not hold")?;
        let now = flatlan_os::clock::unix();
        let draft = Draft { authority: &authority, records: &records, base: None, now, life: DEFAULT_LIFE };
        let signed = VerifiedRoster::sign(draft, &admin).context("the roster cannot be signed")?;
        let mut ratchet = Ratchet::new(id);
        ratchet.advance(&signed).context("the roster is its own first")?;
        Ok(Self { id, roster: signed.encode(), ratchet: ratchet.encode(), number })
    }

    /// A member's keys.
    pub(crate) fn secret(&self, member: usize) -> NodeSecret {
        secret(self.number, member)
    }

    /// A member's address.
    pub(crate) fn address(member: usize) -> VirtualIp {
        let [high, low] = (member as u16 + 1).to_be_bytes();
        VirtualIp::new([10, 77, high, low].into())
    }
}

fn secret(network: u8, member: usize) -> NodeSecret {
    let mut seed = [network; 32];
    seed[..8].copy_from_slice(&(member as u64).to_be_bytes());
    NodeSeed::from_bytes(seed).derive()
}
