//! What a node and a hub refuse, with the exit code and every word that an operator reads.
//!
//! ```text
//!   admin -- inet            state directories, ports, files: one machine is enough
//!
//!   hub h1 -- inet           what shows only once a roster is known: the device's name, the range, the disk
//!            /    \
//!        a-nat    b-nat
//!          |        |
//!          a        b
//! ```

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

mod support;

use std::ffi::OsStr;
use std::fs;
use std::net::{Ipv6Addr, TcpListener, UdpSocket};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use flatlan_lab::{Lab, Namespace, Nat, Outcome};
use serde_json::Value;
use support::{PATIENCE, gateway, lab, ping, wait_status};

#[test]
fn a_state_directory_that_is_missing_or_empty_asks_for_a_join() {
    let alone = Alone::new();
    let state = alone.folder().join("nothing");
    refused(
        &alone.up(&state),
        2,
        "state directory S does not exist: join a network first: `flatlan join TOKEN --state S`, or name the right one with --state DIR",
        &state,
    );
    private(&state);
    refused(
        &alone.up(&state),
        2,
        "this node has not joined a network: S holds no network: run `flatlan join TOKEN --state S`",
        &state,
    );
}

#[test]
fn a_state_directory_or_a_seed_that_others_may_read_is_refused_with_the_command_that_closes_it() {
    let alone = Alone::new();
    let state = alone.joined();
    chmod(&state, 0o755);
    refused(&alone.up(&state), 2, "state directory S is open to others (mode 0755): run `chmod 700 S`", &state);
    chmod(&state, 0o700);
    chmod(&state.join("seed"), 0o640);
    refused(
        &alone.up(&state),
        2,
        "secret S/seed can be read by others (mode 0640): run `chmod 600 S/seed`, and replace the key if someone may have read it",
        &state,
    );
}

#[test]
fn a_state_directory_of_a_newer_version_is_refused_and_stays_as_it_was() {
    let alone = Alone::new();
    let state = alone.joined();
    fs::write(state.join("version"), "99\n").unwrap();
    let before = content(&state);
    let expected = "state directory S was written by a newer flatlan (format 99, this one knows 1): install that version, or use another --state; nothing was changed";
    refused(&alone.up(&state), 2, expected, &state);
    refused(&alone.run(["leave", "--state"], &state), 2, expected, &state);
    refused(&alone.run(["join", "--request", "--state"], &state), 2, expected, &state);
    assert_eq!(content(&state), before);
}

#[test]
fn a_file_of_a_later_version_is_refused_and_stays_as_it_was() {
    let alone = Alone::new();
    let state = alone.joined();
    for (file, bytes) in
        [("roster", &b"\x84\x02\xf6\xf6\xf6"[..]), ("ratchet", b"\x83\x02\xf6\xf6"), ("epoch", b"\x02\x01")]
    {
        let path = state.join(file);
        let before = fs::read(&path).ok();
        fs::write(&path, bytes).unwrap();
        chmod(&path, 0o600);
        let expected = format!(
            "file `{file}` of the state directory was written by a later version of flatlan (format 2): upgrade flatlan"
        );
        refused(&alone.up(&state), 2, &expected, &state);
        assert_eq!(fs::read(&path).unwrap(), bytes);
        before.map_or_else(|| fs::remove_file(&path), |before| fs::write(&path, before)).unwrap();
    }
}

#[test]
fn a_state_directory_that_lost_its_seed_or_network_says_how_to_start_over() {
    let alone = Alone::new();
    let state = alone.joined();
    fs::remove_file(state.join("seed")).unwrap();
    refused(
        &alone.up(&state),
        2,
        "S/seed does not exist: restore it from a copy, or empty the directory with `flatlan leave --state S` and join again with a token of `flatlan invite NAME --replace`",
        &state,
    );
    // what it says to do works
    alone.run(["leave", "--state"], &state).success().unwrap();
    alone.join_by_key(&state);
    for (file, text) in [("seed", "no key\n"), ("network.json", "{\"network\":")] {
        let before = fs::read(state.join(file)).unwrap();
        fs::write(state.join(file), text).unwrap();
        let expected = format!(
            "S/{file} is damaged: restore it from a copy, or empty the directory with `flatlan leave --state S` and join again with a token of `flatlan invite NAME --replace`"
        );
        refused(&alone.up(&state), 2, &expected, &state);
        fs::write(state.join(file), before).unwrap();
    }
    fs::remove_file(state.join("network.json")).unwrap();
    refused(
        &alone.up(&state),
        2,
        "this node has not joined a network: S holds no network: run `flatlan join TOKEN --state S`",
        &state,
    );
}

