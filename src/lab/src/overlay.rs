//! The overlay on top of the lab's internet: runs the `flatlan` binary as its operators would, by the commands of its
//! command line.
//!
//! The usual order is [`Lab::bring_up`]: create the network, make the hubs' keys and add them, run the hubs, publish,
//! then per site invite, join, up. Every step is a method of its own, so that a test can leave one out or do it wrong.
//! Keys and states lie in the lab's folder; the admin's directory is [`Lab::admin_state`].

use std::ffi::{OsStr, OsString};
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::error::LabError;
use crate::lab::{Hub, Lab, Site};
use crate::namespace::Namespace;
use crate::probe::Probe;
use crate::process::{Outcome, Process};

/// What a hub's or a node's process is run with, beyond what every one is.
#[derive(Debug, Clone, Default)]
pub struct RunOptions {
    /// More arguments, at the end.
    pub args: Vec<String>,
    /// More environment.
    pub env: Vec<(String, String)>,
    /// A program that runs it, with its arguments: `["faketime", "-1d"]`.
    pub wrapper: Vec<String>,
}

impl RunOptions {
    /// More arguments.
    #[must_use]
    pub fn args<A: Into<String>>(args: impl IntoIterator<Item = A>) -> Self {
        Self { args: args.into_iter().map(Into::into).collect(), ..Self::default() }
    }
}

impl Lab {
    /// Creates the network, adds and runs the hubs, publishes, and brings every site up.
    ///
    /// # Errors
    /// The first step that fails.
    pub fn bring_up(&self) -> Result<(), LabError> {
        self.network_create()?;
        self.start_hubs()?;
        self.publish()?;
        for site in self.sites.keys() {
            self.join(site)?;
        }
        for site in self.sites.keys() {
            self.up(site)?;
        }
        Ok(())
    }

    /// Runs a flatlan command on a machine of the lab, to its end, without judging it.
    ///
    /// # Errors
    /// [`LabError::ProgramMissing`] without the binary, [`LabError::Timeout`] where it does not end.
    pub fn flatlan<A: AsRef<OsStr>>(
        &self,
        machine: &Namespace,
        args: impl IntoIterator<Item = A>,
    ) -> Result<Outcome, LabError> {
        let mut command = Namespace::command(&self.flatlan);
        command.args(args);
        machine.output(command)
    }

    /// The admin's directory.
    #[must_use]
    pub fn admin_state(&self) -> PathBuf {
        self.folder().join("state").join("lab.flatlan")
    }

    /// Runs a command of the admin's, on the admin's machine and directory.
    ///
    /// # Errors
    /// [`LabError::Command`] where it fails.
    pub fn administer<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Result<Outcome, LabError> {
        let mut words: Vec<OsString> = args.into_iter().map(|word| word.as_ref().to_owned()).collect();
        words.push("--state".into());
        words.push(self.admin_state().into());
        self.flatlan(&self.admin, words)?.success()
    }

    /// `flatlan network create`: returns the network's id.
    ///
    /// # Errors
    /// As [`Lab::administer`].
    pub fn network_create(&self) -> Result<String, LabError> {
        let range = self.range.to_string();
        let outcome = self.administer(["network", "create", "lab", "--range", &range])?;
        let id = outcome.last_line().to_owned();
        *self.network.lock().unwrap_or_else(PoisonError::into_inner) = Some(id.clone());
        Ok(id)
    }

