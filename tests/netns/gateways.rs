//! Gateways: hosts of the LANs behind nodes reach each other, also after one of them has moved to another site.
//!
//! ```text
//!                  h1
//!                  |
//!   a-1  vm       inet          c
//!    \   |      /   |   \      /
//!     \  |  a-nat b-nat  c-nat
//!      \ |  /       |     |
//!       [a]        [b]    c          vm: at first on a's LAN, then on b's, with the same address and the same router
//!                  / \
//!               b-1   vm'
//! ```
//!
//! Hosts run nothing of ours, and nobody tells them anything.
//!
//! Of two gateways on b's LAN, an HA group, each has an uplink and a router of its own:
//!
//! ```text
//!             inet
//!           /   |   \
//!      a-nat b-nat  b2-nat
//!        |      |  \    \
//!       [a]    [b]  \   [b2]
//!        |      |    \   |
//!       a-1     +-----+--+---- b-1
//! ```

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "helpers of tests")]

mod support;

use std::net::IpAddr;
use std::time::{Duration, Instant};

use flatlan_lab::{Capture, Lab, Namespace, Nat, Probe, RunOptions, SiteSpec, occurrences};
use serde_json::Value;
use support::{PATIENCE, gateway, lab, wait_status};

#[test]
fn a_node_with_routes_forwards_while_it_runs_and_not_a_moment_longer() {
    let lab = sites();
    let forwards = |site| gateway(&lab, site).exec("cat", ["/proc/sys/net/ipv4/ip_forward"]).unwrap() == "1\n";
    for site in ["a", "c"] {
        lab.site(site).unwrap().process().unwrap().stop(PATIENCE).unwrap();
        gateway(&lab, site).sysctl("net/ipv4/ip_forward", "0").unwrap();
        lab.up(site).unwrap();
    }
    assert!(forwards("a") && !forwards("c"), "c carries nothing");
    let [to, _] = lab.site("a").unwrap().hosts()[0].addresses();
    drop(answered(lab.site("b").unwrap().hosts()[0].namespace(), to));
    lab.site("a").unwrap().process().unwrap().stop(PATIENCE).unwrap();
    assert!(!forwards("a"));
}

