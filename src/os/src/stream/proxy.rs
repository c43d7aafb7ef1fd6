//! An HTTP CONNECT proxy (RFC 9110, section 9.3.6), with basic authentication (RFC 7617) or none.
//!
//! One request, one answer, then bytes. The answer is read one byte at a time, bounded, so that nothing of
//! what follows it is swallowed. NTLM and Kerberos are not spoken.

mod answer;

use std::{fmt, io, str::FromStr};

use data_encoding::BASE64;
use flatlan_types::{HostPort, ParseHostPortError};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use zeroize::Zeroizing;

use self::answer::parse_status;
use super::StreamError;

/// A proxy, written `http://[USER[:PASSWORD]@]HOST:PORT`. `Display` and `Debug` never show the password.
#[derive(Clone, PartialEq, Eq)]
pub struct Proxy {
    address: HostPort,
    user: Option<String>,
    password: Zeroizing<String>,
}

impl Proxy {
    /// Where it is.
    pub fn address(&self) -> &HostPort {
        &self.address
    }

    /// The same with this password; without effect where there is no user.
    #[must_use]
    pub fn with_password(mut self, password: Zeroizing<String>) -> Self {
        self.password = password;
        self
    }

    /// Asks for a tunnel to `target`.
    pub(super) async fn tunnel(&self, tcp: &mut TcpStream, target: &HostPort) -> Result<(), StreamError> {
        let broke = |e: io::Error| StreamError::Proxy { proxy: self.address.clone(), why: e.into() };
        tcp.write_all(self.request(target).as_bytes()).await.map_err(broke)?;
        let status = read_status(tcp).await.map_err(broke)?;
        match status {
            200..=299 => Ok(()),
            407 => Err(StreamError::ProxyAuth { proxy: self.address.clone() }),
            status => Err(StreamError::ProxyRefused { proxy: self.address.clone(), target: target.clone(), status }),
        }
    }

    fn request(&self, target: &HostPort) -> Zeroizing<String> {
        let mut request = Zeroizing::new(format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n"));
        if let Some(user) = &self.user {
            let pair = Zeroizing::new(format!("{user}:{}", *self.password));
            let encoded = Zeroizing::new(BASE64.encode(pair.as_bytes()));
            let line = Zeroizing::new(format!("Proxy-Authorization: Basic {}\r\n", *encoded));
            // One allocation of the final size, so that growing leaves no copy behind.
            request = Zeroizing::new([&**request, &**line].concat());
        }
        Zeroizing::new([&**request, "\r\n"].concat())
    }
}

async fn read_status(tcp: &mut TcpStream) -> io::Result<u16> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() >= MOST_HEAD {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "its answer has no end"));
        }
        match tcp.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(io::Error::new(e.kind(), "it closed the connection without an answer"));
            }
            Err(e) => return Err(e),
        }
    }
    parse_status(&head).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "its answer is no HTTP"))
}

impl FromStr for Proxy {
    type Err = ParseProxyError;

    fn from_str(s: &str) -> Result<Self, ParseProxyError> {
        let rest = s.strip_prefix("http://").ok_or(ParseProxyError::Scheme)?;
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (credentials, address) = match rest.rsplit_once('@') {
            Some((credentials, address)) => (Some(credentials), address),
            None => (None, rest),
        };
        let address = address.parse().map_err(ParseProxyError::Address)?;
        let (user, password) = match credentials.map(|c| c.split_once(':').unwrap_or((c, ""))) {
            Some((user, password)) => (Some(unescape(user)?), unescape(password)?),
            None => (None, String::new()),
        };
        // A line break would end the header it stands in.
        if user.iter().chain([&password]).any(|text| text.contains(char::is_control)) {
            return Err(ParseProxyError::Credentials);
        }
        Ok(Self { address, user, password: Zeroizing::new(password) })
    }
}

/// Percent decoding (RFC 3986), as credentials in a URL have it.
fn unescape(text: &str) -> Result<String, ParseProxyError> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digit = |b: Option<u8>| b.and_then(|b| char::from(b).to_digit(16));
        let (Some(high), Some(low)) = (digit(rest.next()), digit(rest.next())) else {
            return Err(ParseProxyError::Credentials);
        };
        bytes.push(u8::try_from(high * 16 + low).map_err(|_| ParseProxyError::Credentials)?);
    }
    String::from_utf8(bytes).map_err(|_| ParseProxyError::Credentials)
}

impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}", self.address)
    }
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

const MOST_HEAD: usize = 16 << 10;

/// Why a text is no proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ParseProxyError {
    /// What follows is no `HOST:PORT`.
    #[error("a proxy is written http://[USER@]HOST:PORT: {0}")]
    Address(ParseHostPortError),
    /// Bad percent signs or control characters.
    #[error("a proxy is written http://[USER@]HOST:PORT: special characters in USER as %XX")]
    Credentials,
    /// No `http://`.
    #[error("a proxy is written http://[USER@]HOST:PORT: it must start with http://")]
    Scheme,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxy_with_credentials_is_parsed_and_its_password_never_shown() {
        let proxy: Proxy = "http://an%40a:se:cret@proxy.example:3128/".parse().unwrap();
        assert_eq!(proxy.address().to_string(), "proxy.example:3128");
        assert_eq!((proxy.user.as_deref(), proxy.password.as_str()), (Some("an@a"), "se:cret"));
        assert_eq!(format!("{proxy} {proxy:?}"), "http://proxy.example:3128 http://proxy.example:3128");
        let request = proxy.request(&"[2001:db8::1]:443".parse().unwrap());
        let auth = BASE64.encode(b"an@a:se:cret");
        assert_eq!(
            request.as_str(),
            format!(
                "CONNECT [2001:db8::1]:443 HTTP/1.1\r\nHost: [2001:db8::1]:443\r\nProxy-Authorization: Basic {auth}\r\n\r\n"
            )
        );
    }

    #[test]
    fn bad_proxies_say_how_one_is_written() {
        let error = |text: &str| text.parse::<Proxy>().unwrap_err().to_string();
        assert_eq!(error("socks5://p:1"), "a proxy is written http://[USER@]HOST:PORT: it must start with http://");
        assert_eq!(
            error("http://p"),
            "a proxy is written http://[USER@]HOST:PORT: HOST:PORT needs a port from 1 to 65535"
        );
        assert_eq!(error("http://a%0d%0ab@p:1"), ParseProxyError::Credentials.to_string());
        assert_eq!(error("http://a%zz@p:1"), ParseProxyError::Credentials.to_string());
    }

    #[test]
    fn only_http_answers_have_a_status() {
        assert_eq!(parse_status(b"HTTP/1.1 200 Connection established\r\n\r\n"), Some(200));
        assert_eq!(parse_status(b"HTTP/1.0 407 x\r\nA: b\r\n\r\n"), Some(407));
        assert_eq!(parse_status(b"SSH-2.0-x 200\r\n\r\n"), None);
        assert_eq!(parse_status(b"HTTP/1.1 2000\r\n\r\n"), None);
        assert_eq!(parse_status(b""), None);
    }
}
