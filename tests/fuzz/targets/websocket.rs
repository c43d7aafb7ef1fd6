//! What comes on a data stream, once TLS has opened it.

use std::{
    pin::Pin,
    task::{Context, Poll, Waker},
};

use flatlan_fuzz::{Fuzz, outcome};
use framing::{Header, Kind, Piece, Side, Unframer, Written};
use tap::Tap;
use tokio::io::{AsyncRead, ReadBuf};

// what is around it has sockets and TLS
#[path = "../../../src/os/src/stream/framing.rs"]
mod framing;
#[path = "../../../src/os/src/stream/tap.rs"]
mod tap;

/// The first byte says which side reads, and in how many steps; the rest is what comes.
#[test]
fn websocket_frames() {
    let frame = |side, kind, payload: &[u8]| [Written::new(kind, payload.len(), side).bytes(), payload].concat();
    let parts = [&[0x02, 2][..], b"ab", &[0x80, 1], b"c"].concat();
    let seeds = [
        [vec![0], frame(Side::Client, Kind::Binary, b"abc"), frame(Side::Client, Kind::Ping, b"x")].concat(),
        [vec![1], frame(Side::Server, Kind::Binary, &[7; 200]), frame(Side::Server, Kind::Close, b"")].concat(),
        [vec![3], parts, frame(Side::Server, Kind::Pong, b"")].concat(),
        vec![0, 0x82, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58],
    ];
    Fuzz::new("framing").seeds(seeds).run(|input| {
        let (how, bytes) = input.split_first().unwrap_or((&0, &[]));
        let side = if how & 1 == 0 { Side::Server } else { Side::Client };
        let whole = messages(side, &mut bytes.to_vec(), bytes.len());
        let stepped = messages(side, &mut bytes.to_vec(), usize::from(how >> 1).max(1));
        assert_eq!(whole, stepped, "it does not matter how much comes at once");
        outcome(&(whole.0.len(), whole.1))
    });
}

/// The messages in `bytes`, of which `step` come at a time; and whether it ended well.
fn messages(side: Side, bytes: &mut [u8], step: usize) -> (Vec<Vec<u8>>, bool) {
    let mut unframer = Unframer::new(side, MOST);
    let (mut all, mut at, mut came) = (Vec::new(), 0, 0);
    loop {
        match unframer.next(&mut bytes[..came], &mut at) {
            Ok(Some(Piece::Close)) => return (all, true),
            Ok(Some(Piece::Message(range) | Piece::Ping(range))) => {
                assert!(range.end <= at && at <= came && range.len() <= MOST);
                all.push(bytes[range].to_vec());
            }
            Ok(Some(Piece::Nothing)) => {}
            Ok(Some(Piece::Whole(message))) => {
                assert!(message.len() <= MOST);
                all.push(message);
            }
            Ok(None) if came == bytes.len() => return (all, true),
            Ok(None) => came = bytes.len().min(came + step),
            Err(_) => return (all, false),
        }
    }
}

/// The first byte says how much is read at a time; the rest is a head and frames.
#[test]
fn stream_tap() {
    let request = "GET /flatlan HTTP/1.1\r\nHost: hub\r\nUpgrade: websocket\r\n\r\n";
    let response = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n";
    let frames = [&[0x82, 3, 1, 2, 3, 0x89, 0, 0x82, 126, 0, 200], &[7; 200][..], &[0x88, 0]].concat();
    let seeds = [request, response].into_iter().flat_map(|head| {
        let odd = [head.replace("\r\n", "\n"), format!("\r\n\r\n{head}"), format!("\r\n\r\n\n{head}")];
        let heads = [vec![head.to_owned()], odd.to_vec()].concat();
        heads.into_iter().map(|head| [&[200], head.as_bytes(), &frames].concat()).collect::<Vec<_>>()
    });
    Fuzz::new("stream_tap").seeds(seeds).run(|input| {
        let (room, bytes) = input.split_first().unwrap_or((&0, &[]));
        let between = places_between(bytes, usize::from(*room).max(1));
        let Some((head, frames)) = between.split_first() else { return outcome(&0) };
        assert_ne!(ends_of_head(&bytes[..*head]), Ends::Later, "the parser still waits for its head");
        assert_ne!(ends_of_head(&bytes[..*head - 1]), Ends::Here, "the parser had its head before");
        let mut at = *head;
        for place in frames {
            let header = Header::parse(&bytes[at..]).unwrap().unwrap();
            at += header.header + usize::try_from(header.payload).unwrap();
            assert_eq!(at, *place, "a read ends with each frame");
        }
        outcome(&between.len())
    });
}

/// Reads all of it, `room` bytes at a time; after how many bytes something was whole.
fn places_between(bytes: &[u8], room: usize) -> Vec<usize> {
    let (mut tap, mut cx) = (Tap::new(bytes), Context::from_waker(Waker::noop()));
    let (mut all, mut places) = (Vec::new(), Vec::new());
    loop {
        let mut piece = vec![0; room];
        let mut into = ReadBuf::new(&mut piece);
        assert!(matches!(Pin::new(&mut tap).poll_read(&mut cx, &mut into), Poll::Ready(Ok(()))));
        if into.filled().is_empty() {
            assert_eq!(all, bytes, "it comes out as it went in");
            assert!(tap.get_ref().is_empty() && tap.get_mut().is_empty() && tap.into_parts().1.is_empty());
            return places;
        }
        all.extend_from_slice(into.filled());
        if tap.is_between() {
            places.push(all.len());
        }
    }
}

/// Where an HTTP parser sees the end of a head.
#[derive(Debug, PartialEq, Eq)]
enum Ends {
    Here,
    Later,
    Never,
}

fn ends_of_head(bytes: &[u8]) -> Ends {
    let mut fields = [httparse::EMPTY_HEADER; 64];
    let parsed = if bytes.trim_ascii_start().starts_with(b"HTTP") {
        httparse::Response::new(&mut fields).parse(bytes)
    } else {
        httparse::Request::new(&mut fields).parse(bytes)
    };
    match parsed {
        Ok(httparse::Status::Complete(_)) => Ends::Here,
        Ok(httparse::Status::Partial) => Ends::Later,
        Err(_) => Ends::Never,
    }
}

const MOST: usize = 300;
