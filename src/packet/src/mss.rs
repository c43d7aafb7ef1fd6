//! The clamp of the TCP maximum segment size: two ends never agree on more than the path carries.

use crate::bytes::{put_u16, u8_at, u16_at};
use crate::segment::tcp_flag;
use crate::{IpVersion, IpView, checksum, protocol};

/// Lowers the MSS option of a SYN to `max_mss`; tells whether the packet was changed.
///
/// The packet's checksum must be complete (after [`crate::Segments`]): it is adjusted (RFC 1624), so that a
/// wrong one stays wrong. Anything but a SYN with a larger MSS stays as it is; an option is never added.
pub fn mss_clamp(packet: &mut [u8], max_mss: u16) -> bool {
    let Ok(view) = IpView::parse(packet) else { return false };
    if view.protocol != protocol::TCP || view.ports.is_none() {
        return false;
    }
    let Some(tcp) = packet.get_mut(view.l4_offset..view.len) else { return false };
    if u8_at(tcp, 13).is_none_or(|flags| flags & tcp_flag::SYN == 0) {
        return false;
    }
    let Some(at) = find_mss(tcp) else { return false };
    let (Some(mss), Some(sum)) = (u16_at(tcp, at), u16_at(tcp, SUM)) else { return false };
    if mss <= max_mss {
        return false;
    }
    // RFC 1624 equation 3; a field at an odd place adds to the other halves of two words.
    let (old, new) = if at % 2 == 0 { (mss, max_mss) } else { (mss.swap_bytes(), max_mss.swap_bytes()) };
    put_u16(tcp, at, max_mss);
    put_u16(tcp, SUM, checksum::finish(u32::from(!sum) + u32::from(!old) + u32::from(new)));
    true
}

/// The largest TCP payload (without options) of a packet of `max_packet` bytes.
pub fn mss_for(version: IpVersion, max_packet: usize) -> u16 {
    let headers = match version {
        IpVersion::V4 => 40,
        IpVersion::V6 => 60,
    };
    u16::try_from(max_packet.saturating_sub(headers)).unwrap_or(u16::MAX)
}

/// Where the value of the MSS option is.
fn find_mss(tcp: &[u8]) -> Option<usize> {
    let end = usize::from(u8_at(tcp, 12)? >> 4) * 4;
    let options = tcp.get(..end)?;
    let mut at = 20;
    loop {
        let step = match u8_at(options, at)? {
            0 => return None,
            1 => 1,
            2 => return (u8_at(options, at + 1)? == 4 && at + 4 <= end).then_some(at + 2),
            _ => usize::from(u8_at(options, at + 1)?).max(2),
        };
        at += step;
    }
}

/// Where the checksum is in a TCP header.
const SUM: usize = 16;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::sample::{Sample, is_sound};

    fn syn(version: IpVersion, options: &[u8]) -> Vec<u8> {
        Sample { flags: tcp_flag::SYN, options: options.to_vec(), ..Sample::tcp(version) }.packet(&[])
    }

    #[test]
    fn a_larger_mss_is_lowered_and_the_checksum_follows() {
        for version in [IpVersion::V4, IpVersion::V6] {
            let mut packet = syn(version, &[2, 4, 0x05, 0xb4, 1, 3, 3, 7]);
            assert!(mss_clamp(&mut packet, 1240));
            assert!(is_sound(&packet));
            let at = IpView::parse(&packet).unwrap().l4_offset + 22;
            assert_eq!(u16_at(&packet, at), Some(1240));
        }
    }

    #[test]
    fn an_option_at_an_odd_place_is_lowered_too() {
        let mut packet = syn(IpVersion::V4, &[1, 2, 4, 0x05, 0xb4, 1, 1, 0]);
        assert!(mss_clamp(&mut packet, 1239));
        assert!(is_sound(&packet));
    }

    #[test]
    fn a_smaller_mss_or_none_stays() {
        for options in [&[2, 4, 0x02, 0x00][..], &[], &[0, 0, 2, 4], &[3, 0, 0, 0], &[1, 1, 2, 4]] {
            let mut packet = syn(IpVersion::V4, options);
            let before = packet.clone();
            assert!(!mss_clamp(&mut packet, 1240), "{options:?}");
            assert_eq!(packet, before);
        }
    }

    #[test]
    fn only_a_syn_is_clamped() {
        let sample = Sample { options: vec![2, 4, 0x05, 0xb4], ..Sample::tcp(IpVersion::V4) };
        assert!(!mss_clamp(&mut sample.packet(b"x"), 1240));
    }

    #[test]
    fn a_wrong_checksum_stays_wrong() {
        let mut packet = syn(IpVersion::V4, &[2, 4, 0x05, 0xb4]);
        packet[30] ^= 1;
        assert!(mss_clamp(&mut packet, 1240));
        assert!(!is_sound(&packet));
    }

    #[test]
    fn the_mss_is_what_the_headers_leave() {
        assert_eq!(mss_for(IpVersion::V4, 1400), 1360);
        assert_eq!(mss_for(IpVersion::V6, 1400), 1340);
        assert_eq!(mss_for(IpVersion::V6, 10), 0);
    }

    proptest! {
        #[test]
        fn any_options_leave_a_sound_packet(mut options in proptest::collection::vec(0_u8..6, 0..40), max in any::<u16>()) {
            options.truncate(options.len() & !3);
            let mut packet = syn(IpVersion::V6, &options);
            mss_clamp(&mut packet, max);
            prop_assert!(is_sound(&packet));
        }
    }
}
