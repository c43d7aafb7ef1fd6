//! The lab speaks the command line of the `flatlan` binary to the letter. The binary here is a script that notes what
//! it was told.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use flatlan_lab::{HubSpec, Lab, LabError, Nat, ProxySpec, RunOptions, SiteSpec, Underlay};

#[test]
fn the_admin_s_and_the_node_s_commands_are_those_of_the_command_line() {
    let script = Script::new();
    let lab = Lab::builder()
        .flatlan(&script.path)
        .underlay(Underlay::Dual)
        .hub_with(HubSpec::new("h1").region("eu"))
        .site("a", Nat::Cone)
        .build()
        .unwrap();
    let states = lab.folder().join("state").display().to_string();
    assert_eq!(lab.network_create().unwrap(), "the-id");
    assert_eq!(lab.network_id().unwrap(), "the-id");
    assert_eq!(lab.add_hub(lab.hub("h1").unwrap()).unwrap(), "the-hub-key");
    lab.publish().unwrap();
    lab.join("a").unwrap();
    let process = lab.up("a").unwrap();
    assert!(process.is_running());
    assert_eq!(lab.status("a").unwrap()["self"]["name"], "a");
    let ips: Vec<String> = lab.virtual_ips("a").unwrap().iter().map(ToString::to_string).collect();
    assert_eq!(ips, ["10.77.0.1", "fd00::1"]);
    assert_eq!(lab.path("a", "b").unwrap().unwrap()["kind"], "direct");
    assert_eq!(lab.path("a", "c").unwrap(), None);
    assert_eq!(
        script.said(&states),
        [
            "network create lab --range 10.77.0.0/16 --state S/lab.flatlan",
            "hub init --state S/h1",
            "network hub add h1 --key the-hub-key --tls h1.hub.test:443 --udp h1.hub.test:51820 --region eu --state S/lab.flatlan",
            "network publish --state S/lab.flatlan",
            "invite a --ip 10.77.0.1 --route 192.168.1.0/24 --route fd77:1::/64 --state S/lab.flatlan",
            "join --token-file S/a.token --state S/a",
            "up --tun fl0 --state S/a",
            "status --json --state S/a",
            "status --json --state S/a",
            "status --json --state S/a",
            "status --json --state S/a",
        ]
    );
    lab.kill("a").unwrap();
    assert!(!process.is_running());
    assert!(lab.restart("a").unwrap().is_running());
}

#[test]
fn a_site_with_a_proxy_is_told_to_use_it_and_keeps_the_password_in_a_file() {
    let script = Script::new();
    let proxy = ProxySpec { credentials: Some(("user".to_owned(), "secret".to_owned())) };
    let site = SiteSpec::new("a").nat(Nat::ProxyOnly).proxy(proxy);
    let lab = Lab::builder().flatlan(&script.path).hub("h1").site_with(site).build().unwrap();
    let states = lab.folder().join("state").display().to_string();
    let options = RunOptions {
        args: vec!["--transport".to_owned(), "tcp".to_owned()],
        env: vec![("GREETING".to_owned(), "hello".to_owned())],
        wrapper: vec!["env".to_owned(), "WRAPPED=1".to_owned()],
    };
    let process = lab.up_with("a", &options).unwrap();
    assert_eq!(
        script.said(&states),
        ["up --tun fl0 --state S/a --proxy http://user@192.168.1.1:3128 --proxy-password-file S/a.proxy-password \
          --transport tcp"]
    );
    process.wait_line("greeting hello wrapped 1", Duration::from_secs(5)).unwrap();
}

#[test]
fn a_node_that_ends_instead_of_coming_up_is_told_with_its_last_words() {
    let script = Script::new();
    let lab = Lab::builder().flatlan(&script.path).site("a", Nat::Cone).build().unwrap();
    let error = lab.up_with("a", &RunOptions::args(["--fail"])).unwrap_err();
    assert!(matches!(&error, LabError::Ended { status, .. } if status.code() == Some(4)), "{error}");
    assert!(error.to_string().contains("error: no hub answers"), "{error}");
    let error = lab.up_with("a", &RunOptions { args: vec!["--silent".to_owned()], ..RunOptions::default() });
    let process = lab.process("a").unwrap();
    assert!(matches!(error, Err(LabError::Ended { .. })));
    assert!(!process.is_running());
}

#[test]
fn a_frozen_process_says_nothing_until_it_is_thawed() {
    let script = Script::new();
    let lab = Lab::builder().flatlan(&script.path).site("a", Nat::Cone).build().unwrap();
    let process = lab.up("a").unwrap();
    process.wait_line("tick", Duration::from_secs(5)).unwrap();
    lab.freeze("a").unwrap();
    let stat = || fs::read_to_string(format!("/proc/{}/stat", process.pid())).unwrap();
    assert!(stat().contains(") T "), "{}", stat());
    // what it said before may still be read
    let deadline = Instant::now() + Duration::from_secs(5);
    let mut said = process.lines().len();
    while process.wait_line_after(said, "tick", Duration::from_millis(200)).is_ok() {
        assert!(Instant::now() < deadline, "it goes on");
        said = process.lines().len();
    }
    lab.thaw("a").unwrap();
    process.wait_line_after(said, "tick", Duration::from_secs(5)).unwrap();
    assert_eq!(process.stop(Duration::from_secs(5)).unwrap().code(), Some(0));
}

/// A stand-in for the binary.
struct Script {
    folder: tempfile::TempDir,
    path: PathBuf,
}

impl Script {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("flatlan");
        fs::write(&path, SCRIPT.replace("LOG", &folder.path().join("said").display().to_string())).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        Self { folder, path }
    }

    /// What it was told, with `S` for the folder of the states.
    fn said(&self, states: &str) -> Vec<String> {
        let text = fs::read_to_string(self.folder.path().join("said")).unwrap();
        text.lines().map(|line| line.replace(states, "S")).collect()
    }
}

const SCRIPT: &str = r#"#!/bin/sh
echo "$@" >> LOG
case "$1 $2" in
"network create") echo progress >&2; echo the-id ;;
"hub init") echo the-hub-key ;;
"invite "*) echo the-token ;;
"up "*)
    case "$*" in
    *--fail*) echo "error: no hub answers: all are down: start one" >&2; exit 4 ;;
    *--silent*) exit 0 ;;
    esac
    trap 'exit 0' TERM
    echo "greeting $GREETING wrapped $WRAPPED" >&2
    echo "INFO up: a 10.77.0.1 fd00::1, 1 hubs" >&2
    while :; do echo tick; sleep 0.02; done ;;
"status "*) echo '{"self":{"name":"a","ips":["fd00::1","10.77.0.1"]},"peers":[{"name":"b","path":{"kind":"direct"}},{"name":"c","path":null}]}' ;;
esac
"#;
