//! network.toml: read, edited, compared.

use flatlan_roster::{
    Source,
    source::{NewInvite, NewMember, Replace, new_hub, plan},
};
use flatlan_types::HostPort;

use crate::world::{NOW, World, hub, invite, ip, name, node, prefix, with_key};

/// A file as someone keeps it: comments, blank lines, an order and a layout of his own.
fn by_hand() -> (World, String) {
    let world = World::new();
    let keys: Vec<String> = (1..4).map(|seed| node(seed).public().full()).collect();
    let text = format!(
        r#"# our network
{network}
# ---- sites ----

# the office; ask Ana
[member.office]   # first floor
ip = "10.77.0.10" # never changes
key = "{}"
routes = [
    "192.168.7.0/24", # LAN
    "192.168.8.0/24",
]

# ---- laptops ----

# Bo's
[member.bo]
ip = '10.77.0.11'
key   =   "{}" # since May
groups = ["staff"]

# Cy's
[member.cy]
ip = "10.77.0.12"
# she wants a new one
key = "{}"

# the end
"#,
        keys[0],
        keys[1],
        keys[2],
        network = world.source
    );
    (World { source: Source::parse(&text).unwrap(), ..World::new() }, text)
}

#[test]
fn a_priority_in_an_ha_group_is_written_read_and_shown() {
    let (world, text) = by_hand();
    let mut source = world.source;
    let (one, two, group) = (name("g1"), name("g2"), name("pair"));
    let routes = [prefix("192.168.50.0/24")];
    for (number, (member, priority)) in (20..).zip([(&one, Some(10)), (&two, None)]) {
        let ips = [ip(&format!("10.77.0.{number}"))];
        let new = NewMember { ips: &ips, routes: &routes, ha: Some(&group), priority, ..NewMember::named(member) };
        assert_eq!(source.add_member(&new).unwrap().priority, priority);
    }
    assert!(source.to_string().contains("priority = 10\n"));
    assert_eq!(Source::parse(&source.to_string()).unwrap().member(&one).unwrap().priority, Some(10));
    let before = Source::parse(&text).unwrap();
    let shown: Vec<String> = plan(Some(before.records()), source.records()).iter().map(ToString::to_string).collect();
    assert!(shown.iter().any(|line| line.contains("g1") && line.contains("priority 10")), "{shown:?}");
    for wrong in ["-1", "70000", "\"high\""] {
        assert!(Source::parse(&source.to_string().replace("priority = 10", &format!("priority = {wrong}"))).is_err());
    }
}

fn without(text: &str, gone: &[&str]) -> String {
    let mut text = text.to_owned();
    for part in gone {
        assert_eq!(text.matches(part).count(), 1, "{part:?}");
        text = text.replacen(part, "", 1);
    }
    text
}

#[test]
fn a_file_that_is_read_and_not_edited_is_the_same() {
    let (world, text) = by_hand();
    assert_eq!(world.source.to_string(), text);
}

#[test]
fn adding_a_member_leaves_every_other_line_as_it_is() {
    let (mut world, text) = by_hand();
    let (dee, groups) = (name("dee"), [name("staff")]);
    let endpoint: HostPort = "dee.example.net:51820".parse().unwrap();
    let routes = [prefix("10.9.0.0/16")];
    let dee = NewMember { groups: &groups, routes: &routes, endpoint: Some(&endpoint), ..with_key(&dee, 9) };
    let record = world.source.add_member(&dee).unwrap();
    assert_eq!(record.ips, [ip("10.77.0.1")]);
    let added = format!(
        "\n[member.dee]\nip = \"10.77.0.1\"\nroutes = [\"10.9.0.0/16\"]\ngroups = [\"staff\"]\n\
         endpoint = \"dee.example.net:51820\"\nkey = \"{}\"\n",
        node(9).public().full()
    );
    assert_eq!(without(&world.source.to_string(), &[&added]), text);
}

