use std::sync::Arc;

use rustls::{
    ServerConfig,
    crypto::ring,
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional},
    task::JoinHandle,
    time::Instant,
};

use super::*;
use crate::testing::{as_nobody, async_in_empty_netns, in_empty_netns, plain_tun, runtime};

/// A hub that accepts one stream.
fn hub() -> (HostPort, JoinHandle<Result<Stream, StreamError>>) {
    let acceptor = Acceptor::new(TlsIdentity::self_signed(vec!["hub.example".into()]).unwrap()).unwrap();
    let listener = Listener::bind("[::]:0".parse().unwrap()).unwrap();
    let port = listener.local().unwrap().port();
    let accepting = tokio::spawn(async move {
        let (tcp, _) = listener.accept().await;
        acceptor.accept(tcp).await
    });
    (format!("127.0.0.1:{port}").parse().unwrap(), accepting)
}

/// A stream, at both ends.
pub(super) async fn pair() -> (Stream, Stream) {
    let (target, accepting) = hub();
    let node = dial(DialConfig::new(&target)).await.unwrap();
    (node, accepting.await.unwrap().unwrap())
}

/// Something that answers the first connection with `answer`, once it has read an HTTP head.
fn http_server(answer: &'static str) -> HostPort {
    let listener = Listener::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = Endpoint::new(listener.local().unwrap()).into();
    tokio::spawn(async move {
        let (mut tcp, _) = listener.accept().await;
        read_head(&mut tcp).await;
        tcp.write_all(answer.as_bytes()).await.unwrap();
    });
    address
}

async fn read_head(tcp: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(tcp.read_u8().await.unwrap());
    }
    String::from_utf8(head).unwrap()
}

/// A CONNECT proxy for one connection; returns the request that it got.
fn connect_proxy() -> (HostPort, JoinHandle<String>) {
    let listener = Listener::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = Endpoint::new(listener.local().unwrap()).into();
    let serving = tokio::spawn(async move {
        let (mut tcp, _) = listener.accept().await;
        let head = read_head(&mut tcp).await;
        let target = head.split(' ').nth(1).unwrap().to_owned();
        let mut onward = TcpStream::connect(target).await.unwrap();
        tcp.write_all(b"HTTP/1.1 200 Connection established\r\nVia: x\r\n\r\n").await.unwrap();
        tokio::spawn(async move { copy_bidirectional(&mut tcp, &mut onward).await });
        head
    });
    (address, serving)
}

#[test]
fn both_ends_hold_the_same_exporter_and_messages_go_both_ways() {
    async_in_empty_netns(|| async {
        let (target, accepting) = hub();
        let mut node = dial(DialConfig::new(&target)).await.unwrap();
        let mut hub = accepting.await.unwrap().unwrap();
        assert_eq!(node.exporter, hub.exporter);
        assert_ne!(node.exporter, [0; 32]);
        assert_eq!((node.local, node.remote), (hub.remote, hub.local));
        for length in [0, 1, 60_000, MOST_MESSAGE] {
            let message = Bytes::from(vec![5; length]);
            let (sent, got) = tokio::join!(node.sender.send(message.clone()), hub.receiver.recv());
            sent.unwrap();
            assert_eq!(got.unwrap().unwrap(), message);
            let (sent, got) = tokio::join!(hub.sender.send(message.clone()), node.receiver.recv());
            sent.unwrap();
            assert_eq!(got.unwrap().unwrap(), message);
        }
        assert_eq!(
            node.sender.send(Bytes::from(vec![0; MOST_MESSAGE + 1])).await.unwrap_err().to_string(),
            format!("a message of {} bytes is too long", MOST_MESSAGE + 1)
        );
        let (closed, got) = tokio::join!(node.sender.close(), hub.receiver.recv());
        closed.unwrap();
        assert!(got.unwrap().is_none());
    });
}

#[test]
fn two_streams_to_one_hub_have_different_exporters() {
    async_in_empty_netns(|| async {
        let ((first, one), (second, two)) = (hub(), hub());
        let first = dial(DialConfig::new(&first)).await.unwrap();
        let second = dial(DialConfig::new(&second)).await.unwrap();
        assert_ne!(first.exporter, second.exporter);
        drop((one.await, two.await));
    });
}

