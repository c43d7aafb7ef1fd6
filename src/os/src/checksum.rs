//! The internet checksum (RFC 1071), read by the fuzz targets too.

/// The ones' complement sum of these parts, one behind the other, each of a whole number of words but the last.
pub(crate) fn sum<const N: usize>(parts: [&[u8]; N]) -> u16 {
    let word = |pair: &[u8]| match *pair {
        [high, low] => u64::from(u16::from_be_bytes([high, low])),
        [high] => u64::from(high) << 8,
        _ => 0,
    };
    // no memory holds as many words as would be too many for this
    let mut sum: u64 = parts.into_iter().flat_map(|part| part.chunks(2)).map(word).sum();
    while sum > u64::from(u16::MAX) {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_add_up_and_what_overflows_comes_in_at_the_other_end() {
        // the example of RFC 1071, section 3
        assert_eq!(sum([&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]]), 0xddf2);
        assert_eq!(sum([&[0x00, 0x01, 0xf2, 0x03], &[0xf4, 0xf5, 0xf6, 0xf7]]), 0xddf2);
        assert_eq!(sum([&[0xff; 65_536]]), 0xffff);
        assert_eq!(sum([&[0x12, 0x34, 0x56]]), 0x12_34 + 0x56_00);
        assert_eq!(sum([]), 0);
    }
}
