//! `join`, `up` and `leave`.

use std::{io::Read as _, path::Path};

use flatlan::{NodeConfig, NodeFile, Notice, RunningNode, join, state::NodeState};
use flatlan_os::{Why, located, stream::Proxy, watchdog};
use flatlan_roster::Token;
use sd_notify::NotifyState;
use zeroize::Zeroizing;

use crate::{
    args::{JoinArgs, ProxyArgs, StateArgs, UpArgs},
    client,
    failure::Failure,
    log, output,
};

/// `flatlan join`.
pub(crate) fn join(args: JoinArgs) -> Result<(), Failure> {
    check_join(&args)?;
    if args.request {
        let state = NodeState::create(&args.state.state)?;
        output::result(join::request(&state)?.full());
        output::say(format!(
            "key of {} made; on the admin's machine: flatlan member add NAME --key KEY",
            args.state.state.display()
        ));
        return Ok(());
    }
    if let Some(network) = args.network {
        let state = NodeState::create(&args.state.state)?;
        join::by_key(&state, network, args.hubs)?;
        output::say(format!("joined; next: flatlan up --state {}", args.state.state.display()));
        return Ok(());
    }
    let text = token_text(&args)?;
    let token: Token =
        text.trim().parse().map_err(|error| Failure::wrong(format!("the token cannot be used: {error}")))?;
    let proxy = proxy(&args.proxy)?;
    // not before: a token that is none leaves nothing behind
    let state = NodeState::create(&args.state.state)?;
    let joined = runtime()?.block_on(join::redeem(&state, &token, proxy.as_ref()))?;
    let ips: Vec<String> = joined.ips.iter().map(ToString::to_string).collect();
    output::say(format!("joined: {} is {} {}", joined.network, joined.member, ips.join(" ")));
    output::say(format!("next: flatlan up --state {}", args.state.state.display()));
    Ok(())
}

/// Refuses what would have no effect.
fn check_join(args: &JoinArgs) -> Result<(), Failure> {
    let redeems = args.network.is_none() && !args.request;
    if args.proxy.proxy.is_some() && !redeems {
        let flag = if args.request { "--request" } else { "--network" };
        let why = format!("join: {flag} dials no hub, so that --proxy has no effect");
        return Err(Failure::wrong(format!("{why}: leave it out, and give it to `flatlan up`")));
    }
    if !args.hubs.is_empty() && args.network.is_none() {
        let remedy = "leave it out, or give --network NETWORK_ID";
        return Err(Failure::wrong(format!("join: --hub has no effect without --network: {remedy}")));
    }
    Ok(())
}

/// `flatlan up`.
pub(crate) fn up(args: UpArgs) -> Result<(), Failure> {
    for (given, flag) in [(args.userspace, "up --userspace"), (args.netns.is_some(), "up --netns")] {
        if given {
            return Err(Failure::not_in_this_version(flag));
        }
    }
    log::start(args.log.log.as_deref(), args.log.log_format)?;
    let config = node_config(&args)?;
    if let Err(error) = flatlan_os::harden::forbid_dumps() {
        tracing::warn!(reason = %error, "core dumps stay allowed");
    }
    runtime()?.block_on(run(config))
}

/// `flatlan leave`.
pub(crate) fn leave(args: StateArgs) -> Result<(), Failure> {
    // the lock says that no node runs on it
    let state = NodeState::open(&args.state)?;
    // the lock goes last: until then nobody starts here
    let files = state.dir().list()?.into_iter().filter(|file| file != LOCK_FILE);
    for file in files.chain([LOCK_FILE.to_owned()]) {
        state.dir().remove(&file)?;
    }
    output::say(format!("left: {} is empty; tell the admin to run `flatlan revoke`", args.state.display()));
    Ok(())
}

async fn run(config: NodeConfig) -> Result<(), Failure> {
    let mut node = RunningNode::start(config).await?;
    let handle = node.handle();
    let asked = node.handle();
    // the control loop asks the packet thread for its part of the status
    let watchdog = tokio::spawn(watchdog::watch(move || {
        let asked = asked.clone();
        async move { asked.status().await.is_some() }
    }));
    let signals = tokio::spawn(client::signals(move |signal| {
        let handle = handle.clone();
        async move {
            match signal {
                client::Signal::Stop => {
                    let _ = sd_notify::notify(&[NotifyState::Stopping]);
                    handle.stop().await;
                }
                client::Signal::Reload => handle.reload().await,
            }
        }
    }));
    while let Some(notice) = node.notice().await {
        match notice {
            Notice::Up { summary } => {
                output::say(format!("up: {summary}"));
                let _ = sd_notify::notify(&[NotifyState::Ready, NotifyState::Status(&summary)]);
            }
            Notice::Waiting { reason } => output::say(format!("waiting: {reason}")),
        }
    }
    let ended = node.ended().await;
    signals.abort();
    watchdog.abort();
    Ok(ended?)
}