#[test]
fn a_stream_goes_through_a_connect_proxy_with_credentials() {
    async_in_empty_netns(|| async {
        let (target, accepting) = hub();
        let (address, serving) = connect_proxy();
        let proxy: Proxy = format!("http://ana@{address}").parse().unwrap();
        let proxy = proxy.with_password(zeroize::Zeroizing::new("secret".into()));
        let mut node = dial(DialConfig { proxy: Some(&proxy), ..DialConfig::new(&target) }).await.unwrap();
        let mut hub = accepting.await.unwrap().unwrap();
        assert_eq!(node.exporter, hub.exporter);
        node.sender.send(Bytes::from_static(b"through")).await.unwrap();
        assert_eq!(hub.receiver.recv().await.unwrap().unwrap(), "through");
        let head = serving.await.unwrap();
        assert_eq!(
            head,
            format!(
                "CONNECT {target} HTTP/1.1\r\nHost: {target}\r\nProxy-Authorization: Basic YW5hOnNlY3JldA==\r\n\r\n"
            )
        );
    });
}

#[test]
fn a_proxy_resolves_the_name_itself() {
    async_in_empty_netns(|| async {
        let (target, accepting) = hub();
        let named: HostPort = format!("localhost:{}", target.port()).parse().unwrap();
        let (address, serving) = connect_proxy();
        let proxy: Proxy = format!("http://{address}").parse().unwrap();
        dial(DialConfig { proxy: Some(&proxy), ..DialConfig::new(&named) }).await.unwrap();
        accepting.await.unwrap().unwrap();
        assert!(serving.await.unwrap().starts_with(&format!("CONNECT {named} ")));
    });
}

async fn refused_by(answer: &'static str) -> (HostPort, StreamError) {
    let address = http_server(answer);
    let proxy: Proxy = format!("http://{address}").parse().unwrap();
    let target = "hub.example:443".parse().unwrap();
    (address, dial(DialConfig { proxy: Some(&proxy), ..DialConfig::new(&target) }).await.unwrap_err())
}

#[test]
fn what_a_proxy_refuses_is_told() {
    async_in_empty_netns(|| async {
        let (address, error) = refused_by("HTTP/1.1 407 Proxy Authentication Required\r\n\r\n").await;
        assert_eq!(
            error.to_string(),
            format!(
                "proxy {address} wants a user and a password: give them with --proxy http://USER@HOST:PORT \
                 --proxy-password-file FILE"
            )
        );
        assert_eq!(error.exit_class(), ExitClass::Wrong);
        let (address, error) = refused_by("HTTP/1.1 403 Forbidden\r\n\r\n").await;
        assert_eq!(
            error.to_string(),
            format!(
                "proxy {address} refused to connect to hub.example:443: HTTP status 403: ask for port 443 to be allowed"
            )
        );
        assert_eq!(error.exit_class(), ExitClass::Unreachable);
        let (address, error) = refused_by("SSH-2.0-x\r\n\r\n").await;
        assert_eq!(
            error.to_string(),
            format!("proxy {address} broke off: its answer is no HTTP: is it an HTTP proxy?")
        );
        let (address, error) = refused_by("").await;
        assert_eq!(
            error.to_string(),
            format!("proxy {address} broke off: it closed the connection without an answer: is it an HTTP proxy?")
        );
    });
}

#[test]
fn the_next_address_is_tried_while_the_first_is_silent() {
    async_in_empty_netns(|| async {
        let _silence = plain_tun(vec!["10.9.0.1/24".parse().unwrap()]);
        let (target, accepting) = hub();
        let port = target.port();
        let at = |text: &str| Endpoint::new(format!("{text}:{port}").parse().unwrap());
        let addresses = vec![at("10.9.0.2"), at("10.9.0.3"), at("127.0.0.1")];
        let start = Instant::now();
        let node = dial(DialConfig { addresses, ..DialConfig::new(&target) }).await.unwrap();
        assert_eq!(node.remote, at("127.0.0.1"));
        assert!((2 * HEAD_START..DIAL_TIMEOUT).contains(&start.elapsed()), "{:?}", start.elapsed());
        accepting.await.unwrap().unwrap();

        let silent = DialConfig { timeout: Duration::from_millis(300), ..DialConfig::new(&target) };
        let error = dial(DialConfig { addresses: vec![at("10.9.0.2")], ..silent }).await.unwrap_err();
        assert_eq!(
            error.to_string(),
            format!(
                "cannot connect to {target}: no answer within 300ms: check that it runs, and that no firewall is in the \
                 way"
            )
        );
    });
}

