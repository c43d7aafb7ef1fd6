//! Commands that ask a running node, over the control socket in its state directory; and what both daemons
//! share: signals.

use std::{
    net::{IpAddr, SocketAddr},
    path::Path,
    process::Stdio,
    time::Duration,
};

use bytes::Bytes;
use flatlan::state::SOCKET;
use http_body_util::{BodyExt as _, Empty};
use hyper::Method;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpStream, UnixStream},
    signal::unix::{SignalKind, signal},
};

use crate::{
    args::{NcArgs, PingArgs, StateArgs, StatusArgs},
    failure::Failure,
    node::runtime,
    output,
};

/// `flatlan status`.
pub(crate) fn status(args: StatusArgs) -> Result<(), Failure> {
    let status = fetch_status(&args.state.state)?;
    if args.json {
        output::result(serde_json::to_string_pretty(&status).unwrap_or_default());
    } else {
        print_status(&status);
    }
    Ok(())
}

/// `flatlan down`.
pub(crate) fn down(args: StateArgs) -> Result<(), Failure> {
    runtime()?.block_on(async {
        call(&args.state, Method::POST, "/v1/down").await?;
        // the socket goes with the node
        let socket = args.state.join(SOCKET);
        let gone = async {
            while socket.exists() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(STOP, gone)
            .await
            .map_err(|_| Failure::failed(format!("the node of {} does not stop within {STOP:?}", args.state.display())))
    })
}

/// `flatlan ping`: ICMP echoes through the overlay, each with the path in use when its reply came.
pub(crate) fn ping(args: PingArgs) -> Result<(), Failure> {
    let status = fetch_status(&args.state.state)?;
    let ip = resolve(&args.target, &status)?;
    runtime()?.block_on(async {
        let mut sent = 0u32;
        let mut received = 0u32;
        while args.count.is_none_or(|count| sent < count) {
            sent += 1;
            match echo(ip).await? {
                Some(ms) => {
                    received += 1;
                    let status = call(&args.state.state, Method::GET, "/v1/status").await?;
                    let path = path_of(ip, &status);
                    if args.json {
                        let ms = ms.parse::<f64>().ok();
                        output::result(serde_json::json!({ "ip": ip, "seq": sent, "time_ms": ms, "path": path }));
                    } else {
                        output::result(format!("reply from {ip}: seq={sent} time={ms} ms path={path}"));
                    }
                }
                None if args.json => {
                    output::result(serde_json::json!({ "ip": ip, "seq": sent, "time_ms": null, "path": null }));
                }
                None => output::result(format!("no reply from {ip}: seq={sent}")),
            }
            if args.count.is_none_or(|count| sent < count) {
                tokio::time::sleep(args.interval).await;
            }
        }
        output::say(format!("{sent} sent, {received} received"));
        if received == 0 {
            return Err(Failure::unreachable(format!("{} does not answer: see `flatlan status`", args.target)));
        }
        Ok(())
    })
}

/// `flatlan nc`.
pub(crate) fn nc(args: NcArgs) -> Result<(), Failure> {
    let ip = match args.host.parse() {
        Ok(ip) => ip,
        Err(_) => resolve(&args.host, &fetch_status(&args.state.state)?)?,
    };
    runtime()?.block_on(async {
        let connect = TcpStream::connect(SocketAddr::new(ip, args.port));
        let stream = tokio::time::timeout(CONNECT, connect)
            .await
            .map_err(|_| {
                Failure::unreachable(format!("cannot connect to {} port {}: no answer", args.host, args.port))
            })?
            .map_err(|error| {
                Failure::unreachable(format!("cannot connect to {} port {}: {error}", args.host, args.port))
            })?;
        let (mut from, mut to) = stream.into_split();
        let upload = tokio::spawn(async move {
            let _ = tokio::io::copy(&mut tokio::io::stdin(), &mut to).await;
            let _ = to.shutdown().await;
        });
        let mut stdout = tokio::io::stdout();
        let mut buffer = vec![0; 64 << 10];
        loop {
            let read =
                from.read(&mut buffer).await.map_err(|error| Failure::failed(format!("connection broke: {error}")))?;
            let Some(bytes) = buffer.get(..read).filter(|bytes| !bytes.is_empty()) else { break };
            if stdout.write_all(bytes).await.is_err() || stdout.flush().await.is_err() {
                break;
            }
        }
        upload.abort();
        // a blocked read of stdin must not hold the program up
        std::process::exit(0);
    })
}

/// What systemd or an operator wants of a daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Signal {
    /// SIGTERM or SIGINT.
    Stop,
    /// SIGHUP.
    Reload,
}

