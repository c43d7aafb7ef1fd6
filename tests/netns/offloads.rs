//! What becomes of the traffic where the kernel, or its operator, does not want it in large pieces, and where the
//! pieces that pass are of another size than usual.
//!
//! ```text
//!             h1                    strace makes the kernel refuse where it would not by itself
//!             |
//!           inet                    its wires have the MTU that a test is about
//!          /    \
//!      a-nat    b-nat
//!        |        |
//!        a        b
//! ```

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "helpers of tests")]

mod support;

use std::net::{IpAddr, UdpSocket};
use std::time::Duration;

use flatlan_lab::{Lab, LogLine, Nat, Payload, RunOptions, Transfer, Underlay};
use support::{
    MIB, PATIENCE, gateway, is_direct, is_relay, lab, path, ping, send, send_by_every_address, wait_path, wait_status,
};

#[test]
fn each_offload_can_be_switched_off_and_everything_arrives_as_it_was_sent() {
    let lab = joined(Nat::Cone, Underlay::Dual);
    for settings in [
        "tun_offload = \"off\"",
        "udp_gso = \"off\"",
        "tun_backend = \"plain\"",
        "tun_backend = \"plain\"\nudp_gso = \"off\"",
        "tun_offload = \"on\"\nudp_gso = \"on\"",
    ] {
        for site in ["a", "b"] {
            lab.up_with(site, &config(&lab, site, settings)).unwrap();
        }
        everything_arrives(&lab);
        assert_eq!([refused(&lab, "a"), refused(&lab, "b")], [(0, 0), (0, 0)], "{settings}");
    }
}

#[test]
fn a_hub_that_is_to_send_single_datagrams_relays_as_well() {
    let lab = lab().hub("h1").site("a", Nat::Symmetric).site("b", Nat::Symmetric).build().unwrap();
    lab.bring_up().unwrap();
    lab.start_hub_with("h1", &config(&lab, "h1", "udp_gso = \"off\"")).unwrap();
    let _talk = ping(&lab, "a", "b");
    wait_path(&lab, "a", "b", "a path over UDP", |path| is_relay(path, "udp"));
    send_by_every_address(&lab, "a", "b", 4 * MIB);
    every_datagram_comes_back(&lab);
}

#[test]
fn a_run_that_the_kernel_refuses_costs_nothing_but_the_offload_and_one_warning() {
    for errno in ["EIO", "EINVAL"] {
        let lab = joined(Nat::Cone, Underlay::Dual);
        refusing(&lab, "sendmsg", errno, NOW_AND_THEN, &[]);
        all_arrives_until(&lab, "a refused run", |(_, runs)| runs > 0);
        assert_eq!(refused(&lab, "a"), (0, 1), "{errno}: a run is tried once only");
        one_warning(&lab, "the kernel refuses UDP segmentation: sending single datagrams");
        // on another network it is tried again, and another refusal is no news
        for words in [
            "link add another type veth peer name far",
            "link set far up",
            "link set another up",
            "addr add 203.0.113.77/24 dev another",
        ] {
            gateway(&lab, "a").exec("ip", words.split(' ')).unwrap();
        }
        all_arrives_until(&lab, "another refused run", |(_, runs)| runs > 1);
        one_warning(&lab, "the kernel refuses UDP segmentation: sending single datagrams");
    }
}

#[test]
fn a_super_packet_that_the_tun_refuses_costs_nothing_but_the_offload_and_one_warning() {
    let lab = joined(Nat::Cone, Underlay::Dual);
    refusing(&lab, "write", "EINVAL", NOW_AND_THEN, TUN_ONLY);
    all_arrives_until(&lab, "a refused super-packet", |(super_packets, _)| super_packets > 0);
    assert_eq!(refused(&lab, "a"), (1, 0), "TCP is not joined again");
    one_warning(&lab, "the TUN device refuses super-packets of a kind: writing single packets");
}

