//! What cannot be signed: each by its full message, as an operator reads it.

use flatlan_roster::{
    Violation, site_prefix,
    source::{NewKeys, NewMember, new_hub},
};
use flatlan_types::{Prefix, VirtualIp};

use crate::world::{World, hub, ip, name, node, prefix, with_key};

/// What `a`, which has 10.1.0.0/16, and `b` come to when this is added to the file.
fn refused(rest: &str) -> String {
    let mut world = World::new();
    let routes = [prefix("10.1.0.0/16")];
    world.add(&NewMember { routes: &routes, ..with_key(&name("a"), 1) });
    let text = format!("{}{rest}", world.source);
    flatlan_roster::Source::parse(&text).expect_err("it was accepted").to_string()
}

fn accepted(rest: &str) {
    let mut world = World::new();
    let routes = [prefix("10.1.0.0/16")];
    world.add(&NewMember { routes: &routes, ..with_key(&name("a"), 1) });
    let text = format!("{}{rest}", world.source);
    flatlan_roster::Source::parse(&text).expect("it was refused");
}

fn b(lines: &str) -> String {
    format!("\n[member.b]\nip = \"10.77.0.2\"\n{lines}\n")
}

#[test]
fn nobody_carries_what_is_nobodys() {
    let cases = [
        ("0.0.0.0/0", "0.0.0.0/0 touches the default route"),
        ("::/0", "::/0 touches the default route"),
        ("0.0.0.0/1", "0.0.0.0/1 touches the unspecified addresses"),
        ("127.0.0.0/8", "127.0.0.0/8 touches loopback"),
        ("127.0.0.1/32", "127.0.0.1/32 touches loopback"),
        ("::1/128", "::1/128 touches the unspecified address and loopback"),
        ("224.0.0.0/24", "224.0.0.0/24 touches multicast"),
        ("128.0.0.0/1", "128.0.0.0/1 touches the link-local addresses"),
        ("255.255.255.255/32", "255.255.255.255/32 touches the reserved and broadcast addresses"),
        ("ff02::/16", "ff02::/16 touches multicast"),
        ("fe80::/64", "fe80::/64 touches the link-local addresses"),
        ("169.254.169.254/32", "169.254.169.254/32 touches the link-local addresses"),
    ];
    for (route, message) in cases {
        assert_eq!(
            refused(&b(&format!("routes = [\"{route}\"]"))),
            format!("line 23: member b: {message}, which no member may carry: choose the prefix of the site's LAN")
        );
    }
    assert_eq!(
        refused(&b("routes = [\"64.0.0.0/7\"]")),
        "line 23: member b: 64.0.0.0/7 is too wide: /8 is the widest that a member may carry"
    );
}

#[test]
fn nobody_carries_the_overlay_or_a_hub() {
    for route in ["10.77.0.0/24", "10.77.0.128/25", "10.77.0.5/32", "10.76.0.0/15", "10.0.0.0/8"] {
        assert_eq!(
            refused(&b(&format!("routes = [\"{route}\"]"))),
            format!(
                "line 23: member b: {route} overlaps the overlay's own addresses 10.77.0.0/24: only prefixes outside it can be routed"
            )
        );
    }
    let site = site_prefix(&World::new().id());
    assert_eq!(
        refused(&b(&format!("routes = [\"{site}\"]"))),
        format!(
            "line 23: member b: {site} overlaps the overlay's own addresses {site}: only prefixes outside it can be routed"
        )
    );
    assert_eq!(
        refused(&b("routes = [\"192.0.2.0/24\"]")),
        "line 23: member b: 192.0.2.0/24 holds 192.0.2.1, the address of hub paris: traffic to the hub would run in circles; carry a narrower prefix"
    );
}

#[test]
fn a_prefix_has_one_owner() {
    for route in ["10.1.0.0/16", "10.1.2.0/24"] {
        assert_eq!(
            refused(&b(&format!("routes = [\"{route}\"]"))),
            format!(
                "line 23: member b: {route} overlaps 10.1.0.0/16 of member a: one owner per prefix; give both the same `ha` group, or list the narrower one under `moved`"
            )
        );
    }
    assert!(
        refused(&b("routes = [\"10.0.0.0/12\"]")).contains("member a: 10.1.0.0/16 overlaps 10.0.0.0/12 of member b")
    );
    assert!(refused(&b("moved = [\"10.1.0.0/16\"]")).contains("overlaps"));
    assert!(refused(&b("routes = [\"10.2.0.0/16\", \"10.2.0.0/16\"]")).contains("overlaps"));
    assert!(refused(&b("ha = \"x\"\nroutes = [\"10.1.0.0/16\"]")).contains("overlaps"));
    accepted(&b("moved = [\"10.1.2.0/24\"]"));
    accepted(&b("routes = [\"10.2.0.0/16\", \"10.2.3.0/24\"]"));
    accepted("ha = \"x\"\n\n[member.b]\nip = \"10.77.0.2\"\nha = \"x\"\nroutes = [\"10.1.0.0/16\"]\n");
    accepted("ha = \"x\"\n\n[member.b]\nip = \"10.77.0.2\"\nha = \"x\"\nroutes = [\"10.1.2.0/24\"]\n");
}