#[test]
fn a_hub_is_added_and_removed_without_a_trace() {
    let (mut world, text) = by_hand();
    let mut rome = new_hub(name("rome"), hub(2).public(), "rome.example.net:443".parse().unwrap());
    rome.udp = Some("rome.example.net:51820".parse().unwrap());
    rome.region = Some(name("south"));
    rome.weight = 7;
    world.source.add_hub(&rome).unwrap();
    assert_eq!(world.source.hub(&rome.name), Some(&rome));
    let at = |what: &str| world.source.to_string().find(what).unwrap();
    assert!(at("[hub.paris]") < at("[hub.rome]") && at("[hub.rome]") < at("[member.office]"));
    assert!(
        world.source.add_hub(&rome).unwrap_err().to_string().starts_with("hub rome: it is already in network.toml")
    );
    world.source.remove_hub(&rome.name).unwrap();
    assert_eq!(world.source.to_string(), text);
    assert_eq!(world.source.remove_hub(&rome.name).unwrap_err().to_string(), "hub rome: it is not in network.toml");
}

#[test]
fn removing_an_entry_takes_its_own_comment_and_no_other() {
    let (mut world, text) = by_hand();
    world.source.remove_member(&name("bo")).unwrap();
    let gone = format!(
        "# Bo's\n[member.bo]\nip = '10.77.0.11'\nkey   =   \"{}\" # since May\ngroups = [\"staff\"]\n\n",
        node(2).public().full()
    );
    assert_eq!(world.source.to_string(), without(&text, &[&gone]));
    world.source.remove_member(&name("cy")).unwrap();
    let left = world.source.to_string();
    for comment in ["# our network", "# ---- sites ----", "# first floor", "# LAN", "# ---- laptops ----", "# the end"]
    {
        assert_eq!(left.matches(comment).count(), 1, "{comment} in\n{left}");
    }
    assert!(!left.contains("# Cy's"));
}

#[test]
fn replacing_and_folding_touch_only_their_lines() {
    let (mut world, text) = by_hand();
    world.invite("bo", 3, Replace::Yes);
    let line = world.source.to_string().lines().find(|line| line.starts_with("invite")).unwrap().to_owned();
    assert_eq!(
        line,
        format!(
            "invite = {{ key = \"{}\", expires = 2026-02-03T02:40:00Z, hub = \"paris\" }}",
            invite(3).public().full()
        )
    );
    assert_eq!(world.source.to_string().replace(&format!("{line}\n"), ""), text);
    let claimed = world.sign(None).with_claims([world.countersigned(3, 8, NOW)]).unwrap();
    world.source.fold(&claimed).unwrap();
    let expected = text.replace(&node(2).public().full(), &node(8).public().full());
    assert_eq!(world.source.to_string(), expected);
}

#[test]
fn a_folded_key_stands_where_the_invite_stood() {
    let (mut world, text) = by_hand();
    world.invite("dee", 3, Replace::No);
    let text_with_comment = world
        .source
        .to_string()
        .replace("[member.dee]\n", "[member.dee]\n# her new phone\n")
        .replace(" }\n", " } # open\n");
    world.source = Source::parse(&text_with_comment).unwrap();
    let claimed = world.sign(None).with_claims([world.countersigned(3, 8, NOW)]).unwrap();
    world.source.fold(&claimed).unwrap();
    let added =
        format!("\n[member.dee]\n# her new phone\nip = \"10.77.0.1\"\nkey = \"{}\" # open\n", node(8).public().full());
    assert_eq!(without(&world.source.to_string(), &[&added]), text);
}

#[test]
fn an_invite_is_cancelled_without_a_trace() {
    let (mut world, text) = by_hand();
    world.invite("dee", 3, Replace::No);
    world.invite("bo", 4, Replace::Yes);
    assert_eq!(
        world.source.remove_hub(&name("paris")).unwrap_err().to_string(),
        "hub paris: it is the hub that redeems the open invite of bo: if bo has joined, flatlan network pull; else flatlan invite bo --replace --hub OTHER, or flatlan invite --cancel bo"
    );
    world.source.cancel_invite(&name("dee")).unwrap();
    world.source.cancel_invite(&name("bo")).unwrap();
    assert_eq!(world.source.to_string(), text);
    assert_eq!(world.source.cancel_invite(&name("bo")).unwrap_err().to_string(), "member bo: it has no open invite");
}