#[test]
fn a_read_of_the_tun_that_fails_now_and_then_ends_nothing() {
    let lab = joined(Nat::Cone, Underlay::Dual);
    refusing(&lab, "read", "EIO", NOW_AND_THEN, TUN_ONLY);
    send(&lab, "a", "b", 16 * MIB);
    send(&lab, "b", "a", 16 * MIB);
    assert!(lab.process("a").unwrap().is_running());
    let injected = std::fs::read_to_string(trace(&lab)).unwrap();
    assert!(injected.contains("INJECTED"), "{injected}");
}

#[test]
fn a_kernel_without_some_of_it_is_used_for_what_it_has() {
    let lab = joined(Nat::Cone, Underlay::Dual);
    let plain = "no offloads, using the plain TUN backend";
    // of the device: its virtio header (TUNSETIFF), TSO, USO (TUNSETOFFLOAD twice)
    for (times, said) in [("1", Some(plain)), ("2", Some(plain)), ("3", None)] {
        refusing(&lab, "ioctl", "EINVAL", times, TUN_ONLY);
        everything_arrives(&lab);
        let lines = lab.process("a").unwrap().lines();
        let warnings = warnings(&lines);
        assert_eq!(warnings.len(), usize::from(said.is_some()), "{warnings:?}");
        assert!(warnings.iter().all(|line| said.is_some_and(|said| line.text.contains(said))), "{warnings:?}");
    }
    // of the socket: which of its options it is tells a look
    refusing(&lab, "setsockopt", "ENOPROTOOPT", "65535", &[]);
    let looked = std::fs::read_to_string(trace(&lab)).unwrap();
    // an older strace has no names for them
    for (name, number) in [("UDP_SEGMENT", "0x67"), ("UDP_GRO", "0x68")] {
        let place = looked
            .lines()
            .filter(|line| line.contains("setsockopt("))
            .position(|line| line.contains("SOL_UDP") && [name, number].iter().any(|word| line.contains(word)));
        let times = (place.unwrap_or_else(|| panic!("no {name} in {looked}")) + 1).to_string();
        refusing(&lab, "setsockopt", "ENOPROTOOPT", &times, &[]);
        everything_arrives(&lab);
        assert_eq!(refused(&lab, "a"), (0, 0));
        if name == "UDP_SEGMENT" {
            down(&lab);
            let options = config(&lab, "a", "udp_gso = \"on\"");
            let node = lab.start_node("a", &with_refusals(&lab, "setsockopt", "ENOPROTOOPT", &times, &[], options));
            let node = node.unwrap();
            assert_eq!(node.wait_exit(PATIENCE).unwrap().code(), Some(2), "{}", node.tail(5));
            assert!(node.tail(5).contains("this kernel does not segment UDP"), "{}", node.tail(5));
        }
    }
}

#[test]
fn the_tuns_mtu_may_change_under_the_node() {
    let lab = lab().hub("h1").site("a", Nat::Cone).site("b", Nat::Cone).build().unwrap();
    lab.bring_up().unwrap();
    let address = lab.site("b").unwrap().virtual_ip().into();
    let flow = Transfer::start(gateway(&lab, "a"), gateway(&lab, "b"), address, Payload::Random, None).unwrap();
    for mtu in ["1280", "9000", "1400"] {
        for site in ["a", "b"] {
            gateway(&lab, site).exec("ip", ["link", "set", "fl0", "mtu", mtu]).unwrap();
        }
        flow.wait_received(flow.received() + 8 * MIB, PATIENCE).unwrap();
        send(&lab, "b", "a", 4 * MIB);
        every_datagram_comes_back_in_the_end(&lab);
    }
    let report = flow.stop(PATIENCE);
    assert!(report.equal && report.broken.is_none(), "{report:?}");
}