#[test]
fn a_refused_address_makes_way_for_the_next_at_once() {
    async_in_empty_netns(|| async {
        let (target, accepting) = hub();
        let refusing = Endpoint::new("127.0.0.1:1".parse().unwrap());
        let addresses = vec![refusing, target.literal().unwrap()];
        dial(DialConfig { addresses, ..DialConfig::new(&target) }).await.unwrap();
        accepting.await.unwrap().unwrap();
        let dead: HostPort = "127.0.0.1:1".parse().unwrap();
        let error = dial(DialConfig::new(&dead)).await.unwrap_err();
        assert_eq!(
            error.to_string(),
            "cannot connect to 127.0.0.1:1: connection refused: check that it runs, and that no firewall is in the way"
        );
        assert_eq!(error.exit_class(), ExitClass::Unreachable);
    });
}

#[test]
fn dialling_happens_in_the_namespace_that_was_named() {
    let ns = NetNs::fresh().unwrap();
    let here = NetNs::current().unwrap();
    ns.run(|| {
        runtime().block_on(async {
            // Inside nothing listens and loopback is down; outside there is a hub.
            let outside = here.run(|| std::net::TcpListener::bind("127.0.0.1:0").unwrap()).unwrap();
            outside.set_nonblocking(true).unwrap();
            let target: HostPort = Endpoint::new(outside.local_addr().unwrap()).into();
            let acceptor = Acceptor::new(TlsIdentity::self_signed(vec!["x".into()]).unwrap()).unwrap();
            let accepting = tokio::spawn(async move {
                let (tcp, _) = tokio::net::TcpListener::from_std(outside).unwrap().accept().await.unwrap();
                acceptor.accept(tcp).await
            });
            assert!(dial(DialConfig::new(&target)).await.is_err());
            dial(DialConfig { netns: Some(&here), ..DialConfig::new(&target) }).await.unwrap();
            accepting.await.unwrap().unwrap();
        });
    })
    .unwrap();
}

/// Shows a certificate whose key it does not have.
#[derive(Debug)]
struct Thief(Arc<CertifiedKey>);

impl ResolvesServerCert for Thief {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }
}

#[test]
fn a_certificate_without_its_key_is_refused() {
    async_in_empty_netns(|| async {
        let made = || rcgen::generate_simple_self_signed(vec!["hub.example".to_owned()]).unwrap();
        let (victim, thief) = (made(), made());
        let key = rustls::pki_types::PrivateKeyDer::try_from(thief.signing_key.serialize_der()).unwrap();
        let key = ring::sign::any_supported_type(&key).unwrap();
        let stolen = CertifiedKey::new(vec![victim.cert.der().clone()], key);
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(Thief(Arc::new(stolen))));
        let listener = Listener::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let target: HostPort = Endpoint::new(listener.local().unwrap()).into();
        let serving = tokio::spawn(async move {
            let (tcp, _) = listener.accept().await;
            tokio_rustls::TlsAcceptor::from(Arc::new(config)).accept(tcp).await.map(drop)
        });
        let error = dial(DialConfig::new(&target)).await.unwrap_err();
        assert!(matches!(error, StreamError::Tls { .. }), "{error}");
        assert!(error.to_string().contains("BadSignature"), "{error}");
        assert!(serving.await.unwrap().is_err());
    });
}

