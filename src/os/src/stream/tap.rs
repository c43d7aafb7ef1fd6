//! What lies between TLS and WebSocket while a stream is in a task's hands: it gives away one frame at a time.
//!
//! A data stream changes hands behind the greeting, and frames may be right behind that. Whoever reads the greeting
//! must therefore not read on: the HTTP head of the upgrade ends a read, and so does each frame.
//! It understands no more of frames than where they end. Of a head it must think what the HTTP parser thinks, or it
//! takes for frames what are none: a head whose lines end otherwise than RFC 9112 wants, or that begins with an empty
//! one, which parsers put up with, is no head here.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::framing::Header;

#[derive(Debug)]
pub(super) struct Tap<S> {
    inner: S,
    /// Read, and not given away.
    kept: Vec<u8>,
    /// So many bytes may be given away.
    pass: u64,
    phase: Phase,
}

#[derive(Debug)]
enum Phase {
    /// Something that is no frame: whoever reads it will say so.
    Astray,
    /// A frame begins behind what may be given away.
    Frames,
    /// The HTTP head, of which so many bytes were there; so many of [`HEAD_END`] were there last.
    Head { length: usize, seen: usize },
}

impl<S> Tap<S> {
    pub(super) fn new(inner: S) -> Self {
        Self { inner, kept: Vec::new(), pass: 0, phase: Phase::Head { length: 0, seen: 0 } }
    }

    pub(super) fn get_ref(&self) -> &S {
        &self.inner
    }

    pub(super) fn get_mut(&mut self) -> &mut S {
        &mut self.inner
    }

    /// Whether all of the head or of a frame was given away, and nothing of the next.
    pub(super) fn is_between(&self) -> bool {
        self.pass == 0 && matches!(self.phase, Phase::Frames)
    }

    /// The stream, and what was read of it and not given away.
    pub(super) fn into_parts(self) -> (S, Vec<u8>) {
        (self.inner, self.kept)
    }

    /// Nothing may be given away: perhaps what is kept tells that something may.
    fn look(&mut self) {
        match &mut self.phase {
            Phase::Astray => self.pass = self.kept.len() as u64,
            Phase::Frames => match Header::parse(&self.kept) {
                Ok(Some(header)) => self.pass = header.payload.saturating_add(header.header as u64),
                Ok(None) => {}
                Err(_) => self.phase = Phase::Astray,
            },
            Phase::Head { length, seen } => {
                for (n, byte) in self.kept.iter().enumerate() {
                    let goes_on = HEAD_END.get(*seen) == Some(byte);
                    if *byte == b'\n' && !goes_on {
                        self.phase = Phase::Astray;
                        return self.look();
                    }
                    *length += 1;
                    *seen = if goes_on { *seen + 1 } else { usize::from(*byte == b'\r') };
                    if *seen == HEAD_END.len() {
                        let is_empty = *length == HEAD_END.len();
                        self.phase = if is_empty { Phase::Astray } else { Phase::Frames };
                        self.pass = n as u64 + 1;
                        return;
                    }
                }
                self.pass = self.kept.len() as u64;
            }
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Tap<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        loop {
            if this.pass == 0 {
                this.look();
            }
            if this.pass > 0 && !this.kept.is_empty() {
                break;
            }
            let before = this.kept.len();
            this.kept.resize(before + READ, 0);
            let mut more = ReadBuf::new(this.kept.get_mut(before..).unwrap_or_default());
            let read = Pin::new(&mut this.inner).poll_read(cx, &mut more);
            let filled = more.filled().len();
            this.kept.truncate(before + filled);
            if this.kept.is_empty() {
                // whoever waits holds no memory
                this.kept = Vec::new();
            }
            ready!(read)?;
            if filled == 0 {
                // the end; what is kept began something
                if !this.kept.is_empty() {
                    this.phase = Phase::Astray;
                    this.pass = this.kept.len() as u64;
                }
                break;
            }
        }
        let may = usize::try_from(this.pass).unwrap_or(usize::MAX);
        let go = this.kept.len().min(into.remaining()).min(may);
        this.pass -= go as u64;
        into.put_slice(this.kept.get(..go).unwrap_or_default());
        this.kept.drain(..go);
        if this.kept.is_empty() {
            this.kept = Vec::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Tap<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

const HEAD_END: &[u8] = b"\r\n\r\n";
/// What is asked of TLS at once, in bytes.
const READ: usize = 4 << 10;

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;

    use super::*;

    async fn reads(input: &[u8], room: usize) -> Vec<Vec<u8>> {
        let mut tap = Tap::new(input);
        let mut all = Vec::new();
        loop {
            let mut piece = vec![0; room];
            let n = tap.read(&mut piece).await.unwrap();
            if n == 0 {
                return all;
            }
            piece.truncate(n);
            all.push(piece);
        }
    }

    #[tokio::test]
    async fn a_read_ends_with_the_head_of_the_upgrade_and_with_each_frame() {
        let parts = [&b"HTTP/1.1 101\r\nA: \r\r\n\r\n"[..], &[0x82, 3, 1, 2, 3], &[0x82, 0], &[0x89, 1, 7]];
        assert_eq!(reads(&parts.concat(), 100).await, parts);
        // however small the reads are
        for room in 1..8 {
            let pieces: Vec<_> = parts.iter().flat_map(|part| part.chunks(room)).collect();
            assert_eq!(reads(&parts.concat(), room).await, pieces, "{room}");
        }
    }

    #[tokio::test]
    async fn what_is_behind_a_frame_is_kept_for_whoever_comes_next() {
        let input = [&b"A\r\n\r\n"[..], &[0x82, 1, 5, 0x82, 2, 6]].concat();
        let mut tap = Tap::new(&input[..]);
        let mut bytes = [0; 100];
        assert!(!tap.is_between());
        assert_eq!(tap.read(&mut bytes).await.unwrap(), 5);
        assert!(tap.is_between());
        assert_eq!(tap.read(&mut bytes[..2]).await.unwrap(), 2);
        assert!(!tap.is_between());
        assert_eq!(tap.read(&mut bytes).await.unwrap(), 1);
        assert!(tap.is_between());
        assert_eq!(tap.into_parts().1, [0x82, 2, 6]);
    }

    #[tokio::test]
    async fn what_is_no_frame_or_ends_early_comes_out_as_it_is() {
        let junk = [&b"A\r\n\r\n"[..], &[0x7f; 30]];
        assert_eq!(reads(&junk.concat(), 100).await, junk);
        let cut = [&b"A\r\n\r\n"[..], &[0x82, 126, 1]];
        assert_eq!(reads(&cut.concat(), 100).await, cut);
    }

    #[tokio::test]
    async fn a_head_that_a_parser_would_end_elsewhere_is_none() {
        for head in ["A\n\n", "A\r\nB\n\r\n", "A\n\r\n", "\r\n\r\nA\r\n\r\n", "\n\r\n\r\n"] {
            let input = [head.as_bytes(), &[0x82, 1, 5, 0x82, 1, 6], b"\r\n\r\n", &[0x82, 0]].concat();
            for room in [1, 3, 100] {
                let mut tap = Tap::new(&input[..]);
                let mut all = Vec::new();
                loop {
                    let mut piece = vec![0; room];
                    let n = tap.read(&mut piece).await.unwrap();
                    if n == 0 {
                        break;
                    }
                    all.extend_from_slice(&piece[..n]);
                    assert!(!tap.is_between(), "{head:?}");
                }
                assert_eq!(all, input, "it comes out as it is");
            }
        }
    }
}
