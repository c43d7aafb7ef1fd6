//! A proxy's answer: bytes of a stranger, so that the fuzz targets read this file too.

/// The status of an HTTP/1 response's head.
pub(super) fn parse_status(head: &[u8]) -> Option<u16> {
    let line = head.split(|b| *b == b'\r').next()?;
    let mut words = str::from_utf8(line).ok()?.split(' ');
    words.next().filter(|version| version.starts_with("HTTP/1."))?;
    words.next().filter(|status| status.len() == 3)?.parse().ok()
}
