//! `flatlan member add` and `flatlan revoke`.

use flatlan_roster::{
    MemberRecord, VerifiedRoster, site_prefix,
    source::{NewKeys, NewMember, wireguard_key, wireguard_text},
};
use flatlan_types::{Name, NodeKeys, Prefix, SessionKey, VirtualIp};

use super::{
    cannot,
    directory::{Access, NetworkDir},
    invite::{UNCHANGED, addresses},
    publish::Publishing,
};
use crate::{
    args::{MemberAddArgs, MemberCommand, RevokeArgs},
    failure::Failure,
    output,
};

/// `flatlan member`.
pub(crate) fn member(command: MemberCommand) -> Result<(), Failure> {
    match command {
        MemberCommand::Add(args) => match (args.stock, &args.via) {
            (true, Some(via)) => add_stock(&args, via),
            (true, None) | (false, _) => add_node(&args),
        },
    }
}

/// `flatlan revoke`.
pub(crate) fn revoke(args: RevokeArgs) -> Result<(), Failure> {
    let what = format!("revoke {}", args.name);
    let mut dir = NetworkDir::open(args.dir.dir.as_deref(), Access::Change)?;
    let publishing = if args.no_publish { None } else { Some(Publishing::prepare(&dir, &what, UNCHANGED)?) };
    if let Some(publishing) = &publishing {
        let mut source = dir.source.clone();
        publishing.fold(&dir, &mut source)?;
        dir.source = source;
    }
    dir.source.remove_member(&args.name).map_err(|e| cannot(&what, &e))?;
    match publishing {
        None => {
            dir.write_source()?;
            let flag = dir.state_flag();
            output::say(format!("{} counts until the roster is published: flatlan network publish{flag}", args.name));
        }
        Some(publishing) => {
            publishing.finish(&mut dir)?;
            output::say(format!("revoked {}", args.name));
        }
    }
    Ok(())
}

fn add_node(args: &MemberAddArgs) -> Result<(), Failure> {
    let keys: NodeKeys = args.key.parse().map_err(|error| {
        let remedy = match wireguard_key(&args.key) {
            Some(_) => "this is a WireGuard public key: add --stock --via MEMBER",
            None => "give what `flatlan join --request` printed on the node",
        };
        Failure::wrong(format!("cannot read --key: {error}: {remedy}"))
    })?;
    let mut dir = NetworkDir::open(args.dir.dir.as_deref(), Access::Change)?;
    let member = add(&mut dir, args, NewKeys::Node(keys))?;
    let hubs = dir.source.records().hubs();
    let mut line = format!("flatlan join --network {}", dir.source.network_id().full());
    for hub in hubs {
        line.push_str(&format!(" --hub {}", hub.tls));
    }
    if hubs.is_empty() {
        output::say("network.toml lists no hub yet: put one in the place of HOST:PORT");
        line.push_str(" --hub HOST:PORT");
    }
    say_added(&dir, &member);
    output::say("on the node:");
    output::result(line);
    Ok(())
}

fn add_stock(args: &MemberAddArgs, via: &Name) -> Result<(), Failure> {
    let session = wireguard_key(&args.key).ok_or_else(|| {
        Failure::wrong(
            "cannot read --key: a WireGuard public key is 44 characters of base64: give what `wg pubkey` printed",
        )
    })?;
    let mut dir = NetworkDir::open(args.dir.dir.as_deref(), Access::Change)?;
    let terminating = terminating(&dir, via);
    if terminating.is_none() && dir.source.member(via).is_some() {
        return Err(Failure::wrong(format!(
            "cannot add {}: {via}, which is to terminate its tunnel, has no key yet: when it has joined: flatlan network pull{}, then again",
            args.name,
            dir.state_flag()
        )));
    }
    let member = add(&mut dir, args, NewKeys::Stock { session, via })?;
    say_added(&dir, &member);
    let (key, endpoint) = terminating.expect("a peer is only added where its `via` is a member");
    let id = dir.source.network_id();
    let own = VirtualIp::of_key(&id, &session);
    let mut ips = member.ips.clone();
    if ips.iter().all(|ip| ip.ip().is_ipv4()) {
        ips.push(own);
    }
    let hosts: Vec<String> = ips.iter().map(|ip| Prefix::host(*ip).to_string()).collect();
    let network = dir.source.network();
    let endpoint = endpoint.map_or_else(
        || format!("# Endpoint = HOST:PORT   ({via} has no `endpoint` in network.toml: put in where its UDP port can be reached)"),
        |endpoint| format!("Endpoint = {endpoint}"),
    );
    output::result(format!(
        "\
[Interface]
# {}, a plain WireGuard peer of network {}
# PrivateKey = (put in the one that belongs to {})
Address = {}
MTU = {}

[Peer]
# {via}
PublicKey = {}
{endpoint}
AllowedIPs = {}, {}
PersistentKeepalive = {KEEPALIVE}",
        member.name,
        network.name,
        wireguard_text(&session),
        hosts.join(", "),
        network.mtu,
        wireguard_text(&key),
        network.range,
        site_prefix(&id),
    ));
    Ok(())
}

fn add(dir: &mut NetworkDir, args: &MemberAddArgs, keys: NewKeys<'_>) -> Result<MemberRecord, Failure> {
    let ips: Vec<VirtualIp> = args.ips.iter().copied().map(VirtualIp::new).collect();
    let member = NewMember {
        name: &args.name,
        ips: &ips,
        routes: &args.routes,
        groups: &args.groups,
        ha: args.ha.as_ref(),
        priority: args.priority,
        endpoint: args.endpoint.as_ref(),
        keys,
    };
    let member = dir.source.add_member(&member).map_err(|e| cannot(&format!("add {}", args.name), &e))?;
    dir.write_source()?;
    Ok(member)
}

fn say_added(dir: &NetworkDir, member: &MemberRecord) {
    let flag = dir.state_flag();
    output::say(format!("added {} ({}); next: flatlan network publish{flag}", member.name, addresses(member)));
}

/// The WireGuard key and the endpoint of the member that terminates a peer's tunnel.
fn terminating(dir: &NetworkDir, via: &Name) -> Option<(SessionKey, Option<String>)> {
    let record = dir.source.member(via)?;
    let endpoint = record.endpoint.as_ref().map(ToString::to_string);
    let of_roster = |roster: &VerifiedRoster| Some(roster.member(roster.by_name(via)?)?.keys.session);
    // an open invite may be redeemed: the roster has the claim
    let claimed = dir.published.as_ref().filter(|_| record.invite.is_some()).and_then(of_roster);
    let key = claimed.or_else(|| record.keys.map(|keys| keys.session))?;
    Some((key, endpoint))
}

/// How often a peer behind NAT shows that it is there, in seconds.
const KEEPALIVE: u16 = 25;
