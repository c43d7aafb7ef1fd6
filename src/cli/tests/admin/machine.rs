//! An operator's machine: a directory, and hubs on loopback.

use std::{
    ffi::OsStr,
    fs,
    net::{Ipv4Addr, SocketAddr, TcpStream},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU16, Ordering},
    time::{Duration, Instant},
};

use tempfile::TempDir;

/// A directory in which commands are run.
pub(crate) struct Machine {
    dir: TempDir,
}

/// What a command left.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Machine {
    pub(crate) fn new() -> Self {
        Self { dir: TempDir::new().unwrap() }
    }

    /// A machine with a network "lab" in it.
    pub(crate) fn with_network() -> Self {
        let machine = Self::new();
        machine.good(&["network", "create", "lab"]);
        machine
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    pub(crate) fn mode(&self, name: &str) -> u32 {
        fs::metadata(self.path(name)).unwrap().permissions().mode() & 0o7777
    }

    pub(crate) fn set_mode(&self, name: &str, mode: u32) {
        fs::set_permissions(self.path(name), fs::Permissions::from_mode(mode)).unwrap();
    }

    /// Changes network.toml of "lab" by hand.
    pub(crate) fn edit(&self, from: &str, to: &str) {
        let text = self.read(NETWORK);
        assert!(text.contains(from), "{text}");
        self.write(NETWORK, &text.replace(from, to));
    }

    pub(crate) fn copy(&self, from: &str, to: &str) {
        let done = Command::new("cp").arg("-a").arg(self.path(from)).arg(self.path(to)).status().unwrap();
        assert!(done.success());
    }

    /// Runs `flatlan` in the directory.
    pub(crate) fn run(&self, args: &[&str]) -> Ran {
        self.program(flatlan(), args)
    }

    /// Runs `flatlan` where there is no network at all.
    pub(crate) fn run_without_network(&self, args: &[&str]) -> Ran {
        let unshare: &[&str] = if is_root() { &["-n"] } else { &["-r", "-n"] };
        self.program("unshare", &[unshare, &[flatlan()], args].concat())
    }

    fn program(&self, program: impl AsRef<OsStr>, args: &[&str]) -> Ran {
        let output = Command::new(program).args(args).current_dir(&self.dir).stdin(Stdio::null()).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Ran { code: output.status.code().unwrap(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }

    /// Runs a command that must do it; its stdout, without the newline at its end.
    pub(crate) fn good(&self, args: &[&str]) -> String {
        let ran = self.run(args);
        assert_eq!(ran.code, 0, "{args:?}: {ran:?}");
        ran.stdout.trim_end().to_owned()
    }

    /// Runs a command that must fail, with this exit code and this last line.
    #[track_caller]
    pub(crate) fn refused(&self, args: &[&str], code: i32, message: &str) {
        let ran = self.run(args);
        assert_eq!(ran.stdout, "", "{args:?}");
        assert_eq!(ran.stderr.trim_end().lines().last(), Some(format!("error: {message}").as_str()), "{args:?}");
        assert_eq!(ran.code, code, "{args:?}: {ran:?}");
    }

    /// Makes a hub's key and adds the hub to the network "lab". It does not run yet.
    pub(crate) fn add_hub(&self, name: &str) -> Hub {
        let key = self.good(&["hub", "init", "--state", &format!("hub-{name}")]);
        let tls = free_place();
        let shown = tls.to_string();
        self.good(&["network", "hub", "add", name, "--key", &key, "--tls", &shown, "--state", "lab.flatlan"]);
        Hub { state: self.path(&format!("hub-{name}")), tls, process: None }
    }

    /// The same, and it runs.
    pub(crate) fn running_hub(&self, name: &str) -> Hub {
        let mut hub = self.add_hub(name);
        hub.start();
        hub
    }
}

/// A hub of the network; it ends with the test.
pub(crate) struct Hub {
    pub(crate) tls: SocketAddr,
    state: PathBuf,
    process: Option<Child>,
}

impl Hub {
    pub(crate) fn start(&mut self) {
        let process = Command::new(flatlan())
            .args(["hub", "run", "--allow-any", "--log", "error"])
            .args(["--tls", &self.tls.to_string(), "--udp", "127.0.0.1:0"])
            .arg("--state")
            .arg(&self.state)
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        self.process = Some(process);
        eventually(|| TcpStream::connect(self.tls).is_ok());
    }

    pub(crate) fn stop(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Waits for something that must come about soon.
#[track_caller]
pub(crate) fn eventually(mut condition: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < until, "it did not come about");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// What a hub that does not run is reported with.
pub(crate) fn not_running(hub: &Hub) -> String {
    format!("cannot connect to {}: connection refused: check that it runs, and that no firewall is in the way", hub.tls)
}

/// A place that no other test has, in this process or another: a loopback address of its own.
fn free_place() -> SocketAddr {
    static PORTS: AtomicU16 = AtomicU16::new(4000);
    let [_, a, b, c] = std::process::id().to_be_bytes();
    let ip = Ipv4Addr::new(127, 1 + a % 250, b, c);
    SocketAddr::from((ip, PORTS.fetch_add(1, Ordering::Relaxed)))
}

fn flatlan() -> &'static str {
    env!("CARGO_BIN_EXE_flatlan")
}

fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt as _;
    fs::metadata(Path::new("/proc/self")).unwrap().uid() == 0
}

pub(crate) const NETWORK: &str = "lab.flatlan/network.toml";
