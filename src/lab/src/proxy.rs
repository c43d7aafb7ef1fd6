//! A small HTTP CONNECT proxy on a site's router, as firms put between their machines and the internet.
//!
//! One thread accepts, two per tunnel copy. It speaks CONNECT and nothing else, asks for a user and a password if it
//! was given them, and logs the targets it was asked for, so that a test can tell what went through it.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, ToSocketAddrs as _};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use data_encoding::BASE64;

use crate::error::LabError;
use crate::namespace::Namespace;
use crate::topology::ProxySpec;

/// A running proxy. It stops when it is dropped.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    credentials: Option<(String, String)>,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Proxy {
    pub(crate) fn start(router: &Namespace, address: SocketAddr, spec: &ProxySpec) -> Result<Self, LabError> {
        let listener = router.run(move || TcpListener::bind(address)).map_err(LabError::io("bind", "the proxy"))?;
        listener.set_nonblocking(true).map_err(LabError::io("set up", "the proxy"))?;
        let shared = Arc::new(Shared::default());
        let server = Arc::new(Server {
            expected: spec.credentials.as_ref().map(|(user, password)| basic(user, password)),
            shared: Arc::clone(&shared),
        });
        let thread = router.thread("lab proxy", move || server.accept(&listener))?;
        Ok(Self { address, credentials: spec.credentials.clone(), shared, thread: Some(thread) })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its URL for `--proxy`, without a password.
    #[must_use]
    pub fn url(&self) -> String {
        match &self.credentials {
            Some((user, _)) => format!("http://{user}@{}", self.address),
            None => format!("http://{}", self.address),
        }
    }

    /// The password it asks for.
    #[must_use]
    pub fn password(&self) -> Option<&str> {
        self.credentials.as_ref().map(|(_, password)| password.as_str())
    }

    /// The targets of the tunnels that it opened.
    #[must_use]
    pub fn targets(&self) -> Vec<String> {
        self.shared.targets.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Cuts every open tunnel, as a proxy that restarts does.
    pub fn reset(&self) {
        for stream in self.shared.streams.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.reset();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    streams: Mutex<Vec<TcpStream>>,
    targets: Mutex<Vec<String>>,
}

#[derive(Debug)]
struct Server {
    expected: Option<String>,
    shared: Arc<Shared>,
}

impl Server {
    fn accept(self: Arc<Self>, listener: &TcpListener) {
        while !self.shared.stop.load(Ordering::Relaxed) {
            match listener.accept() {
                Ok((stream, _)) => {
                    let server = Arc::clone(&self);
                    // It runs detached, and ends when its streams are shut.
                    let _ = std::thread::Builder::new().name("lab tunnel".to_owned()).spawn(move || {
                        if let Err(error) = server.serve(stream) {
                            tracing::debug!(%error, "tunnel ended");
                        }
                    });
                }
                Err(_) => std::thread::sleep(ACCEPT_PAUSE),
            }
        }
    }

    fn serve(&self, stream: TcpStream) -> io::Result<()> {
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(REQUEST_LIMIT))?;
        let mut reader = BufReader::new(stream.try_clone()?).take(REQUEST_SIZE);
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let target = line.strip_prefix("CONNECT ").and_then(|rest| rest.split_whitespace().next()).map(str::to_owned);
        let mut authorized = self.expected.is_none();
        loop {
            let mut header = String::new();
            if reader.read_line(&mut header)? == 0 || header.trim().is_empty() {
                break;
            }
            let Some((name, value)) = header.split_once(':') else { continue };
            if name.eq_ignore_ascii_case("proxy-authorization") {
                authorized |= self.expected.as_deref() == Some(value.trim());
            }
        }
        let mut client = stream;
        let Some(target) = target else {
            return client.write_all(b"HTTP/1.1 405 Method Not Allowed\r\nContent-Length: 0\r\n\r\n");
        };
        if !authorized {
            return client.write_all(
                b"HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic realm=\"lab\"\r\n\
                  Content-Length: 0\r\n\r\n",
            );
        }
        let server = target.to_socket_addrs().and_then(|addresses| {
            let mut failed = io::Error::from(io::ErrorKind::NotFound);
            for address in addresses {
                match TcpStream::connect_timeout(&address, REQUEST_LIMIT) {
                    Ok(stream) => return Ok(stream),
                    Err(error) => failed = error,
                }
            }
            Err(failed)
        });
        let Ok(server) = server else {
            return client.write_all(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n");
        };
        self.shared.targets.lock().unwrap_or_else(PoisonError::into_inner).push(target);
        let mut open = self.shared.streams.lock().unwrap_or_else(PoisonError::into_inner);
        open.push(client.try_clone()?);
        open.push(server.try_clone()?);
        drop(open);
        client.set_read_timeout(None)?;
        client.set_nodelay(true)?;
        server.set_nodelay(true)?;
        client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n")?;
        let (from, to) = (server.try_clone()?, client.try_clone()?);
        let back = std::thread::spawn(move || copy(from, to));
        // What the client sent behind its request is already in the buffer.
        let early = reader.into_inner().buffer().to_vec();
        (&server).write_all(&early)?;
        copy(client, server);
        let _ = back.join();
        Ok(())
    }
}

fn copy(mut from: TcpStream, mut to: TcpStream) {
    let _ = io::copy(&mut from, &mut to);
    let _ = to.shutdown(Shutdown::Write);
}

/// The header value of Basic authentication (RFC 7617).
fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", BASE64.encode(format!("{user}:{password}").as_bytes()))
}

/// How long the thread that accepts sleeps when nobody comes.
const ACCEPT_PAUSE: Duration = Duration::from_millis(5);
/// How long a client may take for its request, and the target for its answer.
const REQUEST_LIMIT: Duration = Duration::from_secs(10);
/// The longest request with its headers.
const REQUEST_SIZE: u64 = 16 * 1024;