#[test]
fn addresses_are_of_the_range_and_of_one_member() {
    let with_ip = |ip: &str| refused(&format!("\n[member.b]\nip = \"{ip}\"\n"));
    assert_eq!(
        with_ip("10.78.0.1"),
        "line 23: member b: 10.78.0.1 is outside the network's range 10.77.0.0/24: choose one inside, or leave it out to get the next free one"
    );
    assert_eq!(with_ip("10.77.0.1"), "line 23: member b: 10.77.0.1 is already the address of member a: choose another");
    for ip in ["10.77.0.0", "10.77.0.255"] {
        assert_eq!(with_ip(ip), format!("line 23: member b: {ip} cannot be a member's address: choose another"));
    }
    assert_eq!(with_ip("fd00::1"), "line 23: member b: it has no IPv4 address: give it an ip of 10.77.0.0/24");
    let of_key = VirtualIp::of_key(&World::new().id(), &node(1).public().session);
    let taken = refused(&format!("\n[member.b]\nip = [\"10.77.0.2\", \"{of_key}\"]\n"));
    assert_eq!(taken, format!("line 23: member b: {of_key} is already the address of member a: choose another"));
}

#[test]
fn every_key_is_one_members() {
    let key = node(1).public().full();
    assert_eq!(
        refused(&b(&format!("key = \"{key}\""))),
        "line 23: member b: its key is already that of member a: every member needs a key of its own"
    );
    let mut world = World::new();
    let twin = new_hub(name("rome"), hub(1).public(), "192.0.2.2:443".parse().unwrap());
    assert_eq!(
        world.source.add_hub(&twin).unwrap_err().to_string(),
        "hub rome: its key is already that of hub paris: run `flatlan hub init` on each hub's own machine"
    );
}

#[test]
fn hubs_and_endpoints_are_outside_the_overlay() {
    let mut world = World::new();
    let inside = new_hub(name("rome"), hub(2).public(), "10.77.0.9:443".parse().unwrap());
    assert_eq!(
        world.source.add_hub(&inside).unwrap_err().to_string(),
        "hub rome: its address 10.77.0.9 lies inside the network's range 10.77.0.0/24: give the hub's address outside the overlay"
    );
    assert_eq!(
        refused(&b("endpoint = \"10.77.0.9:1\"")),
        "line 23: member b: its endpoint lies inside the overlay (10.77.0.0/24): give its address outside the overlay"
    );
}

#[test]
fn a_stock_peer_needs_a_member_that_terminates_it() {
    let mut world = World::new();
    world.add(&with_key(&name("a"), 1));
    let session = node(5).public().session;
    let (phone, a, other) = (name("phone"), name("a"), name("other"));
    let stock = |via| NewMember { keys: NewKeys::Stock { session, via }, ..NewMember::named(&phone) };
    assert_eq!(
        world.source.add_member(&stock(&other)).unwrap_err().to_string(),
        "member phone: `via` names other, which is no member that runs flatlan"
    );
    world.add(&stock(&a));
    let roster = world.sign(None);
    let (a, phone) = (roster.by_name(&a).unwrap(), roster.by_name(&phone).unwrap());
    let its_ip = ip("10.77.0.2").ip();
    assert_eq!(roster.owner_table(None).owner(its_ip), Some(a));
    assert_eq!(roster.owner_table(Some(a)).owner(its_ip), Some(phone));
    assert!(world.source.remove_member(&name("a")).is_err());
    assert_eq!(world.verify(&roster.encode()).unwrap(), roster);
}

#[test]
fn members_of_an_ha_group_own_their_prefixes_together() {
    let world = World::new();
    let text = format!(
        "{}\n[member.a]\nip = \"10.77.0.1\"\nkey = \"{}\"\nha = \"x\"\nroutes = [\"10.1.0.0/16\"]\n\
         \n[member.b]\nip = \"10.77.0.2\"\nkey = \"{}\"\nha = \"x\"\nroutes = [\"10.1.0.0/16\", \"10.1.2.0/24\"]\n",
        world.source,
        node(1).public().full(),
        node(2).public().full()
    );
    let source = flatlan_roster::Source::parse(&text).unwrap();
    let roster = source.sign(None, &world.admin, crate::world::NOW).unwrap();
    let table = roster.owner_table(None);
    let (a, b) = (roster.by_name(&name("a")).unwrap(), roster.by_name(&name("b")).unwrap());
    assert_eq!(table.owners("10.1.9.9".parse().unwrap()), [a, b]);
    assert_eq!(table.owners("10.1.2.3".parse().unwrap()), [a, b]);
    assert!(!table.owns(a, ip("10.77.0.2").ip()));
}

#[test]
fn the_range_is_a_usable_ipv4_prefix() {
    let world = World::new();
    let create = |range: &str| {
        let (admin, recovery) = (world.admin.public(), *world.authority().recovery());
        flatlan_roster::Source::create(&name("x"), prefix(range), &admin, &recovery)
    };
    for range in ["0.0.0.0/0", "10.0.0.0/7", "127.0.0.0/8", "10.0.0.0/31", "fd00::/64", "224.0.0.0/8"] {
        assert_eq!(
            create(range).unwrap_err().to_string(),
            format!(
                "line 4: network: {range} cannot be the network's range: choose an IPv4 prefix from /8 to /30 of private addresses, such as 10.77.0.0/16"
            )
        );
    }
    assert!(create("10.0.0.0/30").is_ok());
}

#[test]
fn the_verdict_does_not_depend_on_order() {
    let id = World::new().id();
    let site: Prefix = site_prefix(&id);
    assert_eq!(site.length(), 48);
    let violation = Violation::Mtu { got: 9 };
    assert_eq!(violation.to_string(), "mtu 9 is not from 1280 to 9000");
}
