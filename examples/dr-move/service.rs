//! A small service over TCP and its clients. A client holds one session, asks again and again, and makes a new session where
//! the old one says nothing more. The service answers with its own name and the address that it sees.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use flatlan_lab::Namespace;

/// The service on one machine. It ends when it is dropped.
#[derive(Debug)]
pub(crate) struct Service {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Service {
    /// Serves on an address of this machine.
    pub(crate) fn start(machine: &Namespace, name: &'static str, at: SocketAddr) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let listener = machine.run(move || TcpListener::bind(at).unwrap());
        listener.set_nonblocking(true).unwrap();
        let stopped = Arc::clone(&stop);
        let serve = move || {
            let mut sessions = Vec::new();
            while !stopped.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok((stream, client)) => {
                        let stopped = Arc::clone(&stopped);
                        // a session that ends is a client's business
                        sessions.push(std::thread::spawn(move || drop(session(stream, client, name, &stopped))));
                    }
                    Err(_) => std::thread::sleep(PAUSE),
                }
            }
            for session in sessions {
                let _ = session.join();
            }
        };
        Self { stop, thread: Some(machine.thread("service", serve).unwrap()) }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Answers every question of one client.
fn session(mut stream: TcpStream, client: SocketAddr, name: &str, stop: &AtomicBool) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PAUSE))?;
    stream.set_write_timeout(Some(SILENCE))?;
    let mut question = [0];
    while !stop.load(Ordering::Relaxed) {
        match stream.read(&mut question) {
            Ok(0) => return Ok(()),
            Ok(_) => writeln!(stream, "{name} {}", client.ip())?,
            Err(error) if PAUSES.contains(&error.kind()) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// An answer of the service.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    /// When it came.
    pub(crate) at: Instant,
    /// Who answered.
    pub(crate) from: String,
    /// The address of the client that the service saw.
    pub(crate) seen: String,
    /// The number of the session.
    pub(crate) session: usize,
}

/// A client of the service. It ends when it is dropped.
#[derive(Debug)]
pub(crate) struct Client {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    answers: Mutex<Vec<Answer>>,
    more: Condvar,
}

impl Client {
    /// Asks from this machine, once each `PAUSE`.
    pub(crate) fn start(machine: &Namespace, service: SocketAddr) -> Self {
        let shared = Arc::new(Shared::default());
        let asking = Arc::clone(&shared);
        let ask = move || {
            for session in 1_usize.. {
                if asking.stop.load(Ordering::Relaxed) {
                    return;
                }
                if hold(service, session, &asking).is_err() {
                    std::thread::sleep(PAUSE);
                }
            }
        };
        Self { shared, thread: Some(machine.thread("client", ask).unwrap()) }
    }

    /// Waits for the first answer of this name after a moment.
    ///
    /// # Errors
    /// What came last, where none does within `limit`.
    pub(crate) fn wait_answer(&self, from: &str, after: Instant, limit: Duration) -> Result<Answer, String> {
        let deadline = Instant::now() + limit;
        let mut answers = self.shared.answers.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let found = answers.iter().find(|answer| answer.at > after && answer.from == from).cloned();
            if let Some(answer) = found {
                return Ok(answer);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(format!("the last answer was {:?}", answers.last()));
            }
            answers = self.shared.more.wait_timeout(answers, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// One session, until it says nothing more.
fn hold(service: SocketAddr, session: usize, shared: &Shared) -> io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&service, SILENCE)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(SILENCE))?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    while !shared.stop.load(Ordering::Relaxed) {
        stream.write_all(b"?")?;
        line.clear();
        if reader.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if let Some((from, seen)) = line.trim().split_once(' ') {
            let answer = Answer { at: Instant::now(), from: from.to_owned(), seen: seen.to_owned(), session };
            shared.answers.lock().unwrap_or_else(PoisonError::into_inner).push(answer);
            shared.more.notify_all();
        }
        std::thread::sleep(PAUSE);
    }
    Ok(())
}

/// The service's address.
pub(crate) fn service_at(ip: IpAddr) -> SocketAddr {
    SocketAddr::new(ip, PORT)
}

const PORT: u16 = 9081;
/// Between two questions, and between two looks whether it is over.
const PAUSE: Duration = Duration::from_millis(20);
/// What is no end of a session: nothing came for a while, or a signal did.
const PAUSES: [io::ErrorKind; 3] = [io::ErrorKind::Interrupted, io::ErrorKind::TimedOut, io::ErrorKind::WouldBlock];
/// A client gives a session up that has said nothing for so long.
const SILENCE: Duration = Duration::from_millis(250);
