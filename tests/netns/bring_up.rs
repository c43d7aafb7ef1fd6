//! A network made by the commands of the command line only, and used: ping, TCP, ssh and scp by virtual IP.
//!
//! ```text
//!            h1 ------ inet ------ h2
//!             /     |      |      \
//!         a-nat   b-nat  c-nat   d-nat      cone, symmetric, full cone, cone
//!           |       |      |       |
//!           a       b      c       d        a, b, c join by token, d is added by its key
//! ```

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "helpers of tests")]

mod support;

use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::Path;
use std::time::Duration;

use flatlan_lab::{Lab, Namespace, Nat, Probe, TLS_PORT, iperf3, sockets};
use serde_json::Value;
use support::{MIB, PATIENCE, gateway, is_relay, lab, path, ping, wait_path, wait_status};

#[test]
fn three_nodes_by_token_and_one_by_key_reach_each_other_by_every_address() {
    let lab = lab()
        .hub("h1")
        .hub("h2")
        .site("a", Nat::Cone)
        .site("b", Nat::Symmetric)
        .site("c", Nat::FullCone)
        .site("d", Nat::Cone)
        .build()
        .unwrap();
    let id = lab.network_create().unwrap();
    lab.start_hubs().unwrap();
    lab.publish().unwrap();
    for site in ["a", "b", "c"] {
        lab.join(site).unwrap();
    }
    join_by_key(&lab, "d", &id);
    for site in ["a", "b", "c", "d"] {
        lab.up(site).unwrap();
    }
    every_pair_pings(&lab);
    the_receiver_sees_the_sender_s_own_address_and_port(&lab);
    iperf3_runs_by_every_address(&lab);
    for site in ["a", "b", "c", "d"] {
        the_status_holds_what_the_contract_says(&lab, site, &id);
    }
}

#[test]
fn ssh_and_scp_work_by_virtual_ipv4_and_ipv6() {
    let lab = lab().hub("h1").site("a", Nat::Symmetric).site("b", Nat::Symmetric).build().unwrap();
    lab.bring_up().unwrap();
    let ssh = Ssh::serve(&lab, "b");
    let content: Vec<u8> = (0..2 * MIB).map(|number| number.wrapping_mul(31).to_le_bytes()[0]).collect();
    let (here, there) = (lab.folder().join("state").join("sent"), lab.folder().join("state").join("came"));
    fs::write(&here, &content).unwrap();
    for address in lab.virtual_ips("b").unwrap() {
        let from = gateway(&lab, "a");
        // sshd tells by which addresses it was reached: client, client's port, own, own port.
        let seen = ssh.run(from, address, "echo $SSH_CONNECTION");
        let client = lab.virtual_ips("a").unwrap().into_iter().find(|own| own.is_ipv4() == address.is_ipv4()).unwrap();
        let words: Vec<&str> = seen.split_whitespace().collect();
        assert_eq!((words[0], words[2]), (client.to_string().as_str(), address.to_string().as_str()), "{seen}");
        ssh.copy(from, &here, address, &there);
        assert!(fs::read(&there).unwrap() == content, "the copy over {address} differs");
        fs::remove_file(&there).unwrap();
    }
}

#[test]
fn a_pair_with_no_hub_in_common_is_relayed_over_two_hubs() {
    let lab = lab().hub("h1").hub("h2").site("a", Nat::Symmetric).site("b", Nat::Symmetric).build().unwrap();
    lab.network_create().unwrap();
    lab.start_hubs().unwrap();
    lab.publish().unwrap();
    lab.forbid_direct().unwrap();
    for site in ["a", "b"] {
        lab.join(site).unwrap();
    }
    lab.cut_between("a", "h2").unwrap();
    lab.cut_between("b", "h1").unwrap();
    for site in ["a", "b"] {
        lab.up(site).unwrap();
    }
    let probe = ping(&lab, "a", "b");
    let there = wait_path(&lab, "a", "b", "a relayed path", |path| is_relay(path, "udp"));
    assert_eq!(there["via"], serde_json::json!(["h1", "h2"]));
    let back = wait_path(&lab, "b", "a", "a relayed path", |path| is_relay(path, "udp"));
    assert_eq!(back["via"], serde_json::json!(["h2", "h1"]));
    probe.wait_answers(10, PATIENCE).unwrap();
    support::send(&lab, "a", "b", 8 * MIB);
}