#[test]
fn a_roster_on_disk_that_is_damaged_is_fetched_again() {
    let lab = joined_lab();
    for file in ["roster", "ratchet"] {
        let found = fs::read_dir(lab.site("a").unwrap().state()).unwrap().map(|entry| entry.unwrap().file_name());
        let name = found.map(|name| name.into_string().unwrap()).find(|name| name.starts_with(file)).unwrap();
        let path = lab.site("a").unwrap().state().join(name);
        let mut bytes = fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        *bytes.get_mut(middle).unwrap() ^= 0x40;
        fs::write(&path, bytes).unwrap();
        let node = lab.up("a").unwrap();
        node.wait_line(&format!("{file}: "), PATIENCE).unwrap();
        drop(ping(&lab, "b", "a"));
        assert!(node.stop(PATIENCE).unwrap().success());
    }
}

#[test]
fn two_processes_never_share_a_state_directory() {
    let lab = joined_lab();
    let node = lab.up("a").unwrap();
    let state = lab.site("a").unwrap().state().to_owned();
    let expected = format!(
        "state directory S is in use by another process (pid {}): stop it with `flatlan down --state S`, or use another --state",
        node.pid()
    );
    for words in [["up", "--state"], ["leave", "--state"]] {
        let mut words: Vec<&OsStr> = words.map(OsStr::new).to_vec();
        words.push(state.as_os_str());
        refused(&lab.flatlan(gateway(&lab, "a"), words).unwrap(), 1, &expected, &state);
    }
    assert!(node.is_running());
}

#[test]
fn a_node_answers_group_flatlan_and_nobody_else() {
    let lab = joined_lab();
    let machine = gateway(&lab, "a");
    // nobody may look into the lab's folder
    let folder = tempfile::TempDir::new().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let [state, groups, program] = ["state", "group", "flatlan"].map(|name| folder.path().join(name));
    fs::copy(env!("CARGO_BIN_EXE_flatlan"), &program).unwrap();
    let here = fs::read_to_string("/etc/group").unwrap();
    let others: String =
        here.lines().filter(|line| !line.starts_with("flatlan:")).map(|line| format!("{line}\n")).collect();
    fs::write(&groups, format!("{others}flatlan:x:{GROUP}:\n")).unwrap();
    machine.exec("mount", [Path::new("--bind"), &groups, Path::new("/etc/group")]).unwrap();
    machine.exec("cp", [Path::new("-a"), lab.site("a").unwrap().state(), &state]).unwrap();
    let mut command = Namespace::command(&program);
    command.args(["up", "--tun", "fl0", "--state"]).arg(&state);
    let node = machine.spawn("node", command, &lab.folder().join("log").join("grouped.log")).unwrap();
    node.wait_line("up: ", PATIENCE).unwrap();

    let ask = |group: u32| {
        let mut command = Namespace::command("setpriv");
        command.args(["--reuid", "65534", "--regid", &group.to_string(), "--clear-groups"]);
        command.arg(&program).args(["status", "--json", "--state"]).arg(&state);
        machine.output(command).unwrap()
    };
    let answered = ask(GROUP).success().unwrap().json().unwrap();
    assert_eq!(answered.pointer("/self/name").and_then(Value::as_str), Some("a"));
    refused(
        &ask(65534),
        3,
        "may not ask the node: S/control.sock: run as root, as the owner of the state directory, or as a member of group flatlan (the group must be there when the node starts)",
        &state,
    );
}

