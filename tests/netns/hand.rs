//! A network made by hand, with the commands of the command line only, and what people do over it: ssh and scp.

#![allow(dead_code, reason = "every program takes what it needs")]

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use flatlan_lab::{Lab, LabError, Namespace, Probe, Process, TLS_PORT, sockets};
use tempfile::TempDir;

use crate::support::{MIB, PATIENCE, gateway};

/// Creates the network, runs its hubs, and brings these sites up: some by token, one by its key. Returns the network's
/// id.
pub(crate) fn bring_up<const N: usize>(lab: &Lab, by_token: [&str; N], by_key: &str) -> String {
    let id = lab.network_create().unwrap();
    lab.start_hubs().unwrap();
    lab.publish().unwrap();
    for site in by_token {
        lab.join(site).unwrap();
    }
    join_by_key(lab, by_key, &id);
    for site in by_token.into_iter().chain([by_key]) {
        lab.up(site).unwrap();
    }
    id
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

/// A TCP connection as `ss -tn` shows it on both machines: where it comes from on the near one, and on the far one.
pub(crate) fn both_ends(
    near: &Namespace,
    far: &Namespace,
    address: IpAddr,
) -> Result<(SocketAddr, SocketAddr), LabError> {
    let echo = Probe::tcp_echo(near, far, address, Duration::from_millis(50))?;
    echo.wait_answers(1, PATIENCE)?;
    let shown = |what: Option<SocketAddr>| {
        what.ok_or_else(|| LabError::Unexpected {
            command: "ss -tn".to_owned(),
            answer: "no such connection".to_owned(),
        })
    };
    let local = sockets(near)?.into_iter().find(|socket| socket.peer.ip() == address).map(|socket| socket.local);
    let seen = sockets(far)?.into_iter().find(|socket| socket.local.ip() == address).map(|socket| socket.peer);
    Ok((shown(local)?, shown(seen)?))
}

/// An sshd of Debian's with keys made for one run.
#[derive(Debug)]
pub(crate) struct Ssh {
    folder: TempDir,
    _server: Process,
}

impl Ssh {
    pub(crate) fn serve(lab: &Lab, site: &str) -> Self {
        // not in the lab's folder, which sshd does not see
        let folder = TempDir::new().unwrap();
        let machine = gateway(lab, site);
        let keys = ["host", "user"].map(|name| folder.path().join(name));
        for key in &keys {
            machine.exec("ssh-keygen", ["-q", "-t", "ed25519", "-N", "", "-f", key.to_str().unwrap()]).unwrap();
        }
        let content: Vec<u8> =
            (0..4 * MIB).map(|number| (number.wrapping_mul(0x9e37_79b9) >> 13).to_le_bytes()[0]).collect();
        fs::write(folder.path().join("sent"), content).unwrap();
        let allowed = folder.path().join("authorized_keys");
        fs::copy(folder.path().join("user.pub"), &allowed).unwrap();
        fs::set_permissions(&allowed, fs::Permissions::from_mode(0o600)).unwrap();
        let mut command = Namespace::command("unshare");
        // sshd insists on /run/sshd, which Debian makes when it starts the service: it gets a /run of its own
        let inside = "mount -t tmpfs -o mode=755 tmpfs /run && mkdir /run/sshd && exec /usr/sbin/sshd \"$@\"";
        command.args(["--mount", "--propagation", "private", "sh", "-c", inside, "sshd"]);
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
        let log = lab.folder().join("log").join(format!("{site}.sshd.log"));
        let server = machine.spawn("sshd", command, &log).unwrap();
        server.wait_line("listening on :: port 22", PATIENCE).unwrap();
        Self { folder, _server: server }
    }

    /// Runs a command there and returns what it said.
    pub(crate) fn run(&self, from: &Namespace, to: IpAddr, command: &str) -> Result<String, LabError> {
        let mut words = self.options();
        words.extend(["-n".to_owned(), format!("root@{to}"), command.to_owned()]);
        from.exec("ssh", words)
    }

    /// Runs a command there, which goes on.
    pub(crate) fn session(&self, from: &Namespace, to: IpAddr, command: &str) -> Process {
        let mut ssh = Namespace::command("ssh");
        ssh.args(self.options()).args(["-n", &format!("root@{to}"), command]);
        from.spawn("ssh", ssh, &self.folder.path().join("session.log")).unwrap()
    }

    /// Copies a file of some megabytes there with scp; its SHA-256 here and there.
    pub(crate) fn copy(&self, from: &Namespace, to: IpAddr) -> Result<(String, String), LabError> {
        let [here, there] = ["sent", "came"].map(|name| self.folder.path().join(name));
        let host = if to.is_ipv6() { format!("[{to}]") } else { to.to_string() };
        let mut words = self.options();
        words.extend(["-q".to_owned(), here.display().to_string(), format!("root@{host}:{}", there.display())]);
        from.exec("scp", words)?;
        let digest = |text: String| text.split_whitespace().next().unwrap_or_default().to_owned();
        let sent = digest(from.exec("sha256sum", [&here])?);
        let came = digest(self.run(from, to, &format!("sha256sum {0} && rm {0}", there.display()))?);
        Ok((sent, came))
    }

    fn options(&self) -> Vec<String> {
        let key = self.folder.path().join("user");
        let fixed = ["-F", "/dev/null", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no"];
        let mut words = fixed.map(str::to_owned).to_vec();
        words.extend(["-o".to_owned(), "UserKnownHostsFile=/dev/null".to_owned(), "-o".to_owned()]);
        words.extend(["LogLevel=ERROR".to_owned(), "-i".to_owned(), key.display().to_string()]);
        words
    }
}
