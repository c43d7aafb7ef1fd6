//! What a proxy answers, before anything is encrypted.

use flatlan_fuzz::{Fuzz, outcome};

use answer::parse_status;

// what is around it has sockets and TLS
#[path = "../../../src/os/src/stream/proxy/answer.rs"]
mod answer;

#[test]
fn proxy_answer() {
    let seeds = [
        &b"HTTP/1.1 200 Connection established\r\n\r\n"[..],
        b"HTTP/1.0 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic\r\n\r\n",
        b"HTTP/1.1 \xff 2\r\n\r\n",
    ];
    Fuzz::new("proxy-answer").seeds(seeds.map(<[u8]>::to_vec)).run(|input| {
        let status = parse_status(input);
        assert!(status.is_none_or(|status| status < 1000), "{status:?}");
        outcome(&status)
    });
}
