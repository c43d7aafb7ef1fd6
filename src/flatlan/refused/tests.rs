use flatlan_packet::{IpView, protocol};

use super::*;

/// A UDP or TCP super-packet of `count` segments with `size` bytes of payload each, as the coalescer makes them.
fn frame(protocol: u8, count: usize, size: usize) -> Vec<u8> {
    let (gso_type, l4_len, sum_at) =
        if protocol == protocol::TCP { (GsoType::TcpV4, 20, 16) } else { (GsoType::Udp, 8, 6) };
    let header = VnetHeader {
        flags: VnetHeader::NEEDS_CSUM,
        gso_type,
        ecn: false,
        hdr_len: 20 + l4_len as u16,
        gso_size: size as u16,
        csum_start: 20,
        csum_offset: sum_at,
    };
    let length = 20 + l4_len + count * size;
    let mut packet = vec![0x45, 0, 0, 0, 0, 1, 0x40, 0, 64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
    packet[2..4].copy_from_slice(&(length as u16).to_be_bytes());
    packet.resize(20 + l4_len, 0);
    packet[20..24].copy_from_slice(&[0, 7, 0, 9]);
    if protocol == protocol::TCP {
        packet[32..34].copy_from_slice(&[0x50, 0x10]);
    } else {
        packet[24..26].copy_from_slice(&((8 + count * size) as u16).to_be_bytes());
    }
    packet.extend((0..count).flat_map(|n| vec![n as u8; size]));
    [&header.to_bytes()[..], &packet].concat()
}

fn refusal() -> io::Error {
    io::Error::from_raw_os_error(22)
}

#[test]
fn what_is_refused_is_written_in_its_segments_and_its_kind_is_not_made_again() {
    let mut refused = Refused::new(Offload::Auto, Gro::ALL);
    for (protocol, less) in
        [(protocol::TCP, Gro { tcp: flatlan_packet::Offload::Off, ..Gro::ALL }), (protocol::UDP, Gro::NONE)]
    {
        assert_eq!(refused.poll_gro(), None);
        let mut written = Vec::new();
        let done = refused.handle(&frame(protocol, 5, 1000), refusal(), |frame| {
            written.push(frame.to_vec());
            Ok(())
        });
        assert_eq!(done, Ok(()));
        assert_eq!(written.len(), 5);
        for (n, frame) in written.iter().enumerate() {
            assert_eq!(frame[..VNET_LEN], [0; VNET_LEN], "nothing is left to the kernel");
            let view = IpView::parse(&frame[VNET_LEN..]).unwrap();
            assert_eq!((view.len, view.protocol), (frame.len() - VNET_LEN, protocol));
            assert!(frame[frame.len() - 1000..].iter().all(|byte| *byte == n as u8));
        }
        assert_eq!(refused.poll_gro(), Some(less));
    }
    assert_eq!((refused.count(), refused.poll_gro()), (2, None));
}

#[test]
fn what_is_to_be_on_stays_on_and_each_refusal_is_counted() {
    let mut refused = Refused::new(Offload::On, Gro::ALL);
    for times in 1..4 {
        let mut written = 0;
        let done = refused.handle(&frame(protocol::UDP, 3, 100), refusal(), |_| {
            written += 1;
            Ok(())
        });
        assert_eq!((done, written), (Ok(()), 3));
        assert_eq!((refused.count(), refused.poll_gro()), (times, None));
    }
}

#[test]
fn a_segment_that_is_refused_too_is_a_loss_and_the_others_are_written() {
    let mut refused = Refused::new(Offload::Auto, Gro::ALL);
    let mut tried = 0;
    let done = refused.handle(&frame(protocol::UDP, 3, 100), refusal(), |_| {
        tried += 1;
        if tried == 2 { Err(refusal()) } else { Ok(()) }
    });
    assert_eq!((done, tried), (Err(DropReason::Backpressure), 3));
}

#[test]
fn a_single_packet_that_the_kernel_cannot_read_changes_nothing() {
    let mut refused = Refused::new(Offload::Auto, Gro::ALL);
    for frame in [vec![], vec![0; 5], vec![0; VNET_LEN], vec![0; VNET_LEN + 60]] {
        let done = refused.handle(&frame, refusal(), |_| panic!("nothing to write"));
        assert_eq!(done, Err(DropReason::Malformed));
    }
    assert_eq!((refused.count(), refused.poll_gro()), (0, None));
}