#[test]
fn recovery_is_written_into_the_file() {
    let (mut world, text) = by_hand();
    let authority = world.authority().recover(hub_admin(), &world.recovery).unwrap();
    world.source.set_authority(&authority).unwrap();
    assert_eq!(Source::parse(&world.source.to_string()).unwrap().authority(), &authority);
    let line = format!("recovered = [\"{}\"]\n", authority.certificates()[0].to_text());
    assert_eq!(without(&world.source.to_string(), &[&line]), text);
}

fn hub_admin() -> flatlan_types::AdminKey {
    flatlan_types::AdminSecret::from_bytes(&[77; 32]).public()
}

#[test]
fn who_was_invited_or_has_joined_is_not_invited_twice() {
    let (mut world, _) = by_hand();
    let mut again = |member: &str, hub: Option<&str>, replace| {
        let (member, hub) = (name(member), hub.map(name));
        let member = NewMember::named(&member);
        let new = NewInvite { member, key: invite(9).public(), expires: NOW, hub: hub.as_ref(), replace };
        world.source.invite(&new).map(|_| ()).map_err(|e| e.to_string())
    };
    again("dee", None, Replace::No).unwrap();
    let refused = [
        (
            again("bo", None, Replace::No),
            "member bo: it has joined: a new token for a new machine, with the same addresses: flatlan invite bo --replace",
        ),
        (
            again("dee", None, Replace::No),
            "member dee: it has an open invite: flatlan invite dee --replace makes that token void and prints another",
        ),
        (
            again("eve", None, Replace::Yes),
            "member eve: --replace is for a member that is in network.toml: without it, this invites a new one",
        ),
        (again("eve", Some("rome"), Replace::No), "hub rome: it is not in network.toml"),
    ];
    for (got, expected) in refused {
        assert_eq!(got, Err(expected.to_owned()));
    }
}

#[test]
fn without_a_hub_nobody_is_invited() {
    let mut world = World::new();
    world.source.remove_hub(&name("paris")).unwrap();
    assert!(!world.source.to_string().contains("hub"));
    let b = name("b");
    let member = NewMember::named(&b);
    let new = NewInvite { member, key: invite(1).public(), expires: NOW, hub: None, replace: Replace::No };
    assert_eq!(
        world.source.invite(&new).unwrap_err().to_string(),
        "member b: there is no hub that could redeem an invite: flatlan network hub add NAME --key HUBKEY --tls HOST:PORT"
    );
}

#[test]
fn addresses_are_given_out_lowest_first_until_there_are_none() {
    let world = World::new();
    let (admin, recovery) = (world.admin.public(), *world.authority().recovery());
    let mut source = Source::create(&name("tiny"), prefix("10.0.0.0/29"), &admin, &recovery).unwrap();
    for seed in 1..=6 {
        let record = source.add_member(&with_key(&name(&format!("m{seed}")), seed)).unwrap();
        assert_eq!(record.ips, [ip(&format!("10.0.0.{seed}"))]);
    }
    assert_eq!(
        source.add_member(&with_key(&name("m7"), 7)).unwrap_err().to_string(),
        "member m7: no address of 10.0.0.0/29 is free: remove members, or make a network with a wider range"
    );
    source.remove_member(&name("m3")).unwrap();
    assert_eq!(source.next_free_ip(), Some(ip("10.0.0.3")));
}