/// `join --request` on the node, `member add --key` and `publish` at the admin's, `join --network` on the node.
fn join_by_key(lab: &Lab, site: &str, network: &str) {
    let site = lab.site(site).unwrap();
    let state = site.state().to_str().unwrap();
    let request = lab.flatlan(site.gateway(), ["join", "--request", "--state", state]).unwrap().success().unwrap();
    let (key, ip) = (request.last_line(), site.virtual_ip().to_string());
    lab.administer(["member", "add", site.name(), "--key", key, "--ip", &ip]).unwrap();
    lab.publish().unwrap();
    let hub = format!("{}:{TLS_PORT}", lab.hub("h1").unwrap().host());
    let join = ["join", "--network", network, "--hub", &hub, "--state", state];
    lab.flatlan(site.gateway(), join).unwrap().success().unwrap();
}

fn every_pair_pings(lab: &Lab) {
    let mut probes = Vec::new();
    for to in lab.sites() {
        let addresses = lab.virtual_ips(to.name()).unwrap();
        assert!(addresses.iter().any(IpAddr::is_ipv4) && addresses.iter().any(IpAddr::is_ipv6), "{addresses:?}");
        for from in lab.sites().filter(|from| from.name() != to.name()) {
            for address in &addresses {
                probes.push(Probe::ping(from.gateway(), *address, Duration::from_millis(50)).unwrap());
            }
        }
    }
    assert_eq!(probes.len(), 24);
    for probe in probes {
        probe.wait_answers(3, PATIENCE).unwrap();
    }
}

fn the_receiver_sees_the_sender_s_own_address_and_port(lab: &Lab) {
    for (from, to) in [("a", "b"), ("d", "a")] {
        for address in lab.virtual_ips(to).unwrap() {
            let (near, far) = (gateway(lab, from), gateway(lab, to));
            let echo = Probe::tcp_echo(near, far, address, Duration::from_millis(50)).unwrap();
            echo.wait_answers(1, PATIENCE).unwrap();
            let local = sockets(near).unwrap().into_iter().find(|socket| socket.peer.ip() == address).unwrap().local;
            let seen = sockets(far).unwrap().into_iter().find(|socket| socket.local.ip() == address).unwrap().peer;
            assert_eq!(seen, local);
            assert!(lab.virtual_ips(from).unwrap().contains(&seen.ip()), "{from} came as {seen}");
        }
    }
}

fn iperf3_runs_by_every_address(lab: &Lab) {
    for (from, to) in [("a", "b"), ("c", "d")] {
        for address in lab.virtual_ips(to).unwrap() {
            let rate = iperf3(lab, gateway(lab, from), gateway(lab, to), address, 1, &[]).unwrap();
            assert!(rate > 0.0, "{from} to {address}");
        }
    }
}

