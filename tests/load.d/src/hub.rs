//! A `flatlan-hub` process, and what it says and uses.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use flatlan_relay::{Attach, Control, MAX_PART, Proof, Role, VERSION};
use flatlan_types::HubKey;

use crate::client;
use crate::lan::Lan;
use crate::usage::Usage;

/// Where a hub is reached.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Site {
    /// TCP.
    pub(crate) tls: SocketAddr,
    /// UDP.
    pub(crate) udp: SocketAddr,
    /// Its page.
    pub(crate) admin: SocketAddr,
}

/// A hub that has its key and does not run yet.
#[derive(Debug)]
pub(crate) struct HubFolder {
    state: PathBuf,
    /// Its key.
    pub(crate) key: HubKey,
    /// Where it will be.
    pub(crate) site: Site,
}

/// A hub that runs; it ends with this.
#[derive(Debug)]
pub(crate) struct Hub {
    child: Child,
    state: PathBuf,
    log: PathBuf,
    /// Where it is.
    pub(crate) site: Site,
}

impl HubFolder {
    /// Makes the key of a hub on loopback.
    pub(crate) fn make(name: &str) -> Result<Self> {
        let state = std::env::temp_dir().join(format!("flatlan-load-{}-{name}", std::process::id()));
        let output = Command::new(program()?).args(["init", "--state"]).arg(&state).output()?;
        let key = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        let key = key.parse().with_context(|| format!("no hub key: {}", String::from_utf8_lossy(&output.stderr)))?;
        let (tls, admin) = (free_port()?, free_port()?);
        Ok(Self { state, key, site: Site { tls, udp: tls, admin } })
    }

    /// Starts it for these networks, and publishes them. `config`: lines of hub.toml.
    pub(crate) async fn run(self, lans: &[&Lan], config: &str) -> Result<Hub> {
        let (file, log) = (self.state.join("hub.toml"), self.state.join("log"));
        let allow: Vec<String> = lans.iter().map(|lan| format!("\"{}\"", lan.id.full())).collect();
        let text = format!("state = {:?}\nallow = [{}]\n{config}\n", self.state, allow.join(", "));
        fs::write(&file, text).context("cannot write hub.toml")?;
        let Site { tls, udp, admin } = self.site;
        let mut command = Command::new(program()?);
        command.args(["run", "--log", "warn", "--config"]).arg(&file);
        command.args(["--tls", &tls.to_string(), "--udp", &udp.to_string(), "--admin", &admin.to_string()]);
        let out = fs::File::create(&log).context("cannot write the hub's log")?;
        let child = command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out).spawn();
        let hub = Hub { child: child.context("cannot start flatlan-hub")?, state: self.state, log, site: self.site };
        let begun = Instant::now();
        while TcpStream::connect(tls).is_err() {
            if begun.elapsed() > START {
                bail!("the hub does not start: {}", hub.log());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        for lan in lans {
            publish(tls, lan).await?;
        }
        Ok(hub)
    }
}

impl Hub {
    /// What the kernel counts.
    pub(crate) fn usage(&self) -> Usage {
        Usage::of(self.pid())
    }

    /// Its process.
    pub(crate) fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// Its resident memory, in MiB.
    pub(crate) fn mib(&self) -> f64 {
        self.usage().resident_kib as f64 / 1024.0
    }

    /// What it has logged.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// A sum of its metrics of that name.
    pub(crate) fn metric(&self, name: &str) -> Result<f64> {
        let mut tcp = TcpStream::connect(self.site.admin).context("the hub's page is not there")?;
        tcp.write_all(b"GET /metrics HTTP/1.0\r\n\r\n")?;
        let mut text = String::new();
        tcp.read_to_string(&mut text)?;
        let values = text.lines().filter(|line| line.split(['{', ' ']).next() == Some(name));
        Ok(values.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum())
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.state);
    }
}

/// Publishes a network's roster to a hub.
pub(crate) async fn publish(at: SocketAddr, lan: &Lan) -> Result<()> {
    let (mut stream, _) = client::greet(at).await?;
    let (version, network, role) = (VERSION, lan.id, Role::Admin);
    client::say(&mut stream, &Control::Attach(Attach { version, network, role, proof: Proof::Nothing })).await?;
    let total = u32::try_from(lan.roster.len())?;
    for (n, part) in lan.roster.chunks(MAX_PART).enumerate() {
        let (offset, bytes) = (u32::try_from(n * MAX_PART)?, part.to_vec());
        client::say(&mut stream, &Control::PutRoster { network, total, offset, bytes }).await?;
    }
    loop {
        match client::hear(&mut stream).await? {
            Control::Stored { .. } => return Ok(()),
            Control::Refused { text, .. } => bail!("the hub does not take the roster: {text}"),
            _ => {}
        }
    }
}

/// The binary beside this one.
pub(crate) fn program() -> Result<PathBuf> {
    let own = std::env::current_exe().context("cannot find this program")?;
    let hub = own.parent().unwrap_or_else(|| Path::new(".")).join("flatlan-hub");
    if !hub.exists() {
        bail!("{} is not there: cargo build --release -p flatlan-hubd", hub.display());
    }
    Ok(hub)
}

/// A port of loopback that nobody has.
fn free_port() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

/// How long a hub may take to start.
const START: Duration = Duration::from_secs(10);