/// Calls `on` for each signal, until dropped.
pub(crate) async fn signals<F, Fut>(on: F)
where
    F: Fn(Signal) -> Fut,
    Fut: Future<Output = ()>,
{
    let (Ok(mut term), Ok(mut int), Ok(mut hup)) =
        (signal(SignalKind::terminate()), signal(SignalKind::interrupt()), signal(SignalKind::hangup()))
    else {
        return;
    };
    loop {
        let signal = tokio::select! {
            _ = term.recv() => Signal::Stop,
            _ = int.recv() => Signal::Stop,
            _ = hup.recv() => Signal::Reload,
        };
        on(signal).await;
    }
}

/// What a running node says of itself.
pub(crate) fn fetch_status(state: &Path) -> Result<Value, Failure> {
    runtime()?.block_on(call(state, Method::GET, "/v1/status"))
}

/// One request to a running node.
async fn call(state: &Path, method: Method, path: &str) -> Result<Value, Failure> {
    let socket = state.join(SOCKET);
    let stream = UnixStream::connect(&socket).await.map_err(|error| {
        if error.kind() == std::io::ErrorKind::PermissionDenied {
            let text = "run as root, as the owner of the state directory, or as a member of group flatlan (the group must be there when the node starts)";
            let text = format!("may not ask the node: {}: {text}", socket.display());
            return Failure::new(flatlan_os::ExitClass::NotPermitted, text);
        }
        let state = state.display();
        Failure::unreachable(format!("no node runs on {state}: start it with `flatlan up --state {state}`"))
    })?;
    let broke = |error: String| Failure::failed(format!("the node does not answer: {error}"));
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| broke(error.to_string()))?;
    let connection = tokio::spawn(connection);
    let request = hyper::Request::builder()
        .method(method)
        .uri(path)
        .header("host", "flatlan")
        .body(Empty::<Bytes>::new())
        .map_err(|error| broke(error.to_string()))?;
    let response = tokio::time::timeout(ANSWER, sender.send_request(request))
        .await
        .map_err(|_| broke("it is busy".to_owned()))?
        .map_err(|error| broke(error.to_string()))?;
    let body = response.into_body().collect().await.map_err(|error| broke(error.to_string()))?.to_bytes();
    connection.abort();
    if body.is_empty() {
        return Ok(Value::Null);
    }
    serde_json::from_slice(&body).map_err(|error| broke(error.to_string()))
}

/// The address that a name or a text means in the overlay.
fn resolve(target: &str, status: &Value) -> Result<IpAddr, Failure> {
    if let Ok(ip) = target.parse() {
        return Ok(ip);
    }
    let peers = status.get("peers").and_then(Value::as_array).into_iter().flatten();
    let me = status.get("self");
    let named = peers.chain(me).find(|peer| peer.get("name").and_then(Value::as_str) == Some(target));
    let ips = named.and_then(|peer| peer.get("ips")?.as_array());
    ips.into_iter().flatten().filter_map(Value::as_str).find_map(|ip| ip.parse().ok()).ok_or_else(|| {
        Failure::wrong(format!("{target} is no member and no address: `flatlan status` lists the members"))
    })
}

/// One ICMP echo by the system's ping; its round trip in milliseconds, as printed.
async fn echo(ip: IpAddr) -> Result<Option<String>, Failure> {
    let output = tokio::process::Command::new("ping")
        .args(["-n", "-c", "1", "-W", "2", &ip.to_string()])
        .stdin(Stdio::null())
        .output()
        .await
        .map_err(|error| Failure::failed(format!("cannot run ping: {error}: install iputils-ping")))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let time = text.split("time=").nth(1).and_then(|rest| rest.split_whitespace().next());
    Ok(time.map(str::to_owned))
}