    /// The network's id, once it was created.
    #[must_use]
    pub fn network_id(&self) -> Option<String> {
        self.network.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Makes every hub's key, adds the hubs to the network, and runs them. Publishing is a step of its own.
    ///
    /// # Errors
    /// The first step that fails.
    pub fn start_hubs(&self) -> Result<(), LabError> {
        for hub in self.hubs.values() {
            self.add_hub(hub)?;
        }
        for hub in self.hubs.keys() {
            self.start_hub(hub)?;
        }
        Ok(())
    }

    /// `flatlan hub init` on the hub and `flatlan network hub add` at the admin's: returns the hub's key.
    ///
    /// # Errors
    /// As [`Lab::administer`].
    pub fn add_hub(&self, hub: &Hub) -> Result<String, LabError> {
        let init = [OsStr::new("hub"), "init".as_ref(), "--state".as_ref(), hub.state.as_os_str()];
        let key = self.flatlan(&hub.namespace, init)?.success()?.last_line().to_owned();
        let (tls, udp) = (format!("{}:{TLS_PORT}", hub.host), format!("{}:{UDP_PORT}", hub.host));
        let mut args = vec!["network", "hub", "add", &hub.name, "--key", &key, "--tls", &tls, "--udp", &udp];
        if let Some(region) = &hub.region {
            args.extend(["--region", region]);
        }
        self.administer(args)?;
        Ok(key)
    }

    /// Runs a hub and waits until it listens. One that runs is killed first.
    ///
    /// # Errors
    /// Where it does not start.
    pub fn start_hub(&self, name: &str) -> Result<Arc<Process>, LabError> {
        self.start_hub_with(name, &RunOptions::default())
    }

    /// [`Lab::start_hub`] with options.
    ///
    /// # Errors
    /// Where it does not start.
    pub fn start_hub_with(&self, name: &str, options: &RunOptions) -> Result<Arc<Process>, LabError> {
        let hub = self.hub(name)?;
        hub.process.clear();
        let any = if hub.addresses.iter().any(IpAddr::is_ipv6) { "[::]" } else { "0.0.0.0" };
        let mut command = self.run_command(options);
        command.args(["hub", "run", "--tls", &format!("{any}:{TLS_PORT}"), "--udp", &format!("{any}:{UDP_PORT}")]);
        match self.network_id() {
            Some(id) => command.args(["--allow", &id]),
            None => command.arg("--allow-any"),
        };
        command.arg("--state").arg(&hub.state).args(&options.args);
        let process = hub.process.set(self.spawn(&hub.namespace, name, command)?);
        wait_until("the hub's listening socket", &process, START_LIMIT, || hub.namespace.run(|| listens(TLS_PORT)))?;
        Ok(process)
    }

    /// `flatlan network publish`.
    ///
    /// # Errors
    /// As [`Lab::administer`].
    pub fn publish(&self) -> Result<(), LabError> {
        self.administer(["network", "publish"]).map(drop)
    }

    /// `flatlan invite` for a site, with its address and, where it has hosts, its LAN's prefixes: returns the token.
    ///
    /// # Errors
    /// As [`Lab::administer`].
    pub fn invite(&self, site: &str) -> Result<String, LabError> {
        self.invite_with::<&str>(site, [])
    }

    /// [`Lab::invite`] with more arguments.
    ///
    /// # Errors
    /// As [`Lab::administer`].
    pub fn invite_with<A: AsRef<str>>(
        &self,
        site: &str,
        args: impl IntoIterator<Item = A>,
    ) -> Result<String, LabError> {
        let site = self.site(site)?;
        let mut words = vec!["invite".to_owned(), site.name.clone(), "--ip".to_owned(), site.virtual_ip.to_string()];
        if site.has_lan() {
            words.extend(site.prefixes().iter().flat_map(|prefix| ["--route".to_owned(), prefix.to_string()]));
        }
        words.extend(args.into_iter().map(|word| word.as_ref().to_owned()));
        Ok(self.administer(words)?.last_line().to_owned())
    }

    /// Invites a site and joins it.
    ///
    /// # Errors
    /// The first step that fails.
    pub fn join(&self, site: &str) -> Result<(), LabError> {
        let token = self.invite(site)?;
        self.join_with(site, &token)?.success().map(drop)
    }

    /// `flatlan join` on a site's gateway with this token, without judging the outcome.
    ///
    /// # Errors
    /// Where it cannot be run.
    pub fn join_with(&self, site: &str, token: &str) -> Result<Outcome, LabError> {
        let site = self.site(site)?;
        let file = self.folder().join("state").join(format!("{}.token", site.name));
        std::fs::write(&file, token).map_err(LabError::io("write", &file))?;
        let mut command = Namespace::command(&self.flatlan);
        command.arg("join").arg("--token-file").arg(&file).arg("--state").arg(&site.state);
        self.add_proxy(site, &mut command)?;
        site.gateway.output(command)
    }

    /// `flatlan up` on a site's gateway: returns when it says that it is up. One that runs is killed first.
    ///
    /// # Errors
    /// Where it does not come up.
    pub fn up(&self, site: &str) -> Result<Arc<Process>, LabError> {
        self.up_with(site, &RunOptions::default())
    }

    /// [`Lab::up`] with options.
    ///
    /// # Errors
    /// Where it does not come up.
    pub fn up_with(&self, site: &str, options: &RunOptions) -> Result<Arc<Process>, LabError> {
        let process = self.start_node(site, options)?;
        process.wait_line("up: ", UP_LIMIT)?;
        Ok(process)
    }

    /// Starts `flatlan up` on a site's gateway and does not wait for anything.
    ///
    /// # Errors
    /// Where it cannot be run.
    pub fn start_node(&self, site: &str, options: &RunOptions) -> Result<Arc<Process>, LabError> {
        let site = self.site(site)?;
        site.process.clear();
        let mut command = self.run_command(options);
        command.args(["up", "--tun", TUN, "--state"]).arg(&site.state);
        self.add_proxy(site, &mut command)?;
        command.args(&options.args);
        Ok(site.process.set(self.spawn(&site.gateway, &site.name, command)?))
    }

    /// `flatlan status --json` of a site's node.
    ///
    /// # Errors
    /// [`LabError::Command`] where it does not answer.
    pub fn status(&self, site: &str) -> Result<Value, LabError> {
        let site = self.site(site)?;
        let args = [OsStr::new("status"), "--json".as_ref(), "--state".as_ref(), site.state.as_os_str()];
        self.flatlan(&site.gateway, args)?.success()?.json()
    }

    /// The virtual addresses of a site's node, IPv4 first, as its status tells them.
    ///
    /// # Errors
    /// As [`Lab::status`]; [`LabError::Unexpected`] where the status holds none.
    pub fn virtual_ips(&self, site: &str) -> Result<Vec<IpAddr>, LabError> {
        let status = self.status(site)?;
        let listed = status.pointer("/self/ips").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        let mut ips: Vec<IpAddr> = listed.iter().filter_map(|ip| ip.as_str()?.parse().ok()).collect();
        ips.sort();
        if ips.is_empty() {
            return Err(LabError::Unexpected {
                command: "flatlan status --json".to_owned(),
                answer: status.to_string(),
            });
        }
        Ok(ips)
    }

    /// How one site's node reaches another's: the `path` object of its status, where there is one.
    ///
    /// # Errors
    /// As [`Lab::status`].
    pub fn path(&self, from: &str, to: &str) -> Result<Option<Value>, LabError> {
        let status = self.status(from)?;
        let peers = status.get("peers").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        let peer = peers.iter().find(|peer| peer.get("name").and_then(Value::as_str) == Some(to));
        Ok(peer.and_then(|peer| peer.get("path")).filter(|path| !path.is_null()).cloned())
    }

    /// The process of a hub or a site's node.
    ///
    /// # Errors
    /// [`LabError::UnknownName`] where there is no such process.
    pub fn process(&self, name: &str) -> Result<Arc<Process>, LabError> {
        let hub = self.hubs.get(name).and_then(Hub::process);
        let node = self.sites.get(name).and_then(Site::process);
        hub.or(node).ok_or_else(|| LabError::UnknownName(name.to_owned()))
    }

    /// Kills a hub or a node without warning (SIGKILL). Returns when.
    ///
    /// # Errors
    /// [`LabError::UnknownName`].
    pub fn kill(&self, name: &str) -> Result<Instant, LabError> {
        Ok(self.process(name)?.kill())
    }

    /// Freezes a hub or a node (SIGSTOP). Returns when.
    ///
    /// # Errors
    /// [`LabError::UnknownName`].
    pub fn freeze(&self, name: &str) -> Result<Instant, LabError> {
        Ok(self.process(name)?.freeze())
    }

    /// Lets a frozen hub or node go on. Returns when.
    ///
    /// # Errors
    /// [`LabError::UnknownName`].
    pub fn thaw(&self, name: &str) -> Result<Instant, LabError> {
        Ok(self.process(name)?.thaw())
    }

    /// Runs a hub or a node again that was killed or stopped.
    ///
    /// # Errors
    /// [`LabError::UnknownName`], or where it does not start.
    pub fn restart(&self, name: &str) -> Result<Arc<Process>, LabError> {
        if self.hubs.contains_key(name) { self.start_hub(name) } else { self.up(name) }
    }

    /// Waits until a ping each 10 ms is answered, and returns how long that took.
    ///
    /// # Errors
    /// [`LabError::Timeout`].
    pub fn wait_reachable(&self, from: &Namespace, to: IpAddr, within: Duration) -> Result<Duration, LabError> {
        let probe = Probe::ping(from, to, Duration::from_millis(10))?;
        let first = probe.wait_answers(1, within)?;
        Ok(first.saturating_duration_since(probe.started()))
    }

    fn run_command(&self, options: &RunOptions) -> Command {
        let mut command = match options.wrapper.split_first() {
            None => Namespace::command(&self.flatlan),
            Some((program, args)) => {
                let mut command = Namespace::command(program);
                command.args(args).arg(&self.flatlan);
                command
            }
        };
        command.envs(options.env.iter().map(|(name, value)| (name, value)));
        command
    }

    fn spawn(&self, machine: &Namespace, name: &str, command: Command) -> Result<Process, LabError> {
        machine.spawn(name, command, &self.folder().join("log").join(format!("{name}.log")))
    }

    fn add_proxy(&self, site: &Site, command: &mut Command) -> Result<(), LabError> {
        let Some(proxy) = &site.proxy else { return Ok(()) };
        command.args(["--proxy", &proxy.url()]);
        if let Some(password) = proxy.password() {
            let file = self.folder().join("state").join(format!("{}.proxy-password", site.name));
            std::fs::write(&file, password).map_err(LabError::io("write", &file))?;
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
            std::fs::set_permissions(&file, mode).map_err(LabError::io("protect", &file))?;
            command.arg("--proxy-password-file").arg(file);
        }
        Ok(())
    }
}

/// Waits for a condition, as long as the process lives.
fn wait_until(what: &str, process: &Process, within: Duration, condition: impl Fn() -> bool) -> Result<(), LabError> {
    let deadline = Instant::now() + within;
    while !condition() {
        if let Some(status) = process.exit_status() {
            let (name, awaited) = (process.name().to_owned(), what.to_owned());
            return Err(LabError::Ended { name, status, awaited, tail: process.tail(20) });
        }
        if Instant::now() > deadline {
            let tail = format!("; the last lines of {}:\n{}", process.name(), process.tail(20));
            return Err(LabError::Timeout { what: what.to_owned(), within, tail });
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// Whether anything in the calling thread's namespace listens on this TCP port.
fn listens(port: u16) -> bool {
    let wanted = format!(":{port:04X}");
    ["tcp", "tcp6"].iter().any(|table| {
        let text = std::fs::read_to_string(format!("/proc/thread-self/net/{table}")).unwrap_or_default();
        text.lines().skip(1).any(|line| {
            let mut fields = line.split_whitespace().skip(1);
            let (local, state) = (fields.next().unwrap_or_default(), fields.nth(1).unwrap_or_default());
            local.ends_with(&wanted) && state == "0A"
        })
    })
}

/// The name of every node's TUN device.
pub const TUN: &str = "fl0";
/// The port of every hub's TLS streams.
pub const TLS_PORT: u16 = 443;
/// The port of every hub's UDP.
pub const UDP_PORT: u16 = 51_820;

/// How long a hub may take to listen.
const START_LIMIT: Duration = Duration::from_secs(10);
/// How long a node may take to be up.
const UP_LIMIT: Duration = Duration::from_secs(15);
