//! Small servers and clients inside a lab's machines.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use flatlan_lab::{Lab, Namespace, Probe};

pub(crate) const MS: Duration = Duration::from_millis(1);

/// What a test expects, which is how long it waits: an answer may take its time on a busy machine, silence is believed
/// soon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Expect {
    Answer,
    Silence,
}

impl Expect {
    pub(crate) fn answer_if(expected: bool) -> Self {
        if expected { Self::Answer } else { Self::Silence }
    }

    fn patience(self) -> Duration {
        match self {
            Self::Answer => 10_000 * MS,
            Self::Silence => 400 * MS,
        }
    }
}

/// How long a question is waited for before it is asked again.
const AGAIN: Duration = Duration::from_millis(100);

/// The first IPv4 address of a hub.
pub(crate) fn first_v4(lab: &Lab, hub: &str) -> IpAddr {
    *lab.hub(hub).unwrap().addresses().iter().find(|address| address.is_ipv4()).unwrap()
}

/// Whether a ping is answered.
pub(crate) fn pings(from: &Namespace, to: IpAddr, expect: Expect) -> bool {
    Probe::ping(from, to, 20 * MS).unwrap().wait_answers(1, expect.patience()).is_ok()
}

/// Asks a UDP server who it sees.
pub(crate) fn ask_udp(from: &Namespace, port: u16, server: SocketAddr, expect: Expect) -> Option<SocketAddr> {
    from.run(move || {
        let socket = bind(port, server.ip());
        socket.set_read_timeout(Some(AGAIN)).unwrap();
        let deadline = Instant::now() + expect.patience();
        let mut buffer = [0; 100];
        while Instant::now() < deadline {
            let _ = socket.send_to(b"who", server);
            if let Ok((length, _)) = socket.recv_from(&mut buffer) {
                return std::str::from_utf8(&buffer[..length]).ok()?.parse().ok();
            }
        }
        None
    })
}

/// Opens a TCP connection.
pub(crate) fn open_tcp(from: &Namespace, to: SocketAddr, expect: Expect) -> std::io::Result<TcpStream> {
    from.run(move || TcpStream::connect_timeout(&to, expect.patience()))
}

/// Asks a proxy for a tunnel: the status code.
pub(crate) fn connect_through(from: &Namespace, proxy: SocketAddr, target: &str, credentials: Option<&str>) -> u16 {
    let authorization = credentials.map_or_else(String::new, |text| format!("Proxy-Authorization: Basic {text}\r\n"));
    let request = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n{authorization}\r\n");
    from.run(move || {
        let mut stream = TcpStream::connect(proxy).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).unwrap();
        std::str::from_utf8(&answer[9..]).unwrap().parse().unwrap()
    })
}

/// A server on a machine of the lab. A UDP server answers `who` with the address it saw, and notes who sent anything.
pub(crate) struct Server {
    port: u16,
    socket: Option<UdpSocket>,
    heard: Arc<Mutex<Vec<Heard>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// What came to a server.
struct Heard {
    from: SocketAddr,
    text: Vec<u8>,
}

impl Server {
    pub(crate) fn udp(machine: &Namespace) -> Self {
        Self::udp_at(machine, 0)
    }

    pub(crate) fn udp_at(machine: &Namespace, port: u16) -> Self {
        let socket = machine.run(move || bind(port, Ipv6Addr::UNSPECIFIED.into()));
        socket.set_read_timeout(Some(20 * MS)).unwrap();
        let port = socket.local_addr().unwrap().port();
        let (heard, stop) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let (sink, stopped, inner) = (Arc::clone(&heard), Arc::clone(&stop), socket.try_clone().unwrap());
        let serve = move || {
            let mut buffer = [0; 100];
            while !stopped.load(Ordering::Relaxed) {
                let Ok((length, from)) = inner.recv_from(&mut buffer) else { continue };
                let from = SocketAddr::new(from.ip().to_canonical(), from.port());
                if &buffer[..length] == b"who" {
                    let _ = inner.send_to(from.to_string().as_bytes(), mapped(from));
                }
                sink.lock().unwrap().push(Heard { from, text: buffer[..length].to_vec() });
            }
        };
        let thread = Some(machine.thread("test server", serve).unwrap());
        Self { port, socket: Some(socket), heard, stop, thread }
    }

    pub(crate) fn tcp(machine: &Namespace, port: u16) -> Self {
        let listener = machine.run(move || TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))).unwrap();
        listener.set_nonblocking(true).unwrap();
        let (heard, stop) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let stopped = Arc::clone(&stop);
        let serve = move || {
            let mut open = Vec::new();
            while !stopped.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok((stream, _)) => open.push(stream),
                    Err(_) => std::thread::sleep(5 * MS),
                }
            }
        };
        let thread = Some(machine.thread("test server", serve).unwrap());
        Self { port, socket: None, heard, stop, thread }
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Asks another server who it sees, from this server's own port.
    pub(crate) fn ask(&self, server: SocketAddr) -> SocketAddr {
        let socket = self.socket.as_ref().unwrap();
        let deadline = Instant::now() + Expect::Answer.patience();
        while Instant::now() < deadline {
            socket.send_to(b"who", mapped(server)).unwrap();
            if self.hears(AGAIN, |heard| heard.from == server) {
                let heard = self.heard.lock().unwrap();
                let answer = heard.iter().find(|heard| heard.from == server).unwrap();
                return std::str::from_utf8(&answer.text).unwrap().parse().unwrap();
            }
        }
        panic!("{server} does not answer");
    }

    /// Sends something that asks for no answer.
    pub(crate) fn poke(&self, to: SocketAddr) {
        self.socket.as_ref().unwrap().send_to(b"poke", mapped(to)).unwrap();
    }

    /// Whether anything comes from there.
    pub(crate) fn heard_from(&self, ip: IpAddr, expect: Expect) -> bool {
        self.hears(expect.patience(), |heard| heard.from.ip() == ip)
    }

    /// Whether anybody sends this.
    pub(crate) fn heard_text(&self, text: &str, expect: Expect) -> bool {
        self.hears(expect.patience(), |heard| heard.text == text.as_bytes())
    }

    fn hears(&self, patience: Duration, wanted: impl Fn(&Heard) -> bool) -> bool {
        let deadline = Instant::now() + patience;
        loop {
            if self.heard.lock().unwrap().iter().any(&wanted) {
                return true;
            }
            if Instant::now() > deadline {
                return false;
            }
            std::thread::sleep(MS);
        }
    }
}

/// Two servers that know each other's outside address send to each other until both hear, or silence is believed.
pub(crate) fn punch(one: (&Server, SocketAddr), other: (&Server, SocketAddr), expect: Expect) -> bool {
    let deadline = Instant::now() + expect.patience();
    while Instant::now() < deadline {
        one.0.poke(other.1);
        other.0.poke(one.1);
        let heard = |server: &Server, from: SocketAddr| server.hears(20 * MS, |heard| heard.from.ip() == from.ip());
        if heard(one.0, other.1) && heard(other.0, one.1) {
            return true;
        }
    }
    false
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn bind(port: u16, towards: IpAddr) -> UdpSocket {
    let any: IpAddr = if towards.is_ipv4() { [0, 0, 0, 0].into() } else { Ipv6Addr::UNSPECIFIED.into() };
    UdpSocket::bind(SocketAddr::new(any, port)).unwrap()
}

/// The address as an IPv6 socket has to be given it.
fn mapped(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(ip) => SocketAddr::new(ip.to_ipv6_mapped().into(), address.port()),
        IpAddr::V6(_) => address,
    }
}