#[test]
fn whatever_is_no_hub_is_refused() {
    async_in_empty_netns(|| async {
        let target = http_server("HTTP/1.1 200 OK\r\n\r\n");
        let timeout = Duration::from_secs(1);
        let plain = dial(DialConfig { timeout, ..DialConfig::new(&target) }).await.unwrap_err();
        assert_eq!(plain.exit_class(), ExitClass::Unreachable);

        // A TLS server that knows no such path answers 404, as this one does to strangers.
        let (target, accepting) = hub();
        let tcp = TcpStream::connect(target.to_string()).await.unwrap();
        let tls = tls::connect(tcp, "hub.example").await.unwrap();
        let uri = format!("wss://{target}/other");
        let error = tokio_tungstenite::client_async(uri, tls).await.unwrap_err();
        assert_eq!(error.to_string(), "HTTP error: 404 Not Found");
        assert!(accepting.await.unwrap().is_err());
    });
}

#[test]
fn a_message_that_is_too_long_or_no_bytes_ends_the_stream() {
    async_in_empty_netns(|| async {
        let (target, accepting) = hub();
        let mut node = dial(DialConfig::new(&target)).await.unwrap();
        let mut hub = accepting.await.unwrap().unwrap();
        node.sender.0.send(Message::text("hello")).await.unwrap();
        assert!(matches!(hub.receiver.recv().await, Err(StreamError::NotBinary)));

        let (target, accepting) = self::hub();
        let mut node = dial(DialConfig::new(&target)).await.unwrap();
        let mut hub = accepting.await.unwrap().unwrap();
        let long = Message::binary(vec![0; MOST_MESSAGE + 1]);
        let (_, got) = tokio::join!(node.sender.0.send(long), hub.receiver.recv());
        assert!(matches!(got, Err(StreamError::Closed { .. })));
    });
}

#[test]
fn a_stream_that_breaks_says_so() {
    async_in_empty_netns(|| async {
        let (target, accepting) = hub();
        let mut node = dial(DialConfig::new(&target)).await.unwrap();
        drop(accepting.await.unwrap().unwrap());
        let error = node.receiver.recv().await.unwrap_err().to_string();
        assert!(error.starts_with("the connection broke: "), "{error}");
    });
}

#[tokio::test(start_paused = true)]
async fn whoever_says_nothing_is_not_waited_for() {
    let (target, accepting) = hub();
    let silent = std::net::TcpStream::connect(target.to_string()).unwrap();
    let error = accepting.await.unwrap().unwrap_err();
    assert_eq!(error.to_string(), "the connection broke: timed out");
    drop(silent);
}

#[test]
fn a_certificate_from_files_must_fit_its_key() {
    let made = || rcgen::generate_simple_self_signed(vec!["hub.example".to_owned()]).unwrap();
    let (one, other) = (made(), made());
    let (chain, key) = (one.cert.pem(), one.signing_key.serialize_pem());
    Acceptor::new(TlsIdentity::from_pem(chain.as_bytes(), key.as_bytes()).unwrap()).unwrap();
    let mixed = TlsIdentity::from_pem(chain.as_bytes(), other.signing_key.serialize_pem().as_bytes()).unwrap();
    let error = Acceptor::new(mixed).unwrap_err();
    assert!(error.to_string().starts_with("the TLS certificate cannot be used: "), "{error}");
    assert_eq!(error.exit_class(), ExitClass::Wrong);
    let text = |chain: &[u8], key: &[u8]| TlsIdentity::from_pem(chain, key).unwrap_err().to_string();
    assert_eq!(text(b"", key.as_bytes()), "the TLS certificate file holds no PEM certificate");
    assert_eq!(text(chain.as_bytes(), b"x"), "the TLS key file holds no PEM private key");
    let missing = TlsIdentity::from_pem_files("/nonexistent/c".as_ref(), "/nonexistent/k".as_ref()).unwrap_err();
    assert_eq!(missing.to_string(), "cannot read /nonexistent/c: no such file or directory");
}