#[test]
fn jumbo_packets_travel_over_jumbo_wires_and_over_others_in_pieces() {
    let lab = lab().hub("h1").site("a", Nat::Cone).site("b", Nat::Cone).build().unwrap();
    lab.network_create().unwrap();
    let source = lab.admin_state().join("network.toml");
    let text = std::fs::read_to_string(&source).unwrap();
    assert!(text.contains("# mtu = 1400"), "{text}");
    std::fs::write(&source, text.replace("# mtu = 1400", "mtu = 8900")).unwrap();
    lab.start_hubs().unwrap();
    lab.publish().unwrap();
    for wires in [1500, 9000] {
        wire_mtu(&lab, wires);
        for site in ["a", "b"] {
            if wires == 1500 {
                lab.join(site).unwrap();
            }
            lab.up(site).unwrap();
        }
        let _talk = ping(&lab, "a", "b");
        wait_path(&lab, "a", "b", "a direct path", is_direct);
        send_by_every_address(&lab, "a", "b", 8 * MIB);
        every_datagram_comes_back_in_the_end(&lab);
        let wide = |mtu: u64| if wires == 9000 { mtu > 8900 } else { mtu < 1500 };
        for site in ["a", "b"] {
            let other = if site == "a" { "b" } else { "a" };
            wait_path(&lab, site, other, "a size that fits", |path| path["mtu"].as_u64().is_some_and(wide));
        }
    }
}

#[test]
fn wires_with_the_least_mtu_of_ipv6_carry_everything() {
    let lab = lab().hub("h1").site("a", Nat::Cone).site("b", Nat::Cone).build().unwrap();
    wire_mtu(&lab, 1280);
    lab.bring_up().unwrap();
    narrow(&lab, 1280 - 40 - 8);
}

#[test]
fn wires_with_the_least_mtu_of_ipv4_carry_everything() {
    let lab = lab().underlay(Underlay::V4).hub("h1").site("a", Nat::Cone).site("b", Nat::Cone).build().unwrap();
    wire_mtu(&lab, 576);
    lab.bring_up().unwrap();
    narrow(&lab, 576 - 20 - 8);
}

/// Everything passes, and the path in use is known to carry so many bytes at most.
fn narrow(lab: &Lab, most: u64) {
    let _talk = ping(lab, "a", "b");
    send(lab, "a", "b", 4 * MIB);
    send(lab, "b", "a", 4 * MIB);
    every_datagram_comes_back_in_the_end(lab);
    let path = path(&lab.status("a").unwrap(), "b").unwrap();
    assert!(path["transport"] == "tcp" || path["mtu"].as_u64().is_some_and(|mtu| mtu <= most), "{path:#}");
}

/// Gives every wire of the internet this MTU; the TUNs keep theirs.
fn wire_mtu(lab: &Lab, mtu: u32) {
    for machine in lab.machines() {
        let links = machine.exec("ip", ["-o", "link", "show", "type", "veth"]).unwrap();
        for line in links.lines() {
            let name = line.split([' ', ':', '@']).filter(|word| !word.is_empty()).nth(1).unwrap();
            machine.exec("ip", ["link", "set", "dev", name, "mtu", &mtu.to_string()]).unwrap();
        }
    }
}

/// A network whose nodes are joined and not up.
fn joined(nat: Nat, underlay: Underlay) -> Lab {
    let lab = lab().underlay(underlay).hub("h1").site("a", nat).site("b", nat).build().unwrap();
    lab.network_create().unwrap();
    lab.start_hubs().unwrap();
    lab.publish().unwrap();
    lab.join("a").unwrap();
    lab.join("b").unwrap();
    lab
}

/// Options that run a hub or a node with these settings in a file.
fn config(lab: &Lab, name: &str, settings: &str) -> RunOptions {
    let file = lab.folder().join("state").join(format!("{name}.toml"));
    std::fs::write(&file, settings).unwrap();
    RunOptions::args(["--config", file.to_str().unwrap()])
}

/// Runs both nodes; to a's the kernel refuses a kind of system call, so many times as strace says it.
fn refusing(lab: &Lab, call: &str, errno: &str, times: &str, only: &[&str]) {
    down(lab);
    lab.up_with("a", &with_refusals(lab, call, errno, times, only, RunOptions::default())).unwrap();
    lab.up("b").unwrap();
    drop(ping(lab, "a", "b"));
}

