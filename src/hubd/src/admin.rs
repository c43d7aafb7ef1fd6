//! The admin port: /metrics (OpenMetrics text), /healthz and a page for people. It tells and never acts.

use std::fmt::Write as _;

use axum::{Router, extract::State, http::StatusCode, response::Html, routing::get};
use flatlan_hub::{HubStats, NeighbourStatus, NetworkStatus};
use tokio::sync::{mpsc, oneshot};

use crate::packet_loop::Report;

/// Everything that the admin port shows.
pub(crate) struct View {
    pub(crate) key: String,
    pub(crate) stats: HubStats,
    pub(crate) networks: Vec<NetworkStatus>,
    pub(crate) neighbours: Vec<NeighbourStatus>,
    pub(crate) report: Report,
}

pub(crate) type Questions = mpsc::Sender<oneshot::Sender<View>>;

/// Serves until dropped.
pub(crate) async fn serve(listener: tokio::net::TcpListener, questions: Questions) {
    let router = Router::new()
        .route("/", get(page))
        .route("/healthz", get(healthz))
        .route("/metrics", get(metrics))
        .with_state(questions);
    if let Err(error) = axum::serve(listener, router).await {
        tracing::warn!(reason = %error, "the admin port ended");
    }
}

async fn view(questions: &Questions) -> Option<View> {
    let (reply, view) = oneshot::channel();
    questions.send(reply).await.ok()?;
    view.await.ok()
}

async fn healthz(State(questions): State<Questions>) -> (StatusCode, &'static str) {
    match view(&questions).await {
        Some(_) => (StatusCode::OK, "ok\n"),
        None => (StatusCode::SERVICE_UNAVAILABLE, "the hub does not answer\n"),
    }
}

async fn metrics(State(questions): State<Questions>) -> Result<String, StatusCode> {
    let view = view(&questions).await.ok_or(StatusCode::SERVICE_UNAVAILABLE)?;
    let mut text = String::new();
    let forwarded = view.report.stats.forwarded;
    for (name, value) in [
        ("flatlan_hub_streams", view.stats.streams as u64),
        ("flatlan_hub_attachments", view.stats.attachments as u64),
        ("flatlan_hub_labels", view.report.labels as u64),
        ("flatlan_hub_neighbours_up", view.stats.neighbours as u64),
        ("flatlan_hub_received_datagrams_total", view.report.stats.received),
        ("flatlan_hub_forwarded_datagrams_total", forwarded.packets),
        ("flatlan_hub_forwarded_bytes_total", forwarded.bytes),
        ("flatlan_hub_dropped_datagrams_total{reason=\"stream_full\"}", view.report.stream_drops),
        ("flatlan_hub_dropped_datagrams_total{reason=\"socket_full\"}", view.report.udp_drops),
    ] {
        let _ = writeln!(text, "{name} {value}");
    }
    for (reason, count) in view.report.stats.dropped.iter() {
        let _ = writeln!(text, "flatlan_hub_dropped_datagrams_total{{reason=\"{}\"}} {count}", reason.label());
    }
    for (network, carried) in &view.report.networks {
        let _ = writeln!(text, "flatlan_hub_network_bytes_total{{network=\"{network}\"}} {}", carried.bytes);
    }
    Ok(text)
}

async fn page(State(questions): State<Questions>) -> Result<Html<String>, StatusCode> {
    let view = view(&questions).await.ok_or(StatusCode::SERVICE_UNAVAILABLE)?;
    let mut text = format!(
        "<!doctype html><meta charset=utf-8><title>flatlan hub</title><style>body{{font:16px sans-serif;margin:2em}}td,th{{padding:.2em 1em;text-align:left}}</style><h1>flatlan hub</h1><p><code>{}</code></p><p>{} streams, {} attachments, {} labels</p><h2>Networks</h2><table><tr><th>name<th>roster<th>attached here<th>attached anywhere</tr>",
        view.key, view.stats.streams, view.stats.attachments, view.report.labels
    );
    for network in &view.networks {
        let (name, serial) = network
            .roster
            .as_ref()
            .map_or_else(|| (network.network.to_string(), 0), |(name, version)| (name.to_string(), version.serial));
        let _ = write!(text, "<tr><td>{name}<td>{serial}<td>{}<td>{}</tr>", network.attached, network.present);
    }
    text.push_str("</table><h2>Neighbouring hubs</h2><table><tr><th>hub<th>state<th>data<th>round trip</tr>");
    for neighbour in &view.neighbours {
        let state = if neighbour.up { "up" } else { "down" };
        let data = if neighbour.udp { "udp" } else { "tcp" };
        let rtt = neighbour.rtt.map_or_else(String::new, |rtt| format!("{:.1} ms", rtt.as_secs_f64() * 1e3));
        let _ = write!(text, "<tr><td>{}<td>{state}<td>{data}<td>{rtt}</tr>", neighbour.hub);
    }
    text.push_str("</table>");
    Ok(Html(text))
}
