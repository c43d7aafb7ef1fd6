//! The Internet checksum (RFC 1071).
//!
//! Sums are ones' complement sums of big-endian 16-bit words, so they may be computed in any word order
//! and width and combined later: the bulk is summed 64 bytes a step in the machine's own byte order and
//! swapped once. A partial sum is a `u32` into which a few dozen folded sums can be added without overflow;
//! [`fold`] brings it to 16 bits and [`finish`] complements it.

use std::net::IpAddr;

/// The folded ones' complement sum of `bytes`, as if padded with a zero to an even length. Not complemented.
#[inline]
pub fn sum(bytes: &[u8]) -> u16 {
    let mut total = 0;
    for block in bytes.chunks(BLOCK) {
        total += sum_block(block);
    }
    // Two steps leave at most 17 bits of 32, two more at most 16.
    let total = (total & 0xffff_ffff) + (total >> 32);
    let total = (total & 0xffff_ffff) + (total >> 32);
    let total = (total & 0xffff) + (total >> 16);
    let total = (total & 0xffff) + (total >> 16);
    let total = (total & 0xffff) + (total >> 16);
    u16::from_be(total as u16)
}

/// Brings a partial sum to 16 bits. Only a sum of nothing but zeros gives zero.
#[inline]
pub fn fold(partial: u32) -> u16 {
    let partial = (partial & 0xffff) + (partial >> 16);
    let partial = (partial & 0xffff) + (partial >> 16);
    partial as u16
}

/// The value of a checksum field: the folded sum, complemented.
#[inline]
pub fn finish(partial: u32) -> u16 {
    !fold(partial)
}

/// The value of a UDP checksum field, where zero would mean "no checksum" (RFC 768).
#[inline]
pub fn finish_nonzero(partial: u32) -> u16 {
    match finish(partial) {
        0 => 0xffff,
        checksum => checksum,
    }
}

/// The partial sum of the pseudo-header (RFC 9293 3.1, RFC 8200 8.1) of a transport packet of `len` bytes.
#[inline]
pub fn pseudo(source: IpAddr, destination: IpAddr, protocol: u8, len: usize) -> u32 {
    address(source) + address(destination) + u32::from(protocol) + length(len)
}

/// The partial sum of an address.
#[inline]
fn address(address: IpAddr) -> u32 {
    match address {
        IpAddr::V4(address) => sum(&address.octets()).into(),
        IpAddr::V6(address) => sum(&address.octets()).into(),
    }
}

/// The partial sum of a length below 4 GiB.
#[inline]
fn length(len: usize) -> u32 {
    let len = len as u32;
    (len & 0xffff) + (len >> 16)
}

/// The native-order sum of a block; equal to the checksum sum modulo 0xffff, and zero only for zeros.
///
/// The sum of all 32-bit words may wrap, as long as the sum of their upper halves does not: the sum of the
/// lower halves is the difference. That is three vector operations for each vector, in a loop so plain that
/// the compiler always finds them.
#[inline]
fn sum_block(bytes: &[u8]) -> u64 {
    debug_assert!(bytes.len() <= BLOCK);
    let (words, rest) = bytes.as_chunks::<4>();
    let mut whole = 0_u32;
    let mut upper = 0_u32;
    for word in words {
        let word = u32::from_ne_bytes(*word);
        whole = whole.wrapping_add(word);
        upper = upper.wrapping_add(word >> 16);
    }
    let last = match *rest {
        [] => 0,
        [a] => u32::from_ne_bytes([a, 0, 0, 0]),
        [a, b] => u32::from_ne_bytes([a, b, 0, 0]),
        [a, b, c, ..] => u32::from_ne_bytes([a, b, c, 0]),
    };
    u64::from(upper) + u64::from(whole.wrapping_sub(upper << 16)) + u64::from(last)
}

/// Bytes summed at once: even, and few enough that neither sum of halves exceeds 32 bits.
const BLOCK: usize = 1 << 17;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// RFC 1071 section 4.1, word by word.
    fn naive(bytes: &[u8]) -> u16 {
        let mut total = 0_u32;
        for pair in bytes.chunks(2) {
            total += u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
            total = (total & 0xffff) + (total >> 16);
        }
        total as u16
    }

    #[test]
    fn the_example_of_rfc_1071_gives_its_sum() {
        assert_eq!(sum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), 0xddf2);
    }

    #[test]
    fn all_ones_do_not_overflow_a_lane() {
        for len in [0, 1, 2, 3, 63, 64, 65, 65_535, BLOCK, BLOCK + 1, 3 * BLOCK + 7] {
            let bytes = vec![0xff; len];
            assert_eq!(sum(&bytes), naive(&bytes), "{len} bytes");
        }
    }

    #[test]
    fn only_zeros_sum_to_zero() {
        assert_eq!(sum(&[0; 1000]), 0);
        assert_eq!(sum(&[0xff, 0xff]), 0xffff);
        assert_eq!(sum(&[0x80, 0x00, 0x7f, 0xff]), 0xffff);
    }

    proptest! {
        #[test]
        fn any_bytes_sum_as_the_naive_way(bytes in proptest::collection::vec(any::<u8>(), 0..3000), skip in 0_usize..9) {
            let bytes = bytes.get(skip..).unwrap_or_default();
            prop_assert_eq!(sum(bytes), naive(bytes));
        }

        #[test]
        fn folding_never_loses_a_carry(partial in any::<u32>()) {
            let folded = fold(partial);
            prop_assert_eq!(u32::from(folded) % 0xffff, partial % 0xffff);
            prop_assert_eq!(folded == 0, partial == 0);
        }
    }
}
