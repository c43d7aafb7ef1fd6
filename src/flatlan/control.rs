//! The control socket: a small HTTP API over a Unix socket in the state directory.
//!
//! `flatlan status`, `down` and whatever else asks a running node speak to it. It works as root, as the user
//! who owns the state directory, and as group `flatlan` where the machine has one; nothing listens on TCP.

use std::path::Path;

use axum::{
    Json, Router,
    extract::State,
    http::StatusCode,
    response::IntoResponse,
    routing::{get, post},
};
use tokio::{
    net::UnixListener,
    sync::{mpsc, oneshot},
};

use crate::status::Status;

/// What somebody asks of a running node.
pub(crate) enum Request {
    Status(oneshot::Sender<Box<Status>>),
    Reload,
    Stop,
}

/// Binds the socket; a stale one is replaced (the state directory's lock says that it is stale).
pub(crate) fn bind(path: &Path) -> std::io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    UnixListener::bind(path)
}

/// Serves until dropped.
pub(crate) async fn serve(listener: UnixListener, requests: mpsc::Sender<Request>) {
    let router = Router::new()
        .route("/v1/status", get(status))
        .route("/v1/reload", post(reload))
        .route("/v1/down", post(down))
        .with_state(requests);
    if let Err(error) = axum::serve(listener, router).await {
        tracing::warn!(reason = %error, "the control socket ended");
    }
}

async fn status(State(requests): State<mpsc::Sender<Request>>) -> impl IntoResponse {
    let (reply, status) = oneshot::channel();
    let _ = requests.send(Request::Status(reply)).await;
    match status.await {
        Ok(status) => Json(status).into_response(),
        Err(_) => StatusCode::SERVICE_UNAVAILABLE.into_response(),
    }
}

async fn reload(State(requests): State<mpsc::Sender<Request>>) -> StatusCode {
    answer(requests.send(Request::Reload).await.is_ok())
}

async fn down(State(requests): State<mpsc::Sender<Request>>) -> StatusCode {
    answer(requests.send(Request::Stop).await.is_ok())
}

fn answer(taken: bool) -> StatusCode {
    if taken { StatusCode::ACCEPTED } else { StatusCode::SERVICE_UNAVAILABLE }
}
