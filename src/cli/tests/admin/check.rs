//! `flatlan check`.

use super::machine::{Machine, NETWORK};

#[test]
fn a_good_file_of_each_kind_is_recognised() {
    let machine = Machine::with_network();
    let good = "lab.flatlan/network.toml: good: network lab with 0 hubs and 0 members";
    assert_eq!(machine.good(&["check", NETWORK]), good);
    machine.write("node.toml", "state = \"/var/lib/flatlan\"\nport = 0\ntransport = \"tcp\"\n");
    let good = "node.toml: good: a node's configuration, state in /var/lib/flatlan";
    assert_eq!(machine.good(&["check", "node.toml"]), good);
    machine.write("hub.toml", "tls = \"192.0.2.1:443\"\nallow_any = true\n");
    assert_eq!(machine.good(&["check", "hub.toml"]), "hub.toml: good: a hub's configuration, TLS on 192.0.2.1:443");
    machine.write("hub.toml", include_str!("../../../../deploy/hub.example.toml"));
    let nothing = "hub.toml: good: it sets nothing: every setting has its default";
    assert_eq!(machine.good(&["check", "hub.toml"]), nothing);
    let json = machine.good(&["check", "network.toml", "--state", "lab.flatlan", "--json"]);
    assert!(json.contains("\"kind\":\"network\"") && json.contains("\"good\":true"), "{json}");
}

#[test]
fn a_mistake_is_told_with_its_line() {
    let machine = Machine::with_network();
    machine.edit("[network]", "[network]\nmtu = 10");
    let mtu = "lab.flatlan/network.toml: line 4: network: mtu 10 is not from 1280 to 9000";
    machine.refused(&["check", NETWORK], 2, mtu);
    machine.write("node.toml", "# of the office\nport = 70000\n");
    let ran = machine.run(&["check", "node.toml"]);
    assert_eq!(ran.code, 2);
    assert!(ran.stderr.starts_with("error: node.toml: line 2: invalid value: integer `70000`"), "{ran:?}");
    machine.write("node.toml", "prot = 1\n");
    let ran = machine.run(&["check", "node.toml"]);
    assert!(ran.stderr.starts_with("error: node.toml: line 1: unknown field `prot`, expected one of"), "{ran:?}");
    machine.write("node.toml", "tun = \"a-name-that-is-too-long\"\n");
    machine.refused(
        &["check", "node.toml"],
        2,
        "node.toml: `tun`: cannot create TUN device `a-name-that-is-too-long`: a name has 1 to 15 characters, no blanks, `/`, `:` or `%`: choose another with --tun NAME",
    );
    machine.write("node.toml", "tun = \"a/b\"\n");
    assert_eq!(machine.run(&["check", "node.toml"]).code, 2);
    machine.write("node.toml", "lan_probe = \"printer\"\n");
    machine.refused(&["check", "node.toml"], 2, "node.toml: `lan_probe`: invalid IP address syntax");
    machine.write("hub.toml", "allow_any = true\npeers = [\"nonsense\"]\n");
    let ran = machine.run(&["check", "hub.toml"]);
    assert_eq!(ran.code, 2);
    assert!(ran.stderr.starts_with("error: hub.toml: `peers`: "), "{ran:?}");
    machine.write("hub.toml", "tls = \"192.0.2.1:443\"\n");
    let nobody = "hub.toml: it serves no network: list some: allow = [\"flnet1...\"], or set allow_any = true";
    machine.refused(&["check", "hub.toml"], 2, nobody);
    machine.refused(
        &["check", "nothing.toml"],
        2,
        "cannot read nothing.toml: no such file or directory: name a config file or a network.toml",
    );
}