#[test]
fn a_kernel_takes_every_setting_of_the_file_for_gateways() {
    let lab = lab().site("a", Nat::Symmetric).build().unwrap();
    let machine = gateway(&lab, "a");
    let settings = [
        ("ipv4/ip_forward", "1\n"),
        ("ipv6/conf/all/forwarding", "1\n"),
        ("ipv4/conf/all/send_redirects", "0\n"),
        ("ipv4/conf/default/send_redirects", "0\n"),
        ("ipv4/conf/eth0/send_redirects", "0\n"),
    ];
    for (setting, wanted) in settings {
        machine.sysctl(&format!("net/{setting}"), if wanted == "1\n" { "0" } else { "1" }).unwrap();
    }
    machine.exec("sysctl", ["-p", concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/flatlan-gateway.conf")]).unwrap();
    for (setting, wanted) in settings {
        assert_eq!(machine.exec("cat", [format!("/proc/sys/net/{setting}")]).unwrap(), wanted, "{setting}");
    }
}

#[test]
fn an_address_that_moves_is_reached_from_every_site_and_keeps_its_neighbours() {
    let lab = sites();
    let vm: IpAddr = lab.site("a").unwrap().hosts()[0].addresses()[0];
    let neighbour = lab.site("a").unwrap().hosts()[1].namespace();
    let elsewhere = lab.site("b").unwrap().hosts()[0].namespace();
    let clients = [neighbour, elsewhere, lab.site("c").unwrap().gateway()];
    let reached_at = |place: &Namespace, own: &[IpAddr]| {
        for (client, own) in clients.iter().zip(own) {
            drop(answered(client, vm));
            let echo = Probe::tcp_echo(client, place, vm, Duration::from_millis(10)).unwrap();
            assert_eq!(echo.peer().unwrap().ip(), *own, "nothing is rewritten on the way");
            echo.wait_answers(3, PATIENCE).unwrap();
        }
    };
    let own = [
        lab.site("a").unwrap().hosts()[1].addresses()[0],
        lab.site("b").unwrap().hosts()[0].addresses()[0],
        lab.site("c").unwrap().virtual_ip().into(),
    ];
    let (home, away) = (lab.site("a").unwrap().hosts()[0].namespace(), lab.site("b").unwrap().hosts()[1].namespace());
    reached_at(home, &own);

    fail_over(&lab, vm);
    reached_at(away, &own);

    fail_back(&lab, vm);
    // also by a host beside the place that it left
    reached_at(home, &own);
    for site in ["a", "b"] {
        let answers = gateway(&lab, site).exec("ip", ["neighbour", "show", "proxy"]).unwrap();
        assert_eq!(answers, "", "{site} answers for nobody any more");
    }
}

#[test]
fn hosts_that_were_told_to_pass_the_gateway_by_find_an_address_when_it_has_moved_on() {
    found_after_a_redirect(0);
}

#[test]
fn hosts_that_were_told_to_pass_the_gateway_by_find_an_ipv6_address_when_it_has_moved_on() {
    found_after_a_redirect(1);
}

/// By addresses of the first or of the second family.
fn found_after_a_redirect(family: usize) {
    let lab = sites();
    let home = lab.site("a").unwrap().hosts()[0].namespace();
    let vm = lab.site("a").unwrap().hosts()[0].addresses()[family];
    let [elsewhere, away] = [0, 1].map(|host| lab.site("b").unwrap().hosts()[host].namespace());
    let (neighbour, office) = (lab.site("a").unwrap().hosts()[1].namespace(), lab.site("c").unwrap().gateway());
    let reached_at = |place: &Namespace| {
        for client in [neighbour, elsewhere, office] {
            drop(answered(client, vm));
            let echo = Probe::tcp_echo(client, place, vm, Duration::from_millis(10)).unwrap();
            echo.wait_answers(3, PATIENCE).unwrap();
        }
    };
    let machine = gateway(&lab, "b");
    // a redirect comes from where a host believes its router to be: by IPv6 that is its link-local address
    let router = match family {
        0 => lab.site("b").unwrap().lan_addresses()[0].to_string(),
        _ => link_local(machine, "eth0"),
    };
    let far = lab.site("a").unwrap().prefixes()[family].to_string();
    elsewhere.exec("ip", ["route", "replace", &far, "via", &router, "dev", "eth0"]).unwrap();
    let is_redirected = || {
        let way = elsewhere.exec("ip", ["route", "get", &vm.to_string()]).unwrap();
        !way.contains(&format!("via {router}"))
    };
    reached_at(home);
    assert!(!is_redirected());

    fail_over(&lab, vm);
    reached_at(away);
    // without help it goes on sending to where it last found the address: nothing makes it look again
    for version in ["ipv4", "ipv6"] {
        for (setting, value) in [("base_reachable_time_ms", "3600000"), ("delay_first_probe_time", "1")] {
            elsewhere.sysctl(&format!("net/{version}/neigh/eth0/{setting}"), value).unwrap();
        }
    }
    let ping = answered(elsewhere, vm);
    wait_until("a redirect", || {
        // as where a sandbox keeps the node from this setting; by IPv6 there is none
        for device in ["all", "eth0"] {
            machine.sysctl(&format!("net/ipv4/conf/{device}/send_redirects"), "1").unwrap();
        }
        is_redirected()
    });
    let at = vm.to_string();
    let is_sure = || elsewhere.exec("ip", ["neighbour", "show", &at, "dev", "eth0"]).unwrap().contains("REACHABLE");
    wait_until("that it is sure where the address is", is_sure);

    fail_back(&lab, vm);
    ping.wait_answers(20, PATIENCE).unwrap();
    // it asks the gateway alone, and then everybody
    wait_until("that it is sure of the gateway", is_sure);
    reached_at(home);
    elsewhere.exec("ip", ["neighbour", "flush", "dev", "eth0"]).unwrap();
    ping.wait_answers(20, PATIENCE).unwrap();
    assert!(is_redirected(), "it looked for the address on its own LAN throughout");
}

#[test]
fn what_comes_for_a_lan_leaves_by_no_other_way_while_the_lan_is_gone() {
    let lab = pair("b2", "", Some("b2"));
    lab.kill("b").unwrap();
    let (client, server) = (&lab.site("a").unwrap().hosts()[0], &lab.site("b").unwrap().hosts()[0]);
    let (machine, router) = (gateway(&lab, "b2"), lab.site("b2").unwrap().router(0).unwrap());
    let [_, lan] = lab.site("b2").unwrap().lan_addresses().map(|ip| ip.to_string());
    let [_, far] = lab.site("a").unwrap().prefixes().map(|prefix| prefix.to_string());
    server.namespace().exec("ip", ["route", "replace", &far, "via", &lan]).unwrap();
    // a way out by IPv6, too
    let out = link_local(router, "lan");
    machine.exec("ip", ["-6", "route", "add", "default", "via", &out, "dev", "eth0"]).unwrap();
    let ends = client.addresses().into_iter().zip(server.addresses());
    for (_, to) in ends.clone() {
        drop(answered(client.namespace(), to));
    }

    let wire = Capture::start(&lab, router).unwrap();
    machine.exec("ip", ["link", "set", "lan0", "down"]).unwrap();
    for (_, to) in ends.clone() {
        wait_until("an honest answer", || {
            let mut ping = Namespace::command("ping");
            ping.args(["-c", "1", "-W", "1", &to.to_string()]);
            client.namespace().output(ping).unwrap().stdout.contains("nreachable")
        });
    }
    let wire = wire.stop().unwrap();
    for (from, to) in ends.clone() {
        // as they stand in an IP header
        let header = [from, to].map(octets).concat();
        assert_eq!(occurrences(&wire, &header).unwrap(), 0, "packets of {from} for {to} left by the uplink");
    }

    machine.exec("ip", ["link", "set", "lan0", "up"]).unwrap();
    // which went with its link
    machine.exec("ip", ["address", "replace", &format!("{lan}/64"), "dev", "lan0"]).unwrap();
    for (_, to) in ends {
        drop(answered(client.namespace(), to));
    }
    lab.site("b2").unwrap().process().unwrap().stop(PATIENCE).unwrap();
    for family in ["-4", "-6"] {
        assert_eq!(machine.exec("ip", [family, "route", "show", "proto", "77"]).unwrap(), "");
    }
}

#[test]
fn flows_to_a_site_of_two_gateways_use_both_and_outlive_either() {
    // the host answers by the second gateway, whoever brought the question
    let lab = pair("b2", "", None);
    let flows = flows(&lab);
    let carried = |gateway: &str| carried(&lab, gateway);
    let wait_moving = |what: &str| wait_moving(&flows, what);
    wait_moving("at first");
    assert!(["b", "b2"].iter().all(|gateway| carried(gateway) > 0), "each flow goes by one of them");

    for fault in [Fault::Killed, Fault::Cut] {
        match fault {
            Fault::Killed => drop(lab.kill("b").unwrap()),
            Fault::Cut => lab.cut("b").map(drop).unwrap(),
        }
        let alarm = |status: &Value| status["alarms"].to_string().contains("gateway b does not answer").then_some(());
        wait_status(&lab, "a", "an alarm", alarm);
        wait_moving("while they move");
        let before = carried("b");
        wait_moving("without b");
        assert_eq!(carried("b"), before, "nothing goes to one that does not answer");
        match fault {
            Fault::Killed => drop(lab.restart("b").unwrap()),
            Fault::Cut => lab.heal("b").map(drop).unwrap(),
        }
        wait_status(&lab, "a", "no alarm", |status| (status["alarms"].as_array()?.is_empty()).then_some(()));
        wait_moving("with b again");
        assert!(carried("b") > before, "its flows are its own again");
    }
    println!("longest gap of a flow: {:?}", whole(flows));
}

#[test]
fn flows_go_on_at_the_other_gateway_while_one_has_lost_its_lan() {
    // the host answers by the first gateway, for the second one is to lose its way to it
    let probe = r#"lan_probe = "192.168.2.11""#;
    let lab = pair("b", probe, None);
    assert_eq!(lab.site("b").unwrap().hosts()[0].addresses()[0].to_string(), "192.168.2.11");
    let (lost, router) = (gateway(&lab, "b2"), lab.site("b").unwrap().router(0).unwrap());
    let prefixes = lab.site("b").unwrap().prefixes().map(|prefix| prefix.to_string());
    let flows = flows(&lab);
    let carried = || carried(&lab, "b2");
    wait_moving(&flows, "at first");
    assert!(carried() > 0, "each flow goes by one of them");

    // whose cable it is, the words that lose it and that mend it, and what the gateway says
    let down = (lost, "link set lan0 down", "link set lan0 up", "lan0 has no link");
    let carrier = (router, "link set gw3 down", "link set gw3 up", "lan0 has no link");
    let silent = (router, "link set gw3 nomaster", "link set gw3 master lan", "192.168.2.11 does not answer");
    for (machine, lose, mend, reason) in [down, carrier, silent] {
        machine.exec("ip", lose.split(' ')).unwrap();
        let withdrawn = |status: &Value| {
            let alarmed = status["alarms"].to_string().contains("gateway b2 withdrew its prefixes");
            let peer = status["peers"].as_array()?.iter().find(|peer| peer["name"] == "b2")?;
            (alarmed && !peer["withdrawn"].as_array()?.is_empty()).then_some(())
        };
        wait_status(&lab, "a", "an alarm", withdrawn);
        let own = |status: &Value| Some(status["self"]["withdrawn"][&prefixes[0]] == reason).filter(|said| *said);
        wait_status(&lab, "b2", reason, own);
        let before = carried();
        wait_moving(&flows, lose);
        assert_eq!(carried(), before, "nothing goes to one that lost its LAN");
        machine.exec("ip", mend.split(' ')).unwrap();
        wait_status(&lab, "a", "no alarm", |status| (status["alarms"].as_array()?.is_empty()).then_some(()));
        wait_moving(&flows, mend);
        assert!(carried() > before, "its flows are its own again");
    }
    let withdrawals = lab.status("b2").unwrap()["self"]["withdrawals"].as_u64().unwrap();
    assert!(withdrawals >= 3, "{withdrawals}");

    // and for good
    lost.exec("ip", ["link", "delete", "lan0"]).unwrap();
    let own = |status: &Value| status["self"]["withdrawn"][&prefixes[0]].as_str().map(str::to_owned);
    assert_eq!(wait_status(&lab, "b2", "a reason", own), "there is no network device lan0");
    wait_moving(&flows, "without its device");
    println!("longest gap of a flow: {:?}", whole(flows));
}

#[test]
fn a_preferred_gateway_has_all_flows_except_while_it_is_gone() {
    let lab = pair("b", "", Some("b2"));
    let flows = flows(&lab);
    let carried = |gateway: &str| carried(&lab, gateway);
    wait_moving(&flows, "at first");
    let [b, b2] = ["b", "b2"].map(carried);
    assert!(b2 > 20 * b, "b stands by: {b} bytes beside {b2}");
    lab.kill("b2").unwrap();
    wait_moving(&flows, "without b2");
    assert!(carried("b") > 0);
    lab.restart("b2").unwrap();
    wait_status(&lab, "a", "no alarm", |status| (status["alarms"].as_array()?.is_empty()).then_some(()));
    let [b, b2] = ["b", "b2"].map(carried);
    wait_moving(&flows, "with b2 again");
    let [b, b2] = [carried("b") - b, carried("b2") - b2];
    assert!(b2 > 20 * b, "they are its own again: {b} bytes beside {b2}");
    println!("longest gap of a flow: {:?}", whole(flows));
}

#[test]
fn an_address_that_moved_falls_back_to_its_old_site_while_the_new_one_is_gone() {
    let lab = sites();
    let vm: IpAddr = lab.site("a").unwrap().hosts()[0].addresses()[0];
    let (home, neighbour) = (&lab.site("a").unwrap().hosts()[0], lab.site("a").unwrap().hosts()[1].namespace());
    let (home, away) = (home.namespace(), lab.site("b").unwrap().hosts()[1].namespace());
    let clients = [neighbour, lab.site("c").unwrap().gateway()];
    let reached_at = |place: &Namespace| {
        for client in clients {
            let echo = Probe::tcp_echo(client, place, vm, Duration::from_millis(10)).unwrap();
            echo.wait_answers(3, PATIENCE).unwrap();
        }
    };
    drop(answered(clients[1], vm));
    fail_over(&lab, vm);
    for client in clients {
        drop(answered(client, vm));
    }
    reached_at(away);

    // the DR site is gone, and the machine comes up where it was: it speaks first
    lab.cut("b").unwrap();
    home.exec("ip", ["link", "set", "eth0", "up"]).unwrap();
    come_up(&lab, home, vm);
    drop(answered(home, lab.site("c").unwrap().virtual_ip().into()));
    let pings = clients.map(|client| answered(client, vm));
    for ping in &pings {
        ping.wait_answers(20, PATIENCE).unwrap();
    }
    for site in ["a", "c"] {
        let alarm = format!("{vm}/32 of b fell back to a: it does not answer");
        let there = |status: &Value| status["alarms"].to_string().contains(&alarm).then_some(());
        wait_status(&lab, site, &alarm, there);
    }
    reached_at(home);

    // it is back, and so is the address
    home.exec("ip", ["link", "set", "eth0", "down"]).unwrap();
    lab.heal("b").unwrap();
    for site in ["a", "c"] {
        wait_status(&lab, site, "no alarm", |status| (status["alarms"].as_array()?.is_empty()).then_some(()));
    }
    for ping in &pings {
        ping.wait_answers(20, PATIENCE).unwrap();
    }
    reached_at(away);
    for ping in pings {
        println!("longest gap: {:?}", ping.stop().longest_gap().length);
    }
}

/// The machine with this address dies on a's LAN and comes up on b's, in place of its last host, as it was; its address is
/// moved after it.
fn fail_over(lab: &Lab, vm: IpAddr) {
    let away = lab.site("b").unwrap().hosts()[1].namespace();
    lab.site("a").unwrap().hosts()[0].namespace().exec("ip", ["link", "set", "eth0", "down"]).unwrap();
    away.exec("ip", ["address", "flush", "dev", "eth0", "scope", "global"]).unwrap();
    come_up(lab, away, vm);
    let host = if vm.is_ipv4() { format!("{vm}/32") } else { format!("{vm}/128") };
    let moved = lab.administer(["network", "move", &host, "--to", "b"]).unwrap();
    assert_eq!(moved.stdout, format!("- {host} a\n+ {host} b\n"));
}

/// It dies there, and comes up where it was.
fn fail_back(lab: &Lab, vm: IpAddr) {
    let home = lab.site("a").unwrap().hosts()[0].namespace();
    lab.site("b").unwrap().hosts()[1].namespace().exec("ip", ["link", "set", "eth0", "down"]).unwrap();
    home.exec("ip", ["link", "set", "eth0", "up"]).unwrap();
    come_up(lab, home, vm);
    let host = if vm.is_ipv4() { format!("{vm}/32") } else { format!("{vm}/128") };
    let back = lab.administer(["network", "move", "--undo"]).unwrap();
    assert_eq!(back.stdout, format!("- {host} b\n+ {host} a\n"));
}

/// A machine has this address of a's LAN, and the router that belongs to it.
fn come_up(lab: &Lab, machine: &Namespace, vm: IpAddr) {
    let (site, family) = (lab.site("a").unwrap(), usize::from(vm.is_ipv6()));
    let address = format!("{vm}/{}", site.prefixes()[family].prefix());
    machine.exec("ip", ["address", "replace", &address, "dev", "eth0"]).unwrap();
    let router = site.lan_addresses()[family].to_string();
    machine.exec("ip", ["route", "replace", "default", "via", &router, "dev", "eth0"]).unwrap();
    let shown = |what: &str| machine.exec("ip", ["address", "show", "dev", "eth0", what]).unwrap().contains(&address);
    // it makes sure that nobody else has it, and nobody says so
    wait_until("its address", || !shown("tentative"));
    assert!(!shown("dadfailed"), "somebody answered for {vm}");
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

/// A machine's own link-local address on a device.
fn link_local(machine: &Namespace, device: &str) -> String {
    let shown = machine.exec("ip", ["-6", "-o", "address", "show", "dev", device, "scope", "link"]).unwrap();
    let address = shown.split_whitespace().skip_while(|word| *word != "inet6").nth(1).unwrap();
    address.split('/').next().unwrap().to_owned()
}

/// Flows from a host of a to the host of b, each of which says something each 10 ms.
fn flows(lab: &Lab) -> Vec<Probe> {
    let (client, server) = (&lab.site("a").unwrap().hosts()[0], &lab.site("b").unwrap().hosts()[0]);
    let (ip, own) = (server.addresses()[0], client.addresses()[0]);
    drop(answered(client.namespace(), ip));
    let flow = || {
        let echo = Probe::tcp_echo(client.namespace(), server.namespace(), ip, Duration::from_millis(10)).unwrap();
        assert_eq!(echo.peer().unwrap().ip(), own, "nothing is rewritten on the way");
        echo
    };
    (0..FLOWS).map(|_| flow()).collect()
}

/// Bytes that a sent to a gateway of b.
fn carried(lab: &Lab, gateway: &str) -> u64 {
    wait_status(lab, "a", "peers", |status| {
        let peer = status["peers"].as_array()?.iter().find(|peer| peer["name"] == gateway)?;
        peer["tx_bytes"].as_u64()
    })
}

fn wait_moving(flows: &[Probe], what: &str) {
    for flow in flows {
        flow.wait_answers(20, PATIENCE).unwrap();
        assert_eq!(flow.report().broken(), None, "{what}");
    }
}

/// The longest time in which a flow was not answered; none was broken.
fn whole(flows: Vec<Probe>) -> Duration {
    let reports: Vec<_> = flows.into_iter().map(Probe::stop).collect();
    assert!(reports.iter().all(|report| report.broken().is_none()));
    reports.iter().map(|report| report.longest_gap().length).max().unwrap()
}

#[test]
fn what_somebody_changes_on_a_gateway_is_set_again() {
    let lab = lab().hub("h1").site("a", Nat::Symmetric).site("b", Nat::Symmetric).build().unwrap();
    lab.bring_up().unwrap();
    let (machine, node) = (gateway(&lab, "a"), lab.site("a").unwrap().process().unwrap());
    for (family, prefix) in ["-4", "-6"].iter().zip(lab.site("b").unwrap().prefixes()) {
        let prefix = prefix.to_string();
        let shown = || machine.exec("ip", [family, "route", "show", &prefix]).unwrap();
        wait_until("a route to b", || !shown().is_empty());
        let before = shown();
        machine.exec("ip", [family, "route", "delete", &prefix]).unwrap();
        wait_until("that the route is back", || shown() == before);
    }
    let said = node.lines().len();
    machine.sysctl("net/ipv4/ip_forward", "0").unwrap();
    node.wait_line_after(said, "somebody switched forwarding off", PATIENCE).unwrap();
    assert_eq!(machine.exec("cat", ["/proc/sys/net/ipv4/ip_forward"]).unwrap(), "1\n");
}

#[test]
fn netcheck_names_what_keeps_a_gateway_from_its_site_and_its_remedies_help() {
    let lab = pair("b2", "", None);
    let machine = gateway(&lab, "b");
    let traps = || {
        let found = asked(&lab, "b", &["netcheck"]);
        assert_eq!(found["unknown"], serde_json::json!([]));
        found["traps"].as_array().unwrap().clone()
    };
    let tun = lab.status("b").unwrap()["self"]["tun"].as_str().unwrap().to_owned();
    let host = lab.site("b").unwrap().hosts()[0].addresses()[0].to_string();
    let way = machine.exec("ip", ["route", "get", &host]).unwrap();
    let lan = way.split_whitespace().skip_while(|word| *word != "dev").nth(1).unwrap();
    assert_eq!(traps(), Vec::<Value>::new());
    for (kind, fault) in [
        ("reverse_path", format!("sysctl -w net/ipv4/conf/{tun}/rp_filter=1")),
        ("forwarding", format!("sysctl -w net/ipv4/conf/{lan}/forwarding=0")),
        ("arp", format!("sysctl -w net/ipv4/conf/{lan}/arp_ignore=8")),
        (
            "firewall",
            "nft 'add table inet site; add chain inet site transit { type filter hook forward priority 0; policy drop; }'"
                .to_owned(),
        ),
    ] {
        machine.exec("sh", ["-c", &fault]).unwrap();
        let found = traps();
        assert_eq!(found.len(), 1, "{fault}: {found:#?}");
        assert_eq!(found[0]["trap"], kind, "{fault}: {found:#?}");
        machine.exec("sh", ["-c", found[0]["remedy"].as_str().unwrap()]).unwrap();
        assert_eq!(traps(), Vec::<Value>::new(), "{fault}, then {}", found[0]["remedy"]);
    }
}

#[test]
fn explain_says_who_carries_an_address_and_by_which_path() {
    let lab = pair("b2", "", None);
    let (client, server) = (&lab.site("a").unwrap().hosts()[0], &lab.site("b").unwrap().hosts()[0]);
    let (from, to) = (client.addresses()[0].to_string(), server.addresses()[0].to_string());
    let _talk = answered(client.namespace(), server.addresses()[0]);
    let sent = asked(&lab, "a", &["explain", &from, &to, "tcp", "22"]);
    assert_eq!(sent["verdict"], "sent");
    assert_eq!(sent["destination"]["owners"], serde_json::json!(["b", "b2"]));
    assert_eq!(sent["destination"]["prefixes"][0]["prefix"], lab.site("b").unwrap().prefixes()[0].to_string());
    let used = sent["paths"].as_array().unwrap().iter().find(|of| !of["path"].is_null()).unwrap();
    assert!(used["path"]["kind"] == "relay" && used["path"]["mtu"].is_u64(), "{sent:#}");
    assert_eq!(sent["obstacles"], serde_json::json!([]), "{sent:#}");
    let received = asked(&lab, "b", &["explain", &from, &to, "tcp", "22"]);
    assert_eq!(received["verdict"], "received");
    assert_eq!(received["source"]["owners"], serde_json::json!(["a"]));
    let b2 = lab.site("b2").unwrap().virtual_ip().to_string();
    for (words, verdict, drop) in [
        (&[b2.as_str()][..], "sent", Value::Null),
        (&["10.77.255.1"], "dropped", "no_member".into()),
        (&["198.51.100.1", &to, "udp"], "dropped", "source_not_owned".into()),
    ] {
        let explained = asked(&lab, "a", &[&["explain"], words].concat());
        assert_eq!((explained["verdict"].as_str(), &explained["drop"]), (Some(verdict), &drop), "{words:?}");
    }
}

/// What a command says in JSON beside a site's node.
fn asked(lab: &Lab, site: &str, words: &[&str]) -> Value {
    let state = lab.site(site).unwrap().state().to_str().unwrap();
    let words = words.iter().copied().chain(["--json", "--state", state]);
    lab.flatlan(gateway(lab, site), words).unwrap().success().unwrap().json().unwrap()
}

/// What becomes of a gateway.
#[derive(Clone, Copy)]
enum Fault {
    Killed,
    Cut,
}

/// Flows at once: all by one gateway of two is as likely as heads in so many throws.
const FLOWS: usize = 24;

/// Site b has two gateways of an HA group, `b` and `b2`. Its host sends what is for the other site by one of them; `config` is
/// that of b2; one may be preferred.
fn pair(answers_by: &str, config: &str, preferred: Option<&str>) -> Lab {
    let lab = lab().hub("h1").hub("h2").site_with(SiteSpec::new("a").nat(Nat::Symmetric).hosts(1));
    let lab = lab.site_with(SiteSpec::new("b").nat(Nat::Symmetric).hosts(1));
    let lab = lab.site_with(SiteSpec::new("b2").nat(Nat::Symmetric).beside("b")).build().unwrap();
    lab.network_create().unwrap();
    lab.start_hubs().unwrap();
    lab.publish().unwrap();
    lab.join("a").unwrap();
    for gateway in ["b", "b2"] {
        let priority: &[&str] = if preferred == Some(gateway) { &["--priority", "10"] } else { &[] };
        let token = lab.invite_with(gateway, ["--ha", "west"].iter().chain(priority)).unwrap();
        lab.join_with(gateway, &token).unwrap().success().unwrap();
    }
    let file = lab.folder().join("b2.toml");
    std::fs::write(&file, config).unwrap();
    for gateway in ["a", "b"] {
        lab.up(gateway).unwrap();
    }
    lab.up_with("b2", &RunOptions::args(["--config".into(), file.display().to_string()])).unwrap();
    let far = lab.site("a").unwrap().prefixes()[0].to_string();
    let by = lab.site(answers_by).unwrap().lan_addresses()[0].to_string();
    let host = lab.site("b").unwrap().hosts()[0].namespace();
    host.exec("ip", ["route", "replace", &far, "via", &by]).unwrap();
    lab
}

/// Waits until it holds.
fn wait_until(what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Pings an address from a machine until it answers.
fn answered(from: &Namespace, to: IpAddr) -> Probe {
    let probe = Probe::ping(from, to, Duration::from_millis(20)).unwrap();
    probe.wait_answers(3, PATIENCE).unwrap();
    probe
}

fn sites() -> Lab {
    let lab = lab().hub("h1");
    let lab = lab.site_with(SiteSpec::new("a").nat(Nat::Symmetric).hosts(2));
    let lab = lab.site_with(SiteSpec::new("b").nat(Nat::Symmetric).hosts(2));
    let lab = lab.site_with(SiteSpec::new("c").nat(Nat::Symmetric).hosts(0)).build().unwrap();
    lab.bring_up().unwrap();
    lab
}