#[test]
fn a_full_disk_stops_no_node_that_runs_and_starts_none() {
    let lab = lab().hub("h1").site("a", Nat::Cone).site("b", Nat::Cone).build().unwrap();
    lab.network_create().unwrap();
    lab.start_hubs().unwrap();
    lab.publish().unwrap();
    let state = lab.site("a").unwrap().state().to_owned();
    private(&state);
    let machine = gateway(&lab, "a");
    let disk = state.to_str().unwrap();
    machine.exec("mount", ["-t", "tmpfs", "-o", "size=256k,mode=700", "disk", disk]).unwrap();
    for site in ["a", "b"] {
        lab.join(site).unwrap();
        lab.up(site).unwrap();
    }
    let probe = ping(&lab, "b", "a");
    let node = lab.process("a").unwrap();
    shell(machine, &format!("cat /dev/zero > {disk}/filler 2>/dev/null || true"));
    // a change that the node wants to write down
    let before = serial(&lab.status("a").unwrap());
    lab.administer(["member", "add", "c", "--key", &key(&lab)]).unwrap();
    lab.publish().unwrap();
    let line = node.wait_line("the state directory cannot be written", PATIENCE).unwrap();
    assert!(line.text.contains("ERROR"), "{}", line.text);
    assert!(
        line.text.contains("no space left on its disk: free some space and try again; the file is as it was"),
        "{}",
        line.text
    );
    wait_status(&lab, "a", "the newer roster", |status| (serial(status) > before).then_some(()));
    drop(probe);
    assert!(node.is_running());
    node.kill();
    refused(
        &lab.flatlan(machine, [OsStr::new("up"), "--state".as_ref(), state.as_os_str()]).unwrap(),
        1,
        "cannot write S/epoch: no space left on its disk: free some space and try again; the file is as it was",
        &state,
    );
    // what it says to do works
    shell(machine, &format!("rm {disk}/filler"));
    lab.up("a").unwrap();
}

#[test]
fn a_udp_port_in_use_is_named_with_the_way_to_find_who_has_it() {
    let alone = Alone::new();
    let state = alone.joined();
    let _taken = alone.machine().run(|| UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 51_820)).unwrap());
    refused(
        &alone.up(&state),
        1,
        "cannot bind UDP [::]:51820: the port is in use: stop what uses it (`ss -ulpn sport = 51820` shows it), or choose another port",
        &state,
    );
}

#[test]
fn a_hub_s_port_in_use_is_named() {
    let alone = Alone::new();
    let state = alone.folder().join("hub");
    alone.run(["hub", "init", "--state"], &state).success().unwrap();
    let args = ["hub", "run", "--allow-any", "--tls", "127.0.0.1:443", "--udp", "127.0.0.1:51820", "--state"];
    let taken = alone.machine().run(|| TcpListener::bind(("127.0.0.1", 443)).unwrap());
    refused(
        &alone.run(args, &state),
        1,
        "cannot listen on TCP 127.0.0.1:443: the port is in use: stop what uses it (`ss -tlpn sport = 443` shows it), or choose another port",
        &state,
    );
    drop(taken);
    let _taken = alone.machine().run(|| UdpSocket::bind(("127.0.0.1", 51_820)).unwrap());
    refused(
        &alone.run(args, &state),
        1,
        "cannot bind UDP 127.0.0.1:51820: the port is in use: stop what uses it (`ss -ulpn sport = 51820` shows it), or choose another port",
        &state,
    );
}

