//! A lab with a plain WireGuard device in it: Debian's wireguard-go, configured with what `member add --stock` prints.
//!
//! ```text
//!            hub h1
//!              |
//!   +-------- inet --------+
//!   |          |           |
//! a-nat      b-nat     phone-nat       all full cone; a's and the phone's endpoints are in the roster
//!   |          |           |
//!   a          b         phone         a and b run flatlan, the phone runs wireguard-go and has one peer: a
//! ```

use std::fs;
use std::io::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use flatlan_lab::{Lab, Namespace, Nat, Process, TLS_PORT, UDP_PORT, require};

/// The lab; nodes are up, the device's key is in the roster, and the device does not run yet.
pub(crate) struct StockLab {
    pub(crate) lab: Lab,
    /// What the admin's command printed.
    pub(crate) config: String,
    private_key: String,
}

impl StockLab {
    pub(crate) fn bring_up(binary: &str) -> Self {
        require(["wireguard-go", "wg"]).unwrap();
        let lab = Lab::builder().flatlan(binary).hub("h1");
        let lab = lab.site("a", Nat::FullCone).site("b", Nat::FullCone).site("phone", Nat::FullCone).build().unwrap();
        let id = lab.network_create().unwrap();
        lab.start_hubs().unwrap();
        lab.publish().unwrap();
        let a = lab.site("a").unwrap();
        let state = a.state().to_str().unwrap();
        let request = lab.flatlan(a.gateway(), ["join", "--request", "--state", state]).unwrap().success().unwrap();
        let (ip, at) = (a.virtual_ip().to_string(), wan(&lab, "a").to_string());
        lab.administer(["member", "add", "a", "--key", request.last_line(), "--ip", &ip, "--endpoint", &at]).unwrap();
        lab.publish().unwrap();
        let hub = format!("{}:{TLS_PORT}", lab.hub("h1").unwrap().host());
        let join = ["join", "--network", &id, "--hub", &hub, "--state", state];
        lab.flatlan(a.gateway(), join).unwrap().success().unwrap();
        lab.join("b").unwrap();
        let private_key = wg("genkey", "");
        let public_key = wg("pubkey", &private_key);
        let ip = lab.site("phone").unwrap().virtual_ip().to_string();
        let at = wan(&lab, "phone").to_string();
        let words = ["member", "add", "phone", "--stock", "--key", &public_key, "--via", "a", "--ip", &ip];
        let config = lab.administer(words.into_iter().chain(["--endpoint", &at])).unwrap().stdout;
        lab.publish().unwrap();
        for site in ["a", "b"] {
            lab.up(site).unwrap();
        }
        Self { lab, config, private_key }
    }

    /// The machine with the device.
    pub(crate) fn phone(&self) -> &Namespace {
        self.lab.site("phone").unwrap().gateway()
    }

    /// The device's addresses in the overlay.
    pub(crate) fn addresses(&self) -> Vec<IpAddr> {
        self.setting("Address").split(", ").map(|prefix| prefix.split('/').next().unwrap().parse().unwrap()).collect()
    }

    /// Runs the device, as wg-quick would set it up.
    pub(crate) fn run(&self, initiative: Initiative) -> Device<'_> {
        // its control socket lies in a folder that all labs share
        let name = format!("w{}", self.lab.prefix());
        let mut command = Namespace::command("wireguard-go");
        command.args(["--foreground", &name]).env("LOG_LEVEL", "error");
        let log = self.lab.folder().join("log").join("phone.log");
        let process = self.phone().spawn("phone", command, &log).unwrap();
        let socket = PathBuf::from(format!("/var/run/wireguard/{name}.sock"));
        let device = Device { machine: self.phone(), name, process, socket };
        let deadline = Instant::now() + LIMIT;
        while !device.socket.exists() {
            assert!(device.process.is_running() && Instant::now() < deadline, "{}", device.process.tail(20));
            std::thread::sleep(Duration::from_millis(10));
        }
        let file = self.lab.folder().join("state").join("phone.conf");
        self.write_config(&file, initiative);
        device.wg(["setconf", &device.name, file.to_str().unwrap()]);
        for address in self.setting("Address").split(", ") {
            device.ip(&["address", "add", address, "dev", &device.name]);
        }
        device.ip(&["link", "set", &device.name, "mtu", &self.setting("MTU"), "up"]);
        for prefix in self.setting("AllowedIPs").split(", ") {
            device.ip(&["route", "add", prefix, "dev", &device.name]);
        }
        device
    }

    /// What `wg` reads: without the words of wg-quick, with the key and the port.
    fn write_config(&self, file: &Path, initiative: Initiative) {
        let mut text = String::new();
        for line in self.config.lines() {
            let of = |name: &str| line.starts_with(&format!("{name} = "));
            if of("Address") || of("MTU") {
                continue;
            }
            if initiative == Initiative::Theirs && (of("Endpoint") || of("PersistentKeepalive")) {
                continue;
            }
            text.push_str(line);
            text.push('\n');
            if line == "[Interface]" {
                text.push_str(&format!("PrivateKey = {}\nListenPort = {UDP_PORT}\n", self.private_key));
            }
        }
        fs::write(file, text).unwrap();
        fs::set_permissions(file, fs::Permissions::from_mode(0o600)).unwrap();
    }

    fn setting(&self, name: &str) -> String {
        let line = self.config.lines().find_map(|line| line.strip_prefix(&format!("{name} = ")));
        line.unwrap_or_else(|| panic!("no {name} in {}", self.config)).to_owned()
    }
}

/// Which side is able to speak first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Initiative {
    /// The device knows where its peer is.
    Both,
    /// It does not.
    Theirs,
}

/// wireguard-go, running. Stopped on drop.
pub(crate) struct Device<'a> {
    machine: &'a Namespace,
    name: String,
    process: Process,
    socket: PathBuf,
}

impl Device<'_> {
    /// When the last handshake was, in seconds since the epoch; zero: never.
    pub(crate) fn last_handshake(&self) -> u64 {
        let text = self.wg(["show", &self.name, "latest-handshakes"]);
        text.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    /// Where it believes its peer to be.
    pub(crate) fn peer_endpoint(&self) -> Option<SocketAddr> {
        self.wg(["show", &self.name, "endpoints"]).split_whitespace().nth(1)?.parse().ok()
    }

    /// Goes on from another port.
    pub(crate) fn move_to(&self, port: u16) {
        self.wg(["set", &self.name, "listen-port", &port.to_string()]);
    }

    fn wg<const N: usize>(&self, words: [&str; N]) -> String {
        self.machine.exec("wg", words).unwrap()
    }

    fn ip(&self, words: &[&str]) {
        self.machine.exec("ip", words).unwrap();
    }
}

impl Drop for Device<'_> {
    fn drop(&mut self) {
        let _ = self.process.stop(LIMIT);
        let _ = fs::remove_file(&self.socket);
    }
}

/// Where a site's UDP port is reached from outside.
pub(crate) fn wan(lab: &Lab, site: &str) -> SocketAddr {
    let router = lab.site(site).unwrap().router(0).unwrap();
    let shown = router.exec("ip", ["-4", "-o", "address", "show", "dev", "wan"]).unwrap();
    let address = shown.split_whitespace().nth(3).and_then(|prefix| prefix.split('/').next());
    SocketAddr::new(address.unwrap().parse().unwrap(), UDP_PORT)
}

fn wg(word: &str, input: &str) -> String {
    let mut child = Command::new("wg").arg(word).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap().trim().to_owned()
}

/// How long a program may take to start or stop.
const LIMIT: Duration = Duration::from_secs(10);