/// Ends a's node where one runs, and with it its strace.
fn down(lab: &Lab) {
    let state = lab.site("a").unwrap().state().to_str().unwrap();
    if lab.process("a").is_ok_and(|node| node.is_running()) {
        lab.flatlan(gateway(lab, "a"), ["down", "--state", state]).unwrap().success().unwrap();
        lab.process("a").unwrap().wait_exit(PATIENCE).unwrap();
    }
}

fn with_refusals(lab: &Lab, call: &str, errno: &str, times: &str, only: &[&str], options: RunOptions) -> RunOptions {
    let (traced, inject) = (format!("trace={call}"), format!("inject={call}:error={errno}:when={times}"));
    let file = trace(lab);
    let words = ["strace", "-f", "--seccomp-bpf", "-qq", "-e", "signal=none", "-e", &traced, "-e", &inject, "-o"];
    let words = words.into_iter().chain([file.to_str().unwrap()]).chain(only.iter().copied());
    // who is traced outlives its strace unless told otherwise
    let words = words.chain(["setpriv", "--pdeathsig", "KILL", "--"]);
    RunOptions { wrapper: words.map(str::to_owned).collect(), ..options }
}

/// The 300th time and every 200th after it.
const NOW_AND_THEN: &str = "300+200";
/// Of calls on the TUN device.
const TUN_ONLY: &[&str] = &["-P", "/dev/net/tun"];

/// TCP by each address, and datagrams.
fn everything_arrives(lab: &Lab) {
    let _talk = ping(lab, "a", "b");
    wait_path(lab, "a", "b", "a direct path", is_direct);
    send_by_every_address(lab, "a", "b", 4 * MIB);
    send(lab, "b", "a", 4 * MIB);
    every_datagram_comes_back(lab);
}

fn trace(lab: &Lab) -> std::path::PathBuf {
    lab.folder().join("state").join("a.strace")
}

/// TCP goes both ways until a's node says so, and then some more; nothing of it is lost or changed.
fn all_arrives_until(lab: &Lab, what: &str, enough: impl Fn((u64, u64)) -> bool) {
    let (a, b) = (gateway(lab, "a"), gateway(lab, "b"));
    let (to_a, to_b) = (lab.site("a").unwrap().virtual_ip().into(), lab.site("b").unwrap().virtual_ip().into());
    let out = Transfer::start(a, b, to_b, Payload::Random, None).unwrap();
    let back = Transfer::start(b, a, to_a, Payload::Random, None).unwrap();
    wait_status(lab, "a", what, |_| enough(refused(lab, "a")).then_some(()));
    for flow in [&out, &back] {
        flow.wait_received(flow.received() + 4 * MIB, PATIENCE).unwrap();
    }
    for flow in [out, back] {
        let report = flow.stop(PATIENCE);
        assert!(report.equal && report.broken.is_none(), "{report:?}");
    }
}

/// How many super-packets and how many runs the kernel refused to a site's node.
fn refused(lab: &Lab, site: &str) -> (u64, u64) {
    let status = lab.status(site).unwrap();
    let of = |what: &str| status["refused"][what].as_u64().unwrap_or_else(|| panic!("{status:#}"));
    (of("tun_super_packets"), of("udp_runs"))
}

/// What a node warned of, but for what a machine without time for it brings: a hub that seems away for a moment.
fn warnings(lines: &[LogLine]) -> Vec<&LogLine> {
    let passing =
        |line: &&LogLine| ["hub is lost", "hub cannot be reached"].iter().any(|text| line.text.contains(text));
    lines.iter().filter(|line| line.text.contains("WARN")).filter(|line| !passing(line)).collect()
}

/// The log of a's node has exactly one warning, and says this and why.
fn one_warning(lab: &Lab, text: &str) {
    let lines = lab.process("a").unwrap().lines();
    let warnings = warnings(&lines);
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(warnings[0].text.contains(text) && warnings[0].text.contains("reason="), "{warnings:?}");
}

/// Datagrams of random sizes, sixteen at a time, from a to b by each address and back: every one, as it was.
fn every_datagram_comes_back(lab: &Lab) {
    echo(lab, ANSWER, 0);
}