#[test]
fn a_hub_without_directory_key_or_right_says_what_is_missing() {
    let alone = Alone::new();
    let state = alone.folder().join("hub");
    let args = ["hub", "run", "--allow-any", "--tls", "127.0.0.1:443", "--state"];
    refused(
        &alone.run(args, &state),
        2,
        "state directory S does not exist: run `flatlan hub init --state S`, or name the right one with --state DIR",
        &state,
    );
    private(&state);
    refused(&alone.run(args, &state), 2, "S holds no hub key: run `flatlan hub init --state S`", &state);
    alone.run(["hub", "init", "--state"], &state).success().unwrap();
    refused(
        &alone.run(["hub", "run", "--tls", "127.0.0.1:443", "--state"], &state),
        2,
        "no network to serve: give --allow NETWORK_ID (as `flatlan network create` printed it), or --allow-any",
        &state,
    );
    refused(
        &alone.run_without("net_bind_service", args, &state),
        3,
        "cannot listen on TCP 127.0.0.1:443: not permitted: ports below 1024 need root or the capability CAP_NET_BIND_SERVICE",
        &state,
    );
    fs::write(state.join("hub.key"), "no key\n").unwrap();
    refused(
        &alone.run(args, &state),
        2,
        "S/hub.key is damaged: restore it from a copy: nodes know this hub by its key; without it make a new hub: `flatlan hub init` in another directory, and `flatlan network hub add` with its key",
        &state,
    );
}

#[test]
fn a_device_name_that_is_taken_is_named() {
    let lab = joined_lab();
    let state = lab.site("a").unwrap().state().to_owned();
    let machine = gateway(&lab, "a");
    machine.exec("ip", ["link", "add", "fl0", "type", "bridge"]).unwrap();
    let up = |name: &str| {
        let words = [OsStr::new("up"), "--tun".as_ref(), name.as_ref(), "--state".as_ref(), state.as_os_str()];
        lab.flatlan(machine, words).unwrap()
    };
    refused(
        &up("fl0"),
        1,
        "cannot create TUN device fl0: the name belongs to a network device of another kind: choose another with --tun NAME",
        &state,
    );
    refused(
        &up("a/b"),
        2,
        "cannot create TUN device `a/b`: a name has 1 to 15 characters, no blanks, `/`, `:` or `%`: choose another with --tun NAME",
        &state,
    );
    machine.exec("ip", ["link", "delete", "fl0"]).unwrap();
    lab.up("a").unwrap();
    let other = lab.folder().join("state").join("other");
    copy(&state, &other);
    let words =
        [OsStr::new("up"), "--tun".as_ref(), "fl0".as_ref(), "--port".as_ref(), "0".as_ref(), "--state".as_ref()];
    let words = words.into_iter().chain([other.as_os_str()]);
    refused(
        &lab.flatlan(machine, words).unwrap(),
        1,
        "cannot create TUN device fl0: another process uses it: stop that process, or choose another name with --tun NAME",
        &other,
    );
}

#[test]
fn an_overlay_range_that_overlaps_a_connected_lan_is_refused_with_both_and_the_device() {
    let lab = joined_lab();
    let state = lab.site("a").unwrap().state().to_owned();
    let machine = gateway(&lab, "a");
    shell(
        machine,
        "ip link add office type bridge && ip address add 10.77.200.5/24 dev office && ip link set office up",
    );
    refused(
        &lab.flatlan(machine, [OsStr::new("up"), "--state".as_ref(), state.as_os_str()]).unwrap(),
        2,
        "the overlay's 10.77.0.0/16 overlaps 10.77.200.0/24, which this machine is in by office: choose another range with `flatlan network create --range`, or leave that network",
        &state,
    );
}

#[test]
fn a_node_without_the_right_to_make_a_device_says_so_before_it_waits_for_a_hub() {
    let alone = Alone::new();
    let state = alone.joined();
    let expected = "cannot create TUN device flatlan: not permitted: this needs root, or the capability CAP_NET_ADMIN and access to /dev/net/tun";
    refused(&alone.run_without("net_admin", ["up", "--state"], &state), 3, expected, &state);
    let mut command = Namespace::command("unshare");
    let script = "mount -t tmpfs none /dev/net && exec \"$0\" up --state \"$1\"";
    command.args(["--mount", "sh", "-c", script, env!("CARGO_BIN_EXE_flatlan")]).arg(&state);
    refused(
        &alone.machine().output(command).unwrap(),
        3,
        "cannot create a TUN device: /dev/net/tun does not exist: `modprobe tun`, or in a container pass --device /dev/net/tun",
        &state,
    );
}