#[test]
fn what_is_wrong_in_a_file_is_named_with_its_line_and_the_way_out() {
    let (_, text) = by_hand();
    let cases = [
        (
            "ip = '10.77.0.11'",
            "ipp = 'x'",
            "line 34: member bo: unknown key `ipp`: known here are ip, key, invite, routes, moved, groups, endpoint, ha, priority, wireguard, via",
        ),
        (
            "ip = '10.77.0.11'",
            "ip = '10.77.0.1111'",
            "line 34: member bo: `ip`: an address is such as 10.77.0.5 or fd00::5",
        ),
        (
            "ip = '10.77.0.11'",
            "ip = 7",
            "line 34: member bo: `ip` must be a string or a list of strings, such as [\"a\", \"b\"]",
        ),
        ("ip = '10.77.0.11'", "", "line 33: member bo: it has no IPv4 address: give it an ip of 10.77.0.0/24"),
        ("[member.bo]", "[member.Bo]", "line 33: member Bo: `name`: a name is made of a-z, 0-9 and inner dashes"),
        ("[member.bo]", "[members.bo]", "line 33: unknown key `members`: known here are hub, member, network"),
        (
            "\"192.168.8.0/24\"",
            "\"192.168.8.1/24\"",
            "line 25: member office: `routes`: the prefix has host bits set; its network address is 192.168.8.0",
        ),
        (
            "tls = \"192.0.2.1:443\"",
            "tls = \"192.0.2.1\"",
            "line 17: hub paris: `tls`: HOST:PORT needs a port from 1 to 65535",
        ),
        ("tls = \"192.0.2.1:443\"", "", "line 15: hub paris: `tls` is missing: HOST:PORT where the hub takes streams"),
        (
            "range = \"10.77.0.0/24\"",
            "range = \"10.77.0.0/24\"\nmtu = 70000",
            "line 11: network: `mtu`: the number is out of range",
        ),
        (
            "range = \"10.77.0.0/24\"",
            "range = \"10.77.0.0/24\"\nmtu = 900",
            "line 5: network: mtu 900 is not from 1280 to 9000",
        ),
        (
            "range = \"10.77.0.0/24\"",
            "range = \"10.77.0.0/24\"\nexpiry = \"never\"",
            "line 11: network: `expiry`: it is \"warn\" or \"refuse-new\"",
        ),
        (
            "range = \"10.77.0.0/24\"",
            "range = \"10.77.0.0/24\"\nvalid = \"1y\"",
            "line 11: network: `valid`: a span is a number and one of s, m, h, d, such as 24h, and at most 3650d",
        ),
        (
            "groups = [\"staff\"]",
            "via = \"office\"",
            "line 36: member bo: `via` is for plain WireGuard peers: give the peer's public key as `wireguard`, not as `key`",
        ),
        (
            "groups = [\"staff\"]",
            "wireguard = \"x\"",
            "line 36: member bo: `wireguard`: a WireGuard public key is 44 characters of base64, as `wg pubkey` prints it",
        ),
        ("[network]", "[network", "line 5: "),
    ];
    for (from, to, message) in cases {
        assert_eq!(text.matches(from).count(), 1, "{from}");
        let error = Source::parse(&text.replacen(from, to, 1)).expect_err(to).to_string();
        assert!(error.starts_with(message), "{error}\n{message}");
        assert!(!error.contains('\n'), "{error:?}");
    }
    let other = World::seeded(5).id().full();
    let wrong_id = text.replace(&World::new().id().full(), &other);
    assert_eq!(
        Source::parse(&wrong_id).unwrap_err().to_string(),
        "line 7: network: `id` does not belong to the keys in `admin` and `recovery`: restore the line that `flatlan network create` wrote"
    );
    assert_eq!(
        Source::parse("").unwrap_err().to_string(),
        "line 1: `[network]` is missing: flatlan network create writes it"
    );
}

#[test]
fn an_edit_that_breaks_a_rule_changes_nothing() {
    let (mut world, text) = by_hand();
    let routes = [prefix("192.168.7.0/24")];
    let dee = name("dee");
    let clash = NewMember { routes: &routes, ..with_key(&dee, 9) };
    assert!(world.source.add_member(&clash).is_err());
    assert_eq!(world.source.to_string(), text);
}

#[test]
fn tables_written_another_way_are_read_too() {
    let world = World::new();
    let (key, open) = (node(1).public().full(), invite(1).public().full());
    let text = format!(
        "{}\n[member]\na = {{ ip = \"10.77.0.1\", key = \"{key}\" }}\nb.ip = [\"10.77.0.2\", \"fd00::2\"]\n\
         [member.c]\nip = \"10.77.0.3\"\n[member.c.invite]\nkey = \"{open}\"\nexpires = 2026-02-03T03:40:00+01:00\nhub = \"paris\"\n",
        world.source
    );
    let mut world = World { source: Source::parse(&text).unwrap(), ..world };
    assert_eq!(world.source.member(&name("b")).unwrap().ips, [ip("10.77.0.2"), ip("fd00::2")]);
    assert_eq!(world.source.member(&name("c")).unwrap().invite.unwrap().expires, NOW.after(86_400));
    let claimed = world.sign(None).with_claims([world.countersigned(1, 8, NOW)]).unwrap();
    world.source.fold(&claimed).unwrap();
    assert_eq!(world.source.member(&name("c")).unwrap().keys, Some(node(8).public()));
    assert_eq!(world.source.member(&name("c")).unwrap().invite, None);
    world.add(&with_key(&name("d"), 9));
    world.source.remove_member(&name("c")).unwrap();
    world.source.remove_member(&name("a")).unwrap();
    world.source.remove_member(&name("b")).unwrap();
    assert_eq!(world.source.records().members().count(), 1);
}