fn path_of(ip: IpAddr, status: &Value) -> String {
    let ip = ip.to_string();
    let peers = status.get("peers").and_then(Value::as_array).into_iter().flatten();
    let owns = |peer: &&Value| {
        peer.get("ips").and_then(Value::as_array).is_some_and(|ips| ips.iter().any(|own| own.as_str() == Some(&ip)))
    };
    peers.into_iter().find(owns).and_then(|peer| peer.get("path")).map_or_else(|| "unknown".to_owned(), describe_path)
}

/// A path of the status in words.
pub(crate) fn describe_path(path: &Value) -> String {
    let text = |key: &str| path.get(key).and_then(Value::as_str).unwrap_or("?").to_owned();
    if path.is_null() {
        return "none".to_owned();
    }
    if text("kind") == "direct" {
        return format!("direct {}", text("endpoint"));
    }
    let via = path.get("via").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str);
    format!("relay {} over {}", via.collect::<Vec<_>>().join(","), text("transport"))
}

/// The elements of a list, where there is one.
pub(crate) fn array(value: Option<&Value>) -> impl Iterator<Item = &Value> {
    value.and_then(Value::as_array).into_iter().flatten()
}

/// A text in an object; where there is none, a dash.
pub(crate) fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value.get(key).and_then(Value::as_str).unwrap_or("-")
}

fn print_status(status: &Value) {
    let text = |value: &Value, key: &str| value.get(key).and_then(Value::as_str).unwrap_or("-").to_owned();
    let list = |value: &Value, key: &str| {
        let items = value.get(key).and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str);
        items.collect::<Vec<_>>().join(" ")
    };
    let ms = |value: &Value| {
        value.get("rtt_ms").and_then(Value::as_f64).map_or_else(|| "-".to_owned(), |ms| format!("{ms:.1} ms"))
    };
    let null = Value::Null;
    let (network, me) = (status.get("network").unwrap_or(&null), status.get("self").unwrap_or(&null));
    let serial = network.get("roster_serial").and_then(Value::as_u64).unwrap_or_default();
    output::result(format!("network  {} (roster {serial})", text(network, "name")));
    output::result(format!("self     {} {}", text(me, "name"), list(me, "ips")));
    for (prefix, reason) in me.get("withdrawn").and_then(Value::as_object).into_iter().flatten() {
        output::result(format!("withdrawn {prefix}: {}", reason.as_str().unwrap_or("-")));
    }
    for hub in status.get("hubs").and_then(Value::as_array).into_iter().flatten() {
        output::result(format!(
            "hub      {:<16} {:<9} {:<4} {}",
            text(hub, "name"),
            text(hub, "state"),
            text(hub, "transport"),
            ms(hub)
        ));
    }
    for peer in status.get("peers").and_then(Value::as_array).into_iter().flatten() {
        let path = peer.get("path").unwrap_or(&null);
        output::result(format!(
            "peer     {:<16} {:<40} {} {}",
            text(peer, "name"),
            list(peer, "ips"),
            describe_path(path),
            ms(path)
        ));
        for lane in peer.get("lanes").and_then(Value::as_array).into_iter().flatten() {
            let number = lane.get("lane").and_then(Value::as_u64).unwrap_or_default();
            let flows = if lane.get("flows").and_then(Value::as_bool) == Some(true) { "flows" } else { "spare" };
            let path = lane.get("path").unwrap_or(&null);
            let standby = lane.get("standby").filter(|standby| !standby.is_null());
            let standby = standby.map_or_else(|| "none".to_owned(), describe_path);
            let loss = path.get("loss").and_then(Value::as_f64).unwrap_or_default() * 100.0;
            let mtu = path.get("mtu").and_then(Value::as_u64).unwrap_or_default();
            output::result(format!(
                "  lane {number} {flows}  {} {}, loss {loss:.0} %, MTU {mtu}, standby {standby}",
                describe_path(path),
                ms(path)
            ));
        }
    }
    for alarm in status.get("alarms").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str) {
        output::result(format!("ALARM    {alarm}"));
    }
    if let Some(waiting) = status.get("waiting").and_then(Value::as_str) {
        output::result(format!("waiting  {waiting}"));
    }
}

/// How long a node may take to answer, to stop, and a TCP port to accept.
const ANSWER: Duration = Duration::from_secs(5);
const STOP: Duration = Duration::from_secs(10);
const CONNECT: Duration = Duration::from_secs(10);