/// The same where some are too long: the kernel is told, forgets them, and cuts those after them. Who misses an answer
/// asks again.
fn every_datagram_comes_back_in_the_end(lab: &Lab) {
    echo(lab, SOON, 50);
}

fn echo(lab: &Lab, answer: Duration, tries: u32) {
    for address in lab.virtual_ips("b").unwrap() {
        let any: IpAddr = if address.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
        let (bound, port) = std::sync::mpsc::channel();
        let echo = gateway(lab, "b").thread("echo", move || {
            let socket = UdpSocket::bind((any, 0)).unwrap();
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            bound.send(socket.local_addr().unwrap().port()).unwrap();
            let mut buffer = [0; 65536];
            loop {
                let (length, from) = socket.recv_from(&mut buffer).unwrap();
                if length == 1 {
                    return;
                }
                socket.send_to(&buffer[..length], from).unwrap();
            }
        });
        let port = port.recv().unwrap();
        let asking = gateway(lab, "a").thread("ask", move || {
            let socket = UdpSocket::bind((any, 0)).unwrap();
            socket.connect((address, port)).unwrap();
            socket.set_read_timeout(Some(answer)).unwrap();
            let mut again = 0;
            let mut random: u64 = 88_172_645_463_325_252;
            for round in 0..ROUNDS {
                let mut sent: Vec<Vec<u8>> = (0..16u8)
                    .map(|n| {
                        random ^= random << 13;
                        random ^= random >> 7;
                        random ^= random << 17;
                        // some of equal size, which may travel as one
                        let length = if n % 4 < 2 { 700 } else { 3 + (random % 1700) as usize };
                        (0..length).map(|at| (at as u8).wrapping_add(n).wrapping_mul(random as u8 | 1)).collect()
                    })
                    .collect();
                let send = |sent: &[Vec<u8>]| {
                    for datagram in sent {
                        // told that another one was too long: then it is this one's turn
                        socket.send(datagram).or_else(|_| socket.send(datagram)).unwrap();
                    }
                };
                send(&sent);
                let mut buffer = [0; 65536];
                while !sent.is_empty() {
                    let got = match socket.recv(&mut buffer) {
                        Ok(length) => &buffer[..length],
                        Err(_) if again < tries => {
                            again += 1;
                            send(&sent);
                            continue;
                        }
                        Err(error) => panic!("round {round}: {} lost: {error}", sent.len()),
                    };
                    match sent.iter().position(|datagram| datagram == got) {
                        Some(at) => drop(sent.swap_remove(at)),
                        None => assert!(again > 0, "round {round}: nobody sent {got:?}"),
                    }
                }
            }
            socket.send(&[0]).unwrap();
        });
        asking.unwrap().join().unwrap();
        echo.unwrap().join().unwrap();
    }
}

/// How many times sixteen datagrams are sent.
const ROUNDS: usize = 20;
/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(10);
/// When to ask again, where that is part of it.
const SOON: Duration = Duration::from_millis(300);

/// Settings that cannot be had are refused at the start, with what to do.
#[test]
fn what_must_be_on_and_cannot_is_refused_at_the_start() {
    let lab = joined(Nat::Cone, Underlay::Dual);
    let options = config(&lab, "a", "tun_backend = \"plain\"\ntun_offload = \"on\"");
    let node = lab.start_node("a", &options).unwrap();
    assert_eq!(node.wait_exit(PATIENCE).unwrap().code(), Some(2), "{}", node.tail(5));
    let said = "cannot create TUN device fl0: tun_offload = on, but the plain backend moves single packets: set \
                tun_backend = \"auto\" or tun_offload = \"auto\"";
    assert!(node.tail(5).contains(said), "{}", node.tail(5));
    let wrong = config(&lab, "a", "udp_gso = \"maybe\"");
    let node = lab.start_node("a", &wrong).unwrap();
    assert_eq!(node.wait_exit(PATIENCE).unwrap().code(), Some(2), "{}", node.tail(5));
    assert!(node.tail(5).contains("unknown variant `maybe`"), "{}", node.tail(5));
}
