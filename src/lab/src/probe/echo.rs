//! Eight bytes back and forth over one TCP connection: what a shell session feels.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::{POLL, Shared, come_ahead, is_pause};
use crate::error::LabError;
use crate::namespace::Namespace;

pub(super) fn start(
    from: &Namespace,
    to: &Namespace,
    address: IpAddr,
    interval: Duration,
    shared: &Arc<Shared>,
) -> Result<(Vec<JoinHandle<()>>, SocketAddr), LabError> {
    let (client, server, peer) = connection(from, to, address)?;
    for stream in [&client, &server] {
        stream.set_read_timeout(Some(POLL)).map_err(LabError::io("set up a socket of", from.name()))?;
        stream.set_nodelay(true).map_err(LabError::io("set up a socket of", from.name()))?;
    }
    let writer = client.try_clone().map_err(LabError::io("set up a socket of", from.name()))?;
    let [asking, listening, echoing] = [(); 3].map(|()| Arc::clone(shared));
    let threads = vec![
        to.thread("lab echo", move || echo(server, &echoing))?,
        from.thread("lab ask", move || ask(writer, interval, &asking))?,
        from.thread("lab answer", move || listen(client, &listening))?,
    ];
    Ok((threads, peer))
}

/// A connection between two machines, and the address that the far one sees.
pub(super) fn connection(
    from: &Namespace,
    to: &Namespace,
    address: IpAddr,
) -> Result<(TcpStream, TcpStream, SocketAddr), LabError> {
    let bound = to.run(move || -> io::Result<_> {
        let listener = TcpListener::bind(SocketAddr::new(address, 0))?;
        let at = listener.local_addr()?;
        Ok((listener, at))
    });
    let (listener, at) = bound.map_err(LabError::io("listen on", to.name()))?;
    let connecting = from.thread("lab connect", move || TcpStream::connect_timeout(&at, CONNECT_LIMIT))?;
    let client = connecting.join().unwrap_or_else(|_| Err(io::ErrorKind::Other.into()));
    let client = client.map_err(LabError::io("connect over TCP from", from.name()))?;
    // The kernel has completed the connection already: this does not wait.
    let (server, peer) = listener.accept().map_err(LabError::io("accept on", to.name()))?;
    Ok((client, server, peer))
}

fn ask(mut stream: TcpStream, interval: Duration, shared: &Shared) {
    come_ahead();
    let mut next = Instant::now();
    while let Some(number) = shared.ask() {
        if let Err(error) = stream.write_all(&u64::from(number).to_be_bytes()) {
            return shared.broken(error.kind());
        }
        shared.pace(&mut next, interval);
    }
}

fn listen(mut stream: TcpStream, shared: &Shared) {
    come_ahead();
    let mut bytes = [0; 8];
    while !shared.stopped() {
        match read_exact(&mut stream, &mut bytes, shared) {
            Ok(Some(at)) => shared.answer(u32::try_from(u64::from_be_bytes(bytes)).unwrap_or(u32::MAX), at),
            Ok(None) => return,
            Err(error) => return shared.broken(error.kind()),
        }
    }
}

fn echo(mut stream: TcpStream, shared: &Shared) {
    come_ahead();
    let mut bytes = [0; 8];
    while !shared.stopped() {
        let answered = match read_exact(&mut stream, &mut bytes, shared) {
            Ok(Some(_)) => stream.write_all(&bytes),
            Ok(None) => return,
            Err(error) => Err(error),
        };
        if let Err(error) = answered {
            return shared.broken(error.kind());
        }
    }
}

/// Reads a whole message however often it has to wait; `None` when the probe is over.
fn read_exact(stream: &mut TcpStream, bytes: &mut [u8], shared: &Shared) -> io::Result<Option<Instant>> {
    let mut filled = 0;
    while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        if shared.stopped() {
            return Ok(None);
        }
        match stream.read(rest) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => filled += count,
            Err(error) if is_pause(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(Some(Instant::now()))
}

/// How long a TCP connection may take to come about.
pub(super) const CONNECT_LIMIT: Duration = Duration::from_secs(10);