#[test]
fn a_plan_says_what_would_change() {
    let (mut world, _) = by_hand();
    let before = world.sign(None);
    assert_eq!(plan(Some(before.records()), world.source.records()), []);
    let fresh: Vec<String> = plan(None, world.source.records()).iter().map(ToString::to_string).collect();
    assert_eq!(fresh.len(), 5);
    assert_eq!(fresh[0], "+ network lab: range 10.77.0.0/24, mtu 1400, expiry warn");
    assert_eq!(fresh[2], format!("+ member bo: ip 10.77.0.11, group staff, key {}", node(2).public().id));

    world.source.remove_member(&name("cy")).unwrap();
    world.invite("dee", 3, Replace::No);
    let text = world.source.to_string();
    let text = text.replace("'10.77.0.11'", "'10.77.0.99'").replace("[\"staff\"]", "[\"staff\", \"night\"]");
    let text = text.replace("    \"192.168.8.0/24\",\n", "").replace("192.0.2.1:443", "192.0.2.9:443");
    world.source = Source::parse(&text).unwrap();
    let lines: Vec<String> =
        plan(Some(before.records()), world.source.records()).iter().map(ToString::to_string).collect();
    assert_eq!(
        lines,
        [
            "~ hub paris: tls 192.0.2.1:443 -> 192.0.2.9:443".to_owned(),
            "~ member bo: ip 10.77.0.11 -> 10.77.0.99, new group night".to_owned(),
            format!("- member cy: ip 10.77.0.12, key {}", node(3).public().id),
            format!(
                "+ member dee: ip 10.77.0.1, invited until 2026-02-03T02:40:00Z by hub paris ({})",
                invite(3).public()
            ),
            "~ member office: no longer route 192.168.8.0/24".to_owned(),
        ]
    );
}

#[test]
fn no_secret_is_written_into_the_file() {
    let mut world = World::with_two();
    world.invite("b", 4, Replace::Yes);
    let text = world.source.to_string();
    let secret = world.source.token(&name("b"), invite(4)).unwrap().to_text().unwrap();
    assert!(!text.contains(secret.as_str()));
    assert!(world.source.token(&name("b"), invite(5)).is_err());
    assert!(world.source.token(&name("a"), invite(4)).is_err());
}

#[test]
fn commented_out_settings_stay_in_their_table() {
    let world = World::with_two();
    let text = world.source.to_string();
    let at = |what: &str| text.find(what).unwrap_or_else(|| panic!("{what} in\n{text}"));
    assert!(at("range =") < at("# mtu") && at("# mtu") < at("# expiry") && at("# expiry") < at("[hub.paris]"));
    let uncommented =
        text.replace("# mtu = 1400", "mtu = 1300").replace("# expiry = \"warn\"", "expiry = \"refuse-new\"");
    let source = Source::parse(&uncommented.replace("# valid = \"180d\"", "valid = \"7d\"")).unwrap();
    assert_eq!((source.network().mtu, source.life().to_string()), (1300, "7d".to_owned()));
}

/// The office carries 192.168.7.0/24 and 192.168.8.0/24; bo and cy nothing.
fn carried(world: &World, member: &str) -> (Vec<String>, Vec<String>) {
    let member = world.source.member(&name(member)).unwrap();
    let texts = |prefixes: &[flatlan_types::Prefix]| prefixes.iter().map(ToString::to_string).collect();
    (texts(&member.routes), texts(&member.moved))
}