#[test]
fn a_state_directory_that_cannot_be_written_names_the_flag_for_another() {
    let alone = Alone::new();
    let state = alone.joined();
    chmod(&state, 0o500);
    refused(
        &alone.run_without("dac_override", ["up", "--state"], &state),
        3,
        "cannot write S/epoch: permission denied: run as a user who may, or use another directory with --state DIR",
        &state,
    );
    let below = state.join("below");
    refused(
        &alone.run_without("dac_override", ["join", "--request", "--state"], &below),
        3,
        "cannot create directory S: permission denied: run as a user who may, or use another directory with --state DIR",
        &below,
    );
}

#[test]
fn a_config_file_with_an_unknown_setting_is_refused_on_one_line_with_its_number() {
    let alone = Alone::new();
    let file = alone.folder().join("state").join("node.toml");
    fs::write(&file, "port = 51820\nprot = 1\n").unwrap();
    let config = |words: &[&str]| {
        let words: Vec<&OsStr> = words.iter().map(OsStr::new).chain([file.as_os_str()]).collect();
        alone.lab.flatlan(alone.machine(), words).unwrap()
    };
    refused(
        &config(&["up", "--config"]),
        2,
        "S: line 2: unknown field `prot`, expected one of `state`, `tun`, `port`, `transport`, `tun_backend`, `tun_offload`, `udp_gso`, `dscp`, `spread`, `proxy`, `proxy_password_file`, `workers`, `lan`, `lan_probe`: `flatlan check S`",
        &file,
    );
    refused(
        &config(&["hub", "run", "--config"]),
        2,
        "config file S: line 1: unknown field `port`, expected one of `state`, `tls`, `udp`, `udp_gso`, `workers`, `allow`, `allow_any`, `peers`, `admin`, `node_packets`, `node_bytes`, `network_packets`, `network_bytes`, `max_networks`, `max_roster_bytes`, `certificate`, `certificate_key`: `flatlan check S`",
        &file,
    );
    fs::remove_file(&file).unwrap();
    refused(&config(&["up", "--config"]), 2, "cannot read S: no such file or directory: give another --config", &file);
}

#[test]
fn a_join_while_the_redeeming_hub_is_down_names_it_and_how_to_reissue() {
    let lab = lab().hub("h1").site("a", Nat::Cone).build().unwrap();
    lab.network_create().unwrap();
    lab.start_hubs().unwrap();
    lab.publish().unwrap();
    let token = lab.invite("a").unwrap();
    lab.kill("h1").unwrap();
    let address = lab.hub("h1").unwrap().host().to_owned();
    let expected = format!(
        "cannot reach hub h1, the only one that may redeem this token: cannot connect to {address}:443: connection refused: check that it runs, and that no firewall is in the way: try again when it is up, or ask the admin for a token that another hub redeems (`flatlan invite a --replace --hub HUB`)"
    );
    refused(&lab.join_with("a", &token).unwrap(), 4, &expected, Path::new("/nowhere"));
    // the token was not used up
    lab.start_hub("h1").unwrap();
    lab.join_with("a", &token).unwrap().success().unwrap();
}

#[test]
fn asking_a_node_that_does_not_run_says_how_to_start_it() {
    let alone = Alone::new();
    let state = alone.joined();
    let expected = "no node runs on S: start it with `flatlan up --state S`";
    for words in
        [&["status", "--state"][..], &["status", "--json", "--state"], &["down", "--state"], &["ping", "b", "--state"]]
    {
        let words: Vec<&OsStr> = words.iter().map(OsStr::new).chain([state.as_os_str()]).collect();
        refused(&alone.lab.flatlan(alone.machine(), words).unwrap(), 4, expected, &state);
    }
}

/// One machine, no hub: what is refused before anything is dialled.
struct Alone {
    lab: Lab,
}

impl Alone {
    fn new() -> Self {
        Self { lab: lab().build().unwrap() }
    }

