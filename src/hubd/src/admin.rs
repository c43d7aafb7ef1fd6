//! The admin port: /metrics (OpenMetrics text), /healthz and a page for people. It tells and never acts.

use std::fmt::Write as _;

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::{Html, IntoResponse},
    routing::get,
};
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

pub(crate) async fn view(questions: &Questions) -> Option<View> {
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

async fn metrics(State(questions): State<Questions>) -> Result<impl IntoResponse, StatusCode> {
    let view = view(&questions).await.ok_or(StatusCode::SERVICE_UNAVAILABLE)?;
    Ok(([(header::CONTENT_TYPE, OPENMETRICS)], exposition(&view)))
}

/// OpenMetrics text: each family once, with its type; counters end in `_total`.
fn exposition(view: &View) -> String {
    let (stats, report) = (&view.stats, &view.report);
    let mut text = String::new();
    for (name, value) in [
        ("streams", stats.streams),
        ("attachments", stats.attachments),
        ("labels", report.labels),
        ("neighbours_up", stats.neighbours),
    ] {
        let _ = writeln!(text, "# TYPE flatlan_hub_{name} gauge\nflatlan_hub_{name} {value}");
    }
    for (name, value) in [
        ("refused_streams", stats.refused),
        ("checked_claims", stats.claims_checked),
        ("received_datagrams", report.stats.received),
        ("forwarded_datagrams", report.stats.forwarded.packets),
        ("forwarded_bytes", report.stats.forwarded.bytes),
        ("refused_runs", report.udp_refused),
    ] {
        let _ = writeln!(text, "# TYPE flatlan_hub_{name} counter\nflatlan_hub_{name}_total {value}");
    }
    text.push_str("# TYPE flatlan_hub_dropped_datagrams counter\n");
    let cut = [("truncated", report.udp_cut)];
    let dropped = report.stats.dropped.iter().map(|(reason, count)| (reason.label(), count));
    for (reason, count) in cut.into_iter().chain(dropped) {
        let _ = writeln!(text, "flatlan_hub_dropped_datagrams_total{{reason=\"{reason}\"}} {count}");
    }
    text.push_str("# TYPE flatlan_hub_network_bytes counter\n");
    for (network, carried) in &report.networks {
        let _ = writeln!(text, "flatlan_hub_network_bytes_total{{network=\"{network}\"}} {}", carried.bytes);
    }
    text.push_str("# EOF\n");
    text
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

const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_sample_stands_below_the_type_of_its_family_and_the_end_is_marked() {
        let network = (flatlan_types::NetworkId::from_bytes([1; 32]), flatlan_hub::Carried { packets: 1, bytes: 9 });
        let report = Report { networks: vec![network], ..Report::default() };
        let (key, stats) = (String::new(), HubStats::default());
        let text = exposition(&View { key, stats, networks: Vec::new(), neighbours: Vec::new(), report });
        let mut family = String::new();
        let mut seen = Vec::new();
        for line in text.strip_suffix("# EOF\n").unwrap().lines() {
            if let Some(named) = line.strip_prefix("# TYPE ") {
                let (name, kind) = named.split_once(' ').unwrap();
                assert!(!seen.contains(&name), "{name} is there twice");
                seen.push(name);
                family = if kind == "counter" { format!("{name}_total") } else { name.to_owned() };
            } else {
                let name = line.split(['{', ' ']).next().unwrap();
                assert_eq!(name, family);
            }
        }
        assert!(seen.contains(&"flatlan_hub_dropped_datagrams"));
    }
}
