//! What comes on a data stream, once TLS has opened it.

use flatlan_fuzz::{Fuzz, outcome};

use framing::{Kind, Piece, Side, Unframer, Written};

// what is around it has sockets and TLS
#[path = "../../../src/os/src/stream/framing.rs"]
mod framing;

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

const MOST: usize = 300;
