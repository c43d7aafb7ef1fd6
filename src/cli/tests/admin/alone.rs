//! What needs no hub.

use flatlan_types::{NodeSeed, SessionKey};

use super::machine::{Machine, NETWORK};

#[test]
fn create_makes_a_directory_of_files_and_prints_nothing_but_the_id() {
    let machine = Machine::new();
    let ran = machine.run(&["network", "create", "lab", "--range", "10.5.0.0/16"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(ran.stdout.starts_with("flnet1") && ran.stdout.lines().count() == 1, "{ran:?}");
    assert!(ran.stderr.contains("move lab.flatlan/recovery.key away now"), "{ran:?}");
    let network = machine.read(NETWORK);
    assert!(network.contains(&format!("id = \"{}\"", ran.stdout.trim())), "{network}");
    assert!(network.contains("range = \"10.5.0.0/16\""), "{network}");
    let modes = ["lab.flatlan/admin.key", "lab.flatlan/recovery.key", NETWORK].map(|file| machine.mode(file));
    assert_eq!(modes, [0o600, 0o600, 0o644]);
    assert_eq!(machine.read("lab.flatlan/.gitignore"), "*.key\n/lock\n");
}

#[test]
fn create_touches_no_network_that_is_there_and_makes_none_that_cannot_be() {
    let machine = Machine::with_network();
    let before = (machine.read(NETWORK), machine.read("lab.flatlan/admin.key"));
    let exists = "cannot write lab.flatlan/network.toml: it exists already: move it away first";
    machine.refused(&["network", "create", "lab"], 2, exists);
    assert_eq!((machine.read(NETWORK), machine.read("lab.flatlan/admin.key")), before);
    let unusable = "cannot create network wide: 224.0.0.0/8 cannot be the network's range: choose an IPv4 prefix from /8 to /30 of private addresses, such as 10.77.0.0/16";
    machine.refused(&["network", "create", "wide", "--range", "224.0.0.0/8"], 2, unusable);
    assert!(!machine.path("wide.flatlan").exists());
}

#[test]
fn the_directory_is_this_one_or_the_only_one_here() {
    let machine = Machine::new();
    let none = "no network here: this directory holds neither network.toml nor a *.flatlan directory: name the network's directory with --state DIR, or make a network: flatlan network create NAME";
    machine.refused(&["network", "plan"], 2, none);
    machine.good(&["network", "create", "lab"]);
    assert!(machine.good(&["network", "plan"]).starts_with("+ network lab: "));
    machine.good(&["network", "create", "other"]);
    let several = "several networks here: lab.flatlan, other.flatlan: name one of them with --state DIR";
    machine.refused(&["network", "plan"], 2, several);
    assert!(machine.good(&["network", "plan", "--state", "other.flatlan"]).starts_with("+ network other: "));
    machine.copy(NETWORK, "network.toml");
    assert!(machine.good(&["network", "plan"]).starts_with("+ network lab: "));
    let empty = "hub holds no network.toml: name the network's directory with --state DIR, or make a network there: flatlan network create NAME --state hub";
    std::fs::create_dir(machine.path("hub")).unwrap();
    machine.refused(&["network", "plan", "--state", "hub"], 2, empty);
    let missing = "state directory nowhere does not exist: name the right one with --state DIR";
    machine.refused(&["network", "plan", "--state", "nowhere"], 2, missing);
}

#[test]
fn comments_survive_every_edit_of_the_tool() {
    let machine = Machine::with_network();
    machine.edit("range = ", "# chosen by lot\nrange = ");
    let _hub = machine.add_hub("a");
    let with_comment = machine.read(NETWORK).replace("tls = ", "# behind the second router\ntls = ");
    machine.write(NETWORK, &with_comment);
    machine.good(&["member", "add", "office", "--key", &node_key(1), "--route", "192.168.7.0/24", "--group", "sites"]);
    machine.good(&["invite", "laptop", "--no-publish"]);
    let network = machine.read(NETWORK);
    assert!(network.starts_with(&with_comment), "{network}");
    assert!(network.contains("routes = [\"192.168.7.0/24\"]\ngroups = [\"sites\"]\n"), "{network}");
    machine.good(&["invite", "--cancel", "laptop", "--no-publish"]);
    machine.good(&["revoke", "office", "--no-publish"]);
    assert_eq!(machine.read(NETWORK), with_comment);
}

#[test]
fn a_hub_is_added_once_and_not_removed_under_an_open_invite() {
    let machine = Machine::with_network();
    let _hub = machine.add_hub("a");
    let key = machine.good(&["hub", "init", "--state", "hub-b"]);
    let add = |name, tls| ["network", "hub", "add", name, "--key", &key, "--tls", tls];
    let exists = "cannot add hub a: it is already in network.toml: edit it there, or remove it first";
    machine.refused(&add("a", "192.0.2.1:443"), 2, exists);
    let inside = "cannot add hub b: its address 10.77.0.9 lies inside the network's range 10.77.0.0/16: give the hub's address outside the overlay";
    machine.refused(&add("b", "10.77.0.9:443"), 2, inside);
    machine.good(&["invite", "laptop", "--no-publish"]);
    let redeems = "cannot remove hub a: it is the hub that redeems the open invite of laptop: if laptop has joined, flatlan network pull; else flatlan invite laptop --replace --hub OTHER, or flatlan invite --cancel laptop";
    machine.refused(&["network", "hub", "remove", "a"], 2, redeems);
    machine.good(&["invite", "--cancel", "laptop", "--no-publish"]);
    machine.good(&["network", "hub", "remove", "a"]);
    let gone = "cannot remove hub a: it is not in network.toml";
    machine.refused(&["network", "hub", "remove", "a"], 2, gone);
}

#[test]
fn signing_needs_no_network_at_all_and_the_next_plan_starts_from_there() {
    let machine = Machine::with_network();
    machine.good(&["member", "add", "office", "--key", &node_key(1)]);
    let ran = machine.run_without_network(&["network", "publish", "--out", "roster.bin", "--json"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (0, "{\"key_epoch\":0,\"serial\":1}\n"), "{ran:?}");
    assert_eq!(
        ran.stderr,
        "signed roster 1 into roster.bin; next, where the hubs can be reached: flatlan network upload roster.bin\n"
    );
    assert_eq!(machine.good(&["network", "plan"]), "");
    machine.good(&["revoke", "office", "--no-publish"]);
    assert!(machine.good(&["network", "plan"]).starts_with("- member office: ip 10.77.0.1, key flmember1"));
    let plan = machine.good(&["network", "plan", "--json"]);
    assert!(plan.contains("\"kind\":\"removed\"") && plan.contains("\"serial\":1"), "{plan}");
    let ran = machine.run_without_network(&["network", "publish", "--out", "roster.bin", "--json"]);
    assert_eq!(ran.stdout, "{\"key_epoch\":0,\"serial\":2}\n", "{ran:?}");
}

#[test]
fn publishing_to_no_hub_is_refused() {
    let machine = Machine::with_network();
    let none =
        "cannot publish: network.toml lists no hub: add one: flatlan network hub add NAME --key HUBKEY --tls HOST:PORT";
    machine.refused(&["network", "publish"], 2, none);
    let none = "cannot invite laptop: network.toml lists no hub: add one: flatlan network hub add NAME --key HUBKEY --tls HOST:PORT";
    machine.refused(&["invite", "laptop"], 2, none);
}

#[test]
fn a_member_by_key_needs_no_hub_and_prints_what_to_run_on_the_node() {
    let machine = Machine::with_network();
    let id =
        machine.read(NETWORK).lines().find_map(|line| Some(line.strip_prefix("id = \"")?.replace('"', ""))).unwrap();
    let without = machine.good(&["member", "add", "one", "--key", &node_key(1)]);
    assert_eq!(without, format!("flatlan join --network {id} --hub HOST:PORT"));
    let (a, b) = (machine.add_hub("a"), machine.add_hub("b"));
    let key = machine.good(&["join", "--request", "--state", "node"]);
    let line = machine.good(&["member", "add", "two", "--key", &key]);
    assert_eq!(line, format!("flatlan join --network {id} --hub {} --hub {}", a.tls, b.tls));
    let args: Vec<&str> = line.split(' ').skip(1).chain(["--state", "node"]).collect();
    machine.good(&args);
}

#[test]
fn a_member_that_cannot_be_is_refused() {
    let machine = Machine::with_network();
    machine.good(&["member", "add", "one", "--key", &node_key(1)]);
    let taken = "cannot add two: its key is already that of member one: every member needs a key of its own";
    machine.refused(&["member", "add", "two", "--key", &node_key(1)], 2, taken);
    let exists = "cannot add one: it is already in network.toml: edit it there, or remove it first";
    machine.refused(&["member", "add", "one", "--key", &node_key(2)], 2, exists);
    let outside = "cannot add two: 10.8.0.1 is outside the network's range 10.77.0.0/16: choose one inside, or leave it out to get the next free one";
    machine.refused(&["member", "add", "two", "--key", &node_key(2), "--ip", "10.8.0.1"], 2, outside);
    let ran = machine.run(&["member", "add", "two", "--key", &wireguard_key(3)]);
    assert_eq!(ran.code, 2);
    assert!(ran.stderr.ends_with(": this is a WireGuard public key: add --stock --via MEMBER\n"), "{ran:?}");
}

#[test]
fn a_stock_peer_gets_its_whole_wireguard_configuration() {
    let machine = Machine::with_network();
    let no_member = "cannot add phone: `via` names office, which is no member that runs flatlan";
    let phone = wireguard_key(3);
    let add = ["member", "add", "phone", "--stock", "--key", &phone, "--via", "office"];
    machine.refused(&add, 2, no_member);
    machine.good(&["member", "add", "office", "--key", &node_key(1), "--endpoint", "office.example:51820"]);
    let config = machine.good(&add);
    let secret = NodeSeed::from_bytes([1; 32]).derive();
    let office = flatlan_roster::source::wireguard_text(&secret.public().session);
    let lines: Vec<&str> = config.lines().collect();
    assert_eq!(
        lines[..3],
        [
            "[Interface]",
            "# phone, a plain WireGuard peer of network lab",
            &format!("# PrivateKey = (put in the one that belongs to {phone})"),
        ]
    );
    assert!(lines[3].starts_with("Address = 10.77.0.2/32, fd"), "{config}");
    assert_eq!(lines[4..9], ["MTU = 1400", "", "[Peer]", "# office", &format!("PublicKey = {office}")]);
    assert_eq!(lines[9], "Endpoint = office.example:51820");
    assert!(lines[10].starts_with("AllowedIPs = 10.77.0.0/16, fd") && lines[10].ends_with("::/48"), "{config}");
    assert_eq!(lines[11..], ["PersistentKeepalive = 25"]);
    let terminates = "cannot revoke office: member phone: `via` names office, which is no member that runs flatlan";
    machine.refused(&["revoke", "office", "--no-publish"], 2, terminates);
}

#[test]
fn a_stock_peer_waits_until_its_member_has_joined() {
    let machine = Machine::with_network();
    let _hub = machine.add_hub("a");
    machine.good(&["invite", "office", "--no-publish"]);
    let early = "cannot add phone: office, which is to terminate its tunnel, has no key yet: when it has joined: flatlan network pull, then again";
    machine.refused(&["member", "add", "phone", "--stock", "--key", &wireguard_key(3), "--via", "office"], 2, early);
}

#[test]
fn a_mistake_in_network_toml_is_shown_with_its_line_and_nothing_is_signed() {
    let machine = Machine::with_network();
    machine.edit("range = \"10.77.0.0/16\"", "rnage = \"10.77.0.0/16\"");
    let unknown = "lab.flatlan/network.toml: line 9: network: unknown key `rnage`: known here are name, id, admin, recovery, recovered, range, mtu, valid, expiry";
    machine.refused(&["network", "publish", "--out", "roster.bin"], 2, unknown);
    machine.refused(&["network", "plan"], 2, unknown);
    assert!(!machine.path("roster.bin").exists());
}

#[test]
fn a_key_that_others_can_read_signs_nothing() {
    let machine = Machine::with_network();
    machine.set_mode("lab.flatlan/admin.key", 0o640);
    let lax = "secret lab.flatlan/admin.key can be read by others (mode 0640): run `chmod 600 lab.flatlan/admin.key`, and replace the key if someone may have read it";
    machine.refused(&["network", "publish", "--out", "roster.bin"], 2, lax);
    machine.set_mode("lab.flatlan/admin.key", 0o600);
    machine.set_mode("lab.flatlan", 0o777);
    let open = "state directory lab.flatlan is open to others (mode 0777): run `chmod go-w lab.flatlan`";
    machine.refused(&["network", "plan"], 2, open);
}

#[test]
fn a_missing_damaged_or_foreign_admin_key_is_told() {
    let machine = Machine::with_network();
    let sign = ["network", "publish", "--out", "roster.bin", "--state", "lab.flatlan"];
    machine.copy("lab.flatlan/recovery.key", "lab.flatlan/admin.key");
    let foreign = "cannot sign with lab.flatlan/admin.key: admin.key is not the admin key of this network: use the one made with it, or by the last `flatlan network recover`";
    machine.refused(&sign, 2, foreign);
    machine.write("lab.flatlan/admin.key", "not a key\n");
    let damaged = "lab.flatlan/admin.key is damaged: it holds no key: restore it from a copy";
    machine.refused(&sign, 2, damaged);
    std::fs::remove_file(machine.path("lab.flatlan/admin.key")).unwrap();
    let missing = "lab.flatlan/admin.key does not exist: name the right directory with --state DIR, or restore the file from a copy";
    machine.refused(&sign, 2, missing);
}

#[test]
fn a_damaged_published_roster_is_told() {
    let machine = Machine::with_network();
    machine.good(&["network", "publish", "--out", "roster.bin"]);
    machine.write("lab.flatlan/published/roster", "not a roster");
    let ran = machine.run(&["network", "plan"]);
    assert_eq!(ran.code, 2);
    assert!(ran.stderr.starts_with("error: lab.flatlan/published/roster cannot be used: "), "{ran:?}");
    assert!(ran.stderr.ends_with(": remove it, then get the published one: flatlan network pull\n"), "{ran:?}");
}

#[test]
fn an_unwritable_directory_exits_3() {
    let machine = Machine::new();
    let ran = machine.run(&["network", "create", "lab", "--state", "/sys/flatlan"]);
    assert_eq!(ran.code, 3, "{ran:?}");
    assert!(ran.stderr.starts_with("error: cannot create directory /sys/flatlan: "), "{ran:?}");
    let remedy = ": run as a user who may, or use another directory with --state DIR\n";
    assert!(ran.stderr.ends_with(remedy), "{ran:?}");
}

#[test]
fn a_dry_run_of_a_move_asks_nobody_and_changes_nothing() {
    let machine = Machine::with_network();
    machine.good(&["member", "add", "office", "--key", &node_key(1), "--route", "192.168.7.0/24"]);
    machine.good(&["member", "add", "dr", "--key", &node_key(2)]);
    let before = machine.read(NETWORK);
    let ran = machine.run(&["network", "move", "192.168.7.5/32", "--to", "dr", "--dry-run"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (0, "- 192.168.7.5/32 office\n+ 192.168.7.5/32 dr\n"));
    let says =
        "the rest of 192.168.7.0/24 stays with office\nnothing was changed: the same without --dry-run makes it so\n";
    assert_eq!(ran.stderr, says);
    assert_eq!(machine.read(NETWORK), before);
    let nobody =
        "cannot move 10.1.0.0/16 to dr: nobody carries 10.1.0.0/16: list it under its `routes` in network.toml";
    machine.refused(&["network", "move", "10.1.0.0/16", "--to", "dr", "--dry-run"], 2, nobody);
    let none = "cannot take back a move: none was made from this directory, or it was taken back already: name what is to go where: flatlan network move PREFIX --to MEMBER";
    machine.refused(&["network", "move", "--undo", "--dry-run"], 2, none);
    for words in
        [&["network", "move"][..], &["network", "move", "192.168.7.5/32"], &["network", "move", "--undo", "--to", "dr"]]
    {
        assert_eq!(machine.run(words).code, 2, "{words:?}");
    }
}

#[test]
fn words_of_the_contract_that_are_not_built_say_so_and_are_hidden() {
    let machine = Machine::with_network();
    machine.refused(&["network", "clone", "lab", "--as", "drill"], 2, "network clone: not in this version");
    machine.refused(&["netcheck", "--proxy", "http://192.0.2.1:3128"], 2, "netcheck --proxy: not in this version");
    machine.refused(&["up", "--userspace"], 2, "up --userspace: not in this version");
    machine.refused(&["up", "--netns", "x"], 2, "up --netns: not in this version");
    for (command, hidden) in [("up", "--userspace"), ("up", "--netns"), ("netcheck", "--proxy")] {
        let help = machine.good(&[command, "--help"]);
        assert!(!help.contains(hidden), "{hidden}: {help}");
    }
    let help = machine.good(&["network", "--help"]);
    assert!(help.contains("publish") && !help.contains("  clone"), "{help}");
}

#[test]
fn a_wrong_command_line_is_told_in_one_line() {
    let machine = Machine::new();
    let missing =
        "flatlan revoke: the following required arguments were not provided: <NAME>: see `flatlan revoke --help`";
    let unknown = "flatlan network: unrecognized subcommand 'recver': a similar subcommand exists: 'recover', or see `flatlan network --help`";
    let port =
        "flatlan up: invalid value '70000' for '--port <UDP>': 70000 is not in 0..=65535: see `flatlan up --help`";
    let nothing = "flatlan network hub: more words are needed: see `flatlan network hub --help`";
    for (words, message) in [
        (&["revoke"][..], missing),
        (&["network", "recver"], unknown),
        (&["up", "--port", "70000"], port),
        (&["network", "hub"], nothing),
    ] {
        let ran = machine.run(words);
        assert_eq!((ran.code, ran.stderr), (2, format!("error: {message}\n")), "{words:?}");
    }
    for interval in ["nan", "inf", "0", "-1"] {
        let ran = machine.run(&["ping", "b", &format!("-i{interval}")]);
        assert_eq!(ran.code, 2, "{ran:?}");
        assert!(ran.stderr.contains("not a number of seconds from 0.01 to 3600: see `flatlan ping --help`"), "{ran:?}");
    }
}

#[test]
fn a_join_that_cannot_be_leaves_nothing_behind() {
    let machine = Machine::new();
    let ran = machine.run(&["join", "flat", "--state", "node"]);
    assert_eq!(ran.code, 2, "{ran:?}");
    assert!(ran.stderr.contains("error: the token cannot be used: "), "{ran:?}");
    machine.refused(
        &["join", "--request", "--proxy", "http://p:1", "--state", "node"],
        2,
        "join: --request dials no hub, so that --proxy has no effect: leave it out, and give it to `flatlan up`",
    );
    machine.refused(
        &["join", "--token-file", "t", "--hub", "h:1", "--state", "node"],
        2,
        "join: --hub has no effect without --network: leave it out, or give --network NETWORK_ID",
    );
    assert!(!machine.path("node").exists());
}

#[test]
fn a_node_that_leaves_leaves_an_empty_directory() {
    let machine = Machine::new();
    machine.good(&["join", "--request", "--state", "node"]);
    machine.good(&["leave", "--state", "node"]);
    assert_eq!(std::fs::read_dir(machine.path("node")).unwrap().count(), 0);
    // it can be used again
    machine.good(&["join", "--request", "--state", "node"]);
}

/// The text of a node's keys, always the same for the same number.
pub(crate) fn node_key(n: u8) -> String {
    NodeSeed::from_bytes([n; 32]).derive().public().full()
}

fn wireguard_key(n: u8) -> String {
    let key: SessionKey = NodeSeed::from_bytes([n; 32]).derive().public().session;
    flatlan_roster::source::wireguard_text(&key)
}