#[test]
fn one_address_moves_and_its_route_stays_where_it_was() {
    let (mut world, text) = by_hand();
    let address = prefix("192.168.7.5/32");
    let moved = world.source.rehome(address, &name("bo")).unwrap();
    assert_eq!(
        (moved.from, moved.within),
        (vec![name("office")], Some((prefix("192.168.7.0/24"), vec![name("office")])))
    );
    assert_eq!(carried(&world, "bo"), (vec![], vec!["192.168.7.5/32".to_owned()]));
    assert_eq!(carried(&world, "office").0, ["192.168.7.0/24", "192.168.8.0/24"]);
    assert_eq!(without(&world.source.to_string(), &["moved = [\"192.168.7.5/32\"]\n"]), text);
    // on to another, and home again: nothing is left of it
    let moved = world.source.rehome(address, &name("cy")).unwrap();
    assert_eq!(moved.from, [name("bo")]);
    assert_eq!(carried(&world, "bo").1, [""; 0]);
    world.source.rehome(address, &name("office")).unwrap();
    assert_eq!(world.source.to_string(), text);
}

#[test]
fn a_whole_route_goes_from_one_members_routes_to_the_others() {
    let (mut world, text) = by_hand();
    let moved = world.source.rehome(prefix("192.168.8.0/24"), &name("bo")).unwrap();
    assert_eq!((&moved.from[..], &moved.within), (&[name("office")][..], &None));
    assert_eq!(carried(&world, "office").0, ["192.168.7.0/24"]);
    assert_eq!(carried(&world, "bo"), (vec!["192.168.8.0/24".to_owned()], vec![]));
    assert!(world.source.to_string().contains("\"192.168.7.0/24\", # LAN"));
    world.source.undo_rehoming(&moved).unwrap();
    assert_eq!(carried(&world, "office").0, ["192.168.7.0/24", "192.168.8.0/24"]);
    assert_eq!(carried(&world, "bo"), (vec![], vec![]));
    assert_eq!(text.lines().count(), world.source.to_string().lines().count() + 1);
}

#[test]
fn a_part_of_what_was_moved_moves_on_and_comes_home_again() {
    let (mut world, _) = by_hand();
    let (half, address) = (prefix("192.168.7.0/25"), prefix("192.168.7.5/32"));
    world.source.rehome(half, &name("bo")).unwrap();
    let moved = world.source.rehome(address, &name("office")).unwrap();
    assert_eq!(moved.from, [name("bo")]);
    assert_eq!(carried(&world, "office").1, ["192.168.7.5/32"], "bo has the half around it");
    world.source.rehome(address, &name("bo")).unwrap();
    assert_eq!((carried(&world, "office").1.len(), carried(&world, "bo").1.len()), (0, 2));
}

#[test]
fn a_move_that_cannot_be_says_why_and_changes_nothing() {
    let (mut world, text) = by_hand();
    let refused = |world: &mut World, prefix_: &str, to: &str, words: &str| {
        let error = world.source.rehome(prefix(prefix_), &name(to)).unwrap_err();
        assert_eq!(error.to_string(), words);
        assert_eq!(world.source.to_string(), text);
    };
    refused(&mut world, "192.168.7.5/32", "dee", "member dee: it is not in network.toml");
    refused(&mut world, "192.168.7.5/32", "office", "member office: it carries 192.168.7.5/32 already");
    let nobody = "member bo: nobody carries 192.168.9.5/32: list it under its `routes` in network.toml";
    refused(&mut world, "192.168.9.5/32", "bo", nobody);
}

#[test]
fn a_move_is_not_taken_back_over_someones_edit() {
    let (mut world, _) = by_hand();
    let moved = world.source.rehome(prefix("192.168.7.5/32"), &name("bo")).unwrap();
    world.source.rehome(prefix("192.168.7.6/32"), &name("bo")).unwrap();
    let before = world.source.to_string();
    let error = world.source.undo_rehoming(&moved).unwrap_err().to_string();
    assert_eq!(error, "member bo: its `routes` or `moved` were changed since 192.168.7.5/32 moved: edit network.toml");
    assert_eq!(world.source.to_string(), before);
}