    fn machine(&self) -> &Namespace {
        self.lab.admin()
    }

    fn folder(&self) -> &Path {
        self.lab.folder()
    }

    /// A state directory that knows a network whose hub does not exist.
    fn joined(&self) -> PathBuf {
        self.lab.network_create().unwrap();
        let state = self.folder().join("state").join("node");
        self.join_by_key(&state);
        state
    }

    fn join_by_key(&self, state: &Path) {
        let id = self.lab.network_id().unwrap();
        self.run(["join", "--network", &id, "--hub", "198.18.250.2:443", "--state"], state).success().unwrap();
    }

    fn up(&self, state: &Path) -> Outcome {
        self.run(["up", "--state"], state)
    }

    /// Runs a command whose last argument is the state directory.
    fn run<const N: usize>(&self, words: [&str; N], state: &Path) -> Outcome {
        let words = words.iter().map(OsStr::new).chain([state.as_os_str()]);
        self.lab.flatlan(self.machine(), words).unwrap()
    }

    /// The same without one of root's capabilities.
    fn run_without<const N: usize>(&self, capability: &str, words: [&str; N], state: &Path) -> Outcome {
        let mut command = Namespace::command("setpriv");
        let (bounding, inheritable) = (format!("--bounding-set=-{capability}"), format!("--inh-caps=-{capability}"));
        command.args([&bounding, &inheritable, "--", env!("CARGO_BIN_EXE_flatlan")]).args(words).arg(state);
        self.machine().output(command).unwrap()
    }
}

/// A lab whose two nodes have joined; one is up.
fn joined_lab() -> Lab {
    let lab = lab().hub("h1").site("a", Nat::Cone).site("b", Nat::Cone).build().unwrap();
    lab.network_create().unwrap();
    lab.start_hubs().unwrap();
    lab.publish().unwrap();
    for site in ["a", "b"] {
        lab.join(site).unwrap();
    }
    lab.up("b").unwrap();
    lab
}

/// Insists on exit code and message, the last words on stderr; `S` stands for the path.
#[track_caller]
fn refused(outcome: &Outcome, code: i32, text: &str, path: &Path) {
    // warnings about the machine come before, each a line with a date
    let said: Vec<&str> = outcome.stderr.lines().filter(|line| !line.contains(" WARN ")).collect();
    let said = said.join("\n").replace(path.to_str().unwrap(), "S");
    assert_eq!((outcome.code(), said.as_str()), (code, format!("error: {text}").as_str()));
    assert_eq!(outcome.stdout, "");
}

fn serial(status: &Value) -> u64 {
    status.pointer("/network/roster_serial").and_then(Value::as_u64).unwrap()
}

/// The key of some node that has not joined.
fn key(lab: &Lab) -> String {
    let state = lab.folder().join("state").join("stranger");
    let words = [OsStr::new("join"), "--request".as_ref(), "--state".as_ref(), state.as_os_str()];
    lab.flatlan(lab.admin(), words).unwrap().success().unwrap().last_line().to_owned()
}

fn shell(machine: &Namespace, script: &str) {
    machine.exec("sh", ["-c", script]).unwrap();
}

fn private(state: &Path) {
    fs::create_dir_all(state).unwrap();
    chmod(state, 0o700);
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn content(state: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let files = fs::read_dir(state).unwrap().map(|entry| entry.unwrap().path());
    // the lock names the process that has it
    let files = files.filter(|path| path.is_file() && path.file_name() != Some(OsStr::new("lock")));
    let mut all: Vec<_> = files.map(|path| (path.clone(), fs::read(path).unwrap())).collect();
    all.sort();
    all
}

/// A state directory copied, as a backup is.
fn copy(from: &Path, to: &Path) {
    private(to);
    for (path, bytes) in content(from) {
        let copied = to.join(path.file_name().unwrap());
        fs::write(&copied, bytes).unwrap();
        fs::set_permissions(&copied, fs::metadata(&path).unwrap().permissions()).unwrap();
    }
}

/// A group that no machine has.
const GROUP: u32 = 54_242;
