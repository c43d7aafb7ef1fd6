//! A lab leaves nothing behind, however it ends, and labs do not meet.
//!
//! Where a whole process has to end, the test runs this very program again as a `role`: see there.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "helpers of tests")]

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use flatlan_lab::{Lab, LabError, Missing, Namespace, Nat, Process, sweep};

#[test]
fn a_dropped_lab_leaves_no_namespace_no_process_and_no_file() {
    let lab = Lab::builder().hub("h1").site("a", Nat::Cone).build().unwrap();
    let (prefix, folder) = (lab.prefix().to_owned(), lab.folder().to_path_buf());
    let pid = sleeper(&lab).pid();
    assert_eq!(named(&prefix).len(), 6, "{:?}", named(&prefix));
    drop(lab);
    assert_eq!(named(&prefix), BTreeSet::new());
    assert!(!folder.exists());
    assert!(!alive(pid));
}

#[test]
fn a_lab_that_cannot_be_built_leaves_nothing_either() {
    let name = format!("lf{}", std::process::id());
    let refused = Lab::builder().prefix(&name).hub("h1").site("a", Nat::Cone).hub("h1").build().unwrap_err();
    assert!(refused.to_string().contains(&format!("{name}-h1")), "{refused}");
    assert_eq!(named(&name), BTreeSet::new());
}

#[test]
fn a_panic_takes_the_lab_down() {
    let (sender, receiver) = std::sync::mpsc::channel();
    let panicked = std::thread::spawn(move || {
        let lab = Lab::builder().hub("h1").build().unwrap();
        let process = sleeper(&lab);
        sender.send((lab.prefix().to_owned(), process.pid())).unwrap();
        panic!("as planned");
    });
    let (prefix, pid) = receiver.recv().unwrap();
    assert!(panicked.join().is_err());
    assert_eq!(named(&prefix), BTreeSet::new());
    assert!(!alive(pid));
}

#[test]
fn two_labs_live_at_once_with_the_same_addresses() {
    let labs = [(); 2].map(|()| Lab::builder().hub("h1").site("a", Nat::Cone).build().unwrap());
    assert_ne!(labs[0].prefix(), labs[1].prefix());
    let [one, other] = labs;
    drop(one);
    let hub = other.hub("h1").unwrap().addresses()[0];
    other.wait_reachable(other.machine("a").unwrap(), hub, Duration::from_secs(2)).unwrap();
}

#[test]
fn a_prefix_in_use_is_refused() {
    let name = format!("lt{}", std::process::id());
    let lab = Lab::builder().prefix(&name).build().unwrap();
    let refused = Lab::builder().prefix(&name).build().unwrap_err().to_string();
    assert!(refused.contains("another lab has the same prefix"), "{refused}");
    drop(lab);
    drop(Lab::builder().prefix(&name).build().unwrap());
}

#[test]
fn ctrl_c_and_sigterm_take_the_lab_down_before_the_process_ends() {
    for (signal, code) in [("INT", 130), ("TERM", 143), ("HUP", 129)] {
        let mut role = Role::start(Command::new(std::env::current_exe().unwrap()));
        assert!(alive(role.sleeper));
        assert!(Command::new("kill").args(["-s", signal, &role.child.id().to_string()]).status().unwrap().success());
        assert_eq!(role.child.wait().unwrap().code(), Some(code));
        assert_eq!(named(&role.prefix), BTreeSet::new());
        assert!(!role.folder.exists());
        assert!(!alive(role.sleeper));
    }
}

#[test]
fn what_a_killed_process_left_is_removed_when_the_next_lab_starts() {
    let mut role = Role::start(Command::new(std::env::current_exe().unwrap()));
    role.child.kill().unwrap();
    role.child.wait().unwrap();
    // The kernel has killed the program inside already; names are left.
    let deadline = Instant::now() + Duration::from_secs(5);
    while alive(role.sleeper) {
        assert!(Instant::now() < deadline, "the program outlived its lab");
        std::thread::yield_now();
    }
    sweep().unwrap();
    assert_eq!(named(&role.prefix), BTreeSet::new());
    assert!(!role.folder.exists());
}

#[test]
fn without_a_tun_device_the_error_names_it() {
    let (_folder, program) = readable_self();
    let mut command = nobody_with_a_tun_device_of_mode("600");
    command.arg(program);
    let output = role_command(&mut command).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("refused 3 not permitted: /dev/net/tun cannot be opened"), "{text}");
}

#[test]
fn a_user_without_root_has_a_lab_in_a_user_namespace_where_the_tun_device_is_open() {
    let (_folder, program) = readable_self();
    let mut command = nobody_with_a_tun_device_of_mode("666");
    command.arg(program).env("HOME", "/");
    if !user_namespaces() {
        // in a chroot, say: then it says so
        let output = role_command(&mut command).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(text.contains("refused 3 not permitted: no network namespaces: this needs root"), "{text}");
        return;
    }
    let mut role = Role::start(command);
    assert_eq!(named(&role.prefix), BTreeSet::new(), "its names are seen from outside");
    assert!(role.folder.starts_with(std::env::temp_dir()), "{:?}", role.folder);
    assert!(alive(role.sleeper));
    let killed = Command::new("kill").args(["-s", "TERM", &role.child.id().to_string()]).status().unwrap();
    assert!(killed.success());
    assert_eq!(role.child.wait().unwrap().code(), Some(143));
    assert!(!role.folder.exists());
    assert!(!alive(role.sleeper));
}