#[test]
fn refusals_to_listen_say_what_to_do() {
    in_empty_netns(|| {
        let error = |address: &str| {
            let address = address.parse().unwrap();
            runtime().block_on(async { Listener::bind(address) }).unwrap_err()
        };
        let held = std::net::TcpListener::bind("127.0.0.1:7").unwrap();
        assert_eq!(
            error("127.0.0.1:7").to_string(),
            "cannot listen on TCP 127.0.0.1:7: the port is in use: stop what uses it (`ss -tlpn sport = 7` shows it), or \
             choose another port"
        );
        drop(held);
        assert_eq!(
            error("192.0.2.1:7").to_string(),
            "cannot listen on TCP 192.0.2.1:7: this machine has no address 192.0.2.1: use 0.0.0.0 or [::] for all"
        );
        let denied = as_nobody(|| error("127.0.0.1:443"));
        assert_eq!(
            denied.to_string(),
            "cannot listen on TCP 127.0.0.1:443: not permitted: ports below 1024 need root or the capability \
             CAP_NET_BIND_SERVICE"
        );
        assert_eq!(denied.exit_class(), ExitClass::NotPermitted);
    });
}

/// Heads whose ends HTTP parsers and we would not see at one place; `H` is the first line, `F` what else is needed.
const ODD_HEADS: [&str; 4] = ["H\nF\n\n", "H\r\nF\n\r\n", "\r\n\r\nH\r\nF\r\n\r\n", "\nH\r\nF\r\n\r\n"];

#[test]
fn a_node_whose_http_head_ends_as_nobody_ends_it_is_no_stream() {
    async_in_empty_netns(|| async {
        for head in ODD_HEADS {
            let (target, accepting) = hub();
            let at: SocketAddr = target.to_string().parse().unwrap();
            let mut tls = tls::connect(TcpStream::connect(at).await.unwrap(), "hub").await.unwrap();
            let fields = "Host: hub\nUpgrade: websocket\nConnection: Upgrade\nSec-WebSocket-Version: 13\n\
                          Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==";
            let head = head
                .replace('F', "@")
                .replace('H', "GET /flatlan HTTP/1.1")
                .replace('@', &fields.replace('\n', "\r\n"));
            tls.write_all(head.as_bytes()).await.unwrap();
            tls.flush().await.unwrap();
            let accepted = time::timeout(Duration::from_secs(4), accepting).await.unwrap().unwrap();
            assert!(matches!(accepted, Err(StreamError::Closed { .. })), "{head:?}: {accepted:?}");
        }
    });
}

#[test]
fn a_hub_whose_http_head_ends_as_nobody_ends_it_is_no_stream() {
    async_in_empty_netns(|| async {
        for odd in ODD_HEADS {
            let acceptor = Acceptor::new(TlsIdentity::self_signed(vec!["hub.example".into()]).unwrap()).unwrap();
            let listener = Listener::bind("127.0.0.1:0".parse().unwrap()).unwrap();
            let target = HostPort::from(Endpoint::new(listener.local().unwrap()));
            let serving = tokio::spawn(async move {
                let (tcp, _) = listener.accept().await;
                let mut tls = acceptor.0.accept(tcp).await.unwrap();
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(tls.read_u8().await.unwrap());
                }
                let head = String::from_utf8(head).unwrap();
                let key = head.lines().find_map(|line| line.strip_prefix("Sec-WebSocket-Key: ")).unwrap();
                let key = tungstenite::handshake::derive_accept_key(key.as_bytes());
                let fields = format!("Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {key}");
                let head = odd.replace('F', "@").replace('H', "HTTP/1.1 101 Switching").replace('@', &fields);
                tls.write_all(head.as_bytes()).await.unwrap();
                tls.flush().await.unwrap();
                tls
            });
            let dialled = dial(DialConfig::new(&target)).await;
            assert!(
                matches!(dialled, Err(StreamError::Closed { .. } | StreamError::NotFlatlan { .. })),
                "{odd:?}: {dialled:?}"
            );
            drop(serving.await);
        }
    });
}

#[test]
fn a_connection_meets_congestion_in_the_same_way_on_every_machine() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let tcp = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let socket = SockRef::from(&tcp);
    socket.set_tcp_congestion(b"reno").unwrap();
    prepare(&socket).unwrap();
    let name = socket.tcp_congestion().unwrap();
    assert_eq!(name.split(|byte| *byte == 0).next(), Some(CONGESTION));
}