fn the_status_holds_what_the_contract_says(lab: &Lab, site: &str, network: &str) {
    let attached =
        |status: &Value| status["hubs"].as_array()?.iter().all(|hub| hub["state"] == "attached").then_some(());
    wait_status(lab, site, "every hub attached", attached);
    let _traffic: Vec<Probe> =
        lab.sites().filter(|other| other.name() != site).map(|other| ping(lab, site, other.name())).collect();
    let full = |status: &Value| {
        let peers = status["peers"].as_array()?;
        peers
            .iter()
            .all(|peer| peer["path"]["rtt_ms"].is_number() && peer["last_handshake_s"].is_number())
            .then(|| status.clone())
    };
    let status = wait_status(lab, site, "a measured path to every peer", full);
    assert_eq!(status["network"]["name"], "lab");
    assert_eq!(status["network"]["id"], network);
    assert!(status["network"]["roster_serial"].as_u64().unwrap() > 0, "{status:#}");
    let me = &status["self"];
    assert_eq!(me["name"], site);
    assert_eq!(me["ips"].as_array().unwrap().len(), 2);
    assert!(me["routes"].is_array() && me["boot_epoch"].as_u64().unwrap() > 0, "{me:#}");
    let hubs = status["hubs"].as_array().unwrap();
    assert_eq!(hubs.iter().map(|hub| hub["name"].as_str().unwrap()).collect::<Vec<_>>(), ["h1", "h2"]);
    for hub in hubs {
        assert!(hub["key"].as_str().unwrap().starts_with("flhub1"), "{hub:#}");
        assert_eq!((&hub["transport"], hub["rtt_ms"].is_number()), (&Value::from("udp"), true), "{hub:#}");
    }
    let peers = status["peers"].as_array().unwrap();
    assert_eq!(peers.len(), 3);
    for peer in peers {
        let way = path(&status, peer["name"].as_str().unwrap()).unwrap();
        assert!(way["kind"] == "direct" || way["kind"] == "relay", "{peer:#}");
        assert_eq!(way["via"].as_array().unwrap().is_empty(), way["kind"] == "direct", "{peer:#}");
        assert!(way["transport"] == "udp" && way["mtu"].as_u64().unwrap() >= 1200, "{peer:#}");
        assert!(peer["standby"].is_array() && peer["routes"].is_array(), "{peer:#}");
        assert_eq!(peer["ips"].as_array().unwrap().len(), 2);
        assert!(peer["tx_bytes"].as_u64().unwrap() > 0 && peer["rx_bytes"].as_u64().unwrap() > 0, "{peer:#}");
    }
    assert!(status["drops"].as_object().unwrap().values().all(Value::is_u64), "{status:#}");
}

/// An sshd of Debian's with keys made for one test.
struct Ssh {
    folder: std::path::PathBuf,
    _server: flatlan_lab::Process,
}

impl Ssh {
    fn serve(lab: &Lab, site: &str) -> Self {
        let folder = lab.folder().join("state").join("ssh");
        fs::DirBuilder::new().mode(0o700).create(&folder).unwrap();
        // sshd insists on this directory, which Debian makes when it starts the service.
        fs::DirBuilder::new().recursive(true).mode(0o755).create("/run/sshd").unwrap();
        let machine = gateway(lab, site);
        let keys = ["host", "user"].map(|name| folder.join(name));
        for key in &keys {
            machine.exec("ssh-keygen", ["-q", "-t", "ed25519", "-N", "", "-f", key.to_str().unwrap()]).unwrap();
        }
        let allowed = folder.join("authorized_keys");
        fs::copy(folder.join("user.pub"), &allowed).unwrap();
        fs::set_permissions(&allowed, fs::Permissions::from_mode(0o600)).unwrap();
        let mut command = Namespace::command("/usr/sbin/sshd");
        command.args(["-D", "-e", "-f", "/dev/null", "-p", "22"]);
        for option in [
            format!("HostKey={}", keys[0].display()),
            format!("AuthorizedKeysFile={}", allowed.display()),
            "PidFile=none".to_owned(),
            "StrictModes=no".to_owned(),
            "UsePAM=no".to_owned(),
            "Subsystem=sftp internal-sftp".to_owned(),
        ] {
            command.args(["-o", &option]);
        }
        let server = machine.spawn("sshd", command, &lab.folder().join("log").join("sshd.log")).unwrap();
        server.wait_line("listening on :: port 22", PATIENCE).unwrap();
        Self { folder, _server: server }
    }

    fn run(&self, from: &Namespace, to: IpAddr, command: &str) -> String {
        let mut words = self.options();
        words.extend(["-n".to_owned(), format!("root@{to}"), command.to_owned()]);
        from.exec("ssh", words).unwrap()
    }

    fn copy(&self, from: &Namespace, file: &Path, to: IpAddr, there: &Path) {
        let host = if to.is_ipv6() { format!("[{to}]") } else { to.to_string() };
        let mut words = self.options();
        words.extend(["-q".to_owned(), file.display().to_string(), format!("root@{host}:{}", there.display())]);
        from.exec("scp", words).unwrap();
    }

    fn options(&self) -> Vec<String> {
        let key = self.folder.join("user");
        let fixed = ["-F", "/dev/null", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no"];
        let mut words = fixed.map(str::to_owned).to_vec();
        words.extend(["-o".to_owned(), "UserKnownHostsFile=/dev/null".to_owned(), "-o".to_owned()]);
        words.extend(["LogLevel=ERROR".to_owned(), "-i".to_owned(), key.display().to_string()]);
        words
    }
}