fn node_config(args: &UpArgs) -> Result<NodeConfig, Failure> {
    let mut file = match &args.config {
        Some(path) => read_config(path)?,
        None => NodeFile::default(),
    };
    if let Some(state) = &args.state {
        file.state.clone_from(state);
    }
    if let Some(tun) = &args.tun {
        file.tun.clone_from(tun);
    }
    if let Some(port) = args.port {
        file.port = port;
    }
    if let Some(transport) = args.transport {
        file.transport = transport.into();
    }
    if let Some(backend) = args.tun_backend {
        file.tun_backend = backend.into();
    }
    if let Some(workers) = args.workers {
        file.workers = workers.try_into().map_err(|error| Failure::wrong(format!("--workers: {error}")))?;
    }
    let from_flags = proxy(&args.proxy)?;
    let proxy = match from_flags {
        Some(proxy) => Some(proxy),
        None if file.proxy.is_empty() => None,
        None => {
            let proxy = file.proxy.parse().map_err(|error| Failure::wrong(format!("proxy {}: {error}", file.proxy)))?;
            let password = Some(file.proxy_password_file.as_path()).filter(|path| !path.as_os_str().is_empty());
            Some(with_password(proxy, password)?)
        }
    };
    let lan_probe =
        file.lan_probe().map_err(|error| Failure::wrong(format!("lan_probe {}: {error}", file.lan_probe)))?;
    Ok(NodeConfig {
        state: file.state,
        tun: file.tun,
        port: file.port,
        tun_backend: file.tun_backend.into(),
        tun_offload: file.tun_offload,
        udp_gso: file.udp_gso,
        dscp: file.dscp,
        spread: file.spread,
        transport: file.transport,
        proxy,
        workers: file.workers.0,
        lan: (!file.lan.is_empty()).then_some(file.lan),
        lan_probe,
    })
}

/// Reads the file of `up --config`.
pub(crate) fn read_config(path: &Path) -> Result<NodeFile, Failure> {
    let text = std::fs::read_to_string(path).map_err(|error| {
        Failure::wrong(format!("cannot read {}: {}: give another --config", path.display(), Why(error)))
    })?;
    toml::from_str(&text).map_err(|error| {
        let complaint = located(&text, error.span(), error.message());
        Failure::wrong(format!("{}: {complaint}: `flatlan check {}`", path.display(), path.display()))
    })
}

/// The proxy of the flags, with its password.
pub(crate) fn proxy(args: &ProxyArgs) -> Result<Option<Proxy>, Failure> {
    args.proxy.clone().map(|proxy| with_password(proxy, args.proxy_password_file.as_deref())).transpose()
}

fn with_password(proxy: Proxy, file: Option<&Path>) -> Result<Proxy, Failure> {
    let Some(file) = file else { return Ok(proxy) };
    let text = std::fs::read_to_string(file).map_err(|error| {
        Failure::wrong(format!("cannot read the proxy's password from {}: {}", file.display(), Why(error)))
    })?;
    Ok(proxy.with_password(Zeroizing::new(text.trim_end().to_owned())))
}

fn token_text(args: &JoinArgs) -> Result<Zeroizing<String>, Failure> {
    let read = |what: String, done: std::io::Result<String>| {
        done.map(Zeroizing::new)
            .map_err(|error| Failure::wrong(format!("cannot read the token from {what}: {}", Why(error))))
    };
    match (&args.token_file, args.token.as_deref()) {
        (Some(file), _) => read(file.display().to_string(), std::fs::read_to_string(file)),
        (None, Some("-")) => {
            let mut text = String::new();
            let done = std::io::stdin().read_to_string(&mut text);
            read("stdin".to_owned(), done.map(|_| text))
        }
        (None, Some(token)) => {
            output::say(
                "warning: a token on the command line can be seen by others on this machine: `flatlan join -` reads it from stdin",
            );
            Ok(Zeroizing::new(token.to_owned()))
        }
        (None, None) => Err(Failure::wrong("no token: give it on stdin with `flatlan join -`")),
    }
}

/// The runtime of the control side: packets have a thread of their own.
pub(crate) fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("flatlan-control")
        .enable_all()
        .build()
        .map_err(|error| Failure::failed(format!("cannot start: {error}")))
}

/// The file that `NodeState` locks.
const LOCK_FILE: &str = "lock";