#[test]
fn a_missing_program_is_named_with_its_package() {
    let lab = Lab::builder().flatlan("/nonexistent/flatlan").build().unwrap();
    let error = lab.network_create().unwrap_err();
    assert!(matches!(&error, LabError::ProgramMissing { program, .. } if program == "/nonexistent/flatlan"));
    assert_eq!(error.exit_code(), 3);
    let missing = flatlan_lab::require(["sh", "conntrack-of-nobody"]).unwrap_err();
    assert!(missing.to_string().starts_with("`conntrack-of-nobody` is not installed"));
}

/// Not a test of its own: a process that has a lab, for the tests that end one. Without its environment it does
/// nothing.
#[test]
fn role() {
    if std::env::var_os(ROLE).is_none() {
        return;
    }
    let lab = match flatlan_lab::enter().and_then(|()| Lab::builder().hub("h1").site("a", Nat::Cone).build()) {
        Ok(lab) => lab,
        Err(error) => {
            if let LabError::NotPermitted(Missing::Namespaces(source)) = &error {
                println!("because {source}");
            }
            return println!("refused {} {error}", error.exit_code());
        }
    };
    let hub = lab.hub("h1").unwrap().addresses()[0];
    lab.wait_reachable(lab.machine("a").unwrap(), hub, Duration::from_secs(5)).unwrap();
    let process = sleeper(&lab);
    // The kernel's promise to kill it with its parent holds from the moment that it is what it should be.
    while fs::read_to_string(format!("/proc/{}/comm", process.pid())).unwrap().trim() != "sleep" {
        std::thread::yield_now();
    }
    println!("ready {} {} {}", lab.prefix(), lab.folder().display(), process.pid());
    let _ = process.wait_exit(Duration::from_secs(60));
    println!("the program ended by itself");
}

struct Role {
    child: Child,
    prefix: String,
    folder: PathBuf,
    sleeper: i32,
    // Open until the end: the role may still want to say something.
    _output: BufReader<ChildStdout>,
}

impl Role {
    fn start(mut command: Command) -> Self {
        let mut child = role_command(&mut command).stdout(Stdio::piped()).spawn().unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        while !line.starts_with("ready ") {
            line.clear();
            assert_ne!(output.read_line(&mut line).unwrap(), 0, "the role ended early");
            assert!(!line.starts_with("refused"), "{line}");
            // The name of the test stands before what it prints.
            if let Some((_, rest)) = line.split_once("ready ") {
                line = format!("ready {rest}");
            }
        }
        let words: Vec<&str> = line.split_whitespace().collect();
        let (prefix, folder, sleeper) = (words[1].to_owned(), words[2].into(), words[3].parse().unwrap());
        Self { child, prefix, folder, sleeper, _output: output }
    }
}

impl Drop for Role {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const ROLE: &str = "FLATLAN_LAB_TEST_ROLE";

fn role_command(command: &mut Command) -> &mut Command {
    command.args(["--exact", "role", "--nocapture", "--test-threads", "1"]).env(ROLE, "1").stdin(Stdio::null())
}

/// Whether this machine lets somebody without root make a user namespace.
fn user_namespaces() -> bool {
    let mut command = Command::new("setpriv");
    command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "unshare", "--user", "true"]);
    command.output().unwrap().status.success()
}

/// Runs what is added to it as nobody, with a TUN device of this mode, which this command alone sees.
fn nobody_with_a_tun_device_of_mode(mode: &str) -> Command {
    let script = format!(
        "set -e; mount -t tmpfs none /mnt; mknod -m {mode} /mnt/tun c 10 200; mount --bind /mnt/tun /dev/net/tun; \
         exec setpriv --reuid 65534 --regid 65534 --clear-groups \"$0\" \"$@\""
    );
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", &script]);
    command
}

/// A copy of this program where everybody may run it.
fn readable_self() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::Builder::new().permissions(fs::Permissions::from_mode(0o755)).tempdir().unwrap();
    let copy = folder.path().join("role");
    fs::copy(std::env::current_exe().unwrap(), &copy).unwrap();
    (folder, copy)
}

fn sleeper(lab: &Lab) -> Process {
    let mut command = Namespace::command("sleep");
    command.arg("1000");
    let log = lab.folder().join("log").join("sleep.log");
    lab.hub("h1").unwrap().namespace().spawn("sleep", command, Path::new(&log)).unwrap()
}

fn named(prefix: &str) -> BTreeSet<String> {
    let output = Command::new("ip").arg("netns").output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().filter(|line| line.starts_with(&format!("{prefix}-"))).map(str::to_owned).collect()
}

fn alive(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')').next().is_some_and(|rest| !rest.is_empty() && !rest.trim_start().starts_with('Z'))
}
