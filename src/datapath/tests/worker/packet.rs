//! Packets to send through the workers.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test's own packets")]

use std::net::IpAddr;

use flatlan_packet::{GsoType, VNET_LEN, VnetHeader, checksum, protocol};

pub(crate) fn v4(source: [u8; 4], destination: [u8; 4], protocol: u8, payload: &[u8]) -> Vec<u8> {
    let len = (20 + payload.len()) as u16;
    let mut packet = vec![0x45, 0, 0, 0, 0, 1, 0, 0, 64, protocol, 0, 0];
    packet[2..4].copy_from_slice(&len.to_be_bytes());
    packet.extend_from_slice(&source);
    packet.extend_from_slice(&destination);
    fix_header(&mut packet);
    packet.extend_from_slice(payload);
    packet
}

/// The checksum of an IPv4 header.
pub(crate) fn fix_header(packet: &mut [u8]) {
    packet[10..12].fill(0);
    let sum = checksum::finish(checksum::sum(&packet[..20]).into());
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
}

/// A UDP packet of `len` payload bytes; it may be fragmented.
pub(crate) fn udp(source: [u8; 4], destination: [u8; 4], len: usize) -> Vec<u8> {
    let mut payload = vec![0x12, 0x34, 0x56, 0x78, 0, 0, 0, 0];
    payload[4..6].copy_from_slice(&((8 + len) as u16).to_be_bytes());
    payload.extend((0..len).map(|n| n as u8));
    let sum = u32::from(checksum::sum(&payload))
        + checksum::pseudo(IpAddr::from(source), IpAddr::from(destination), protocol::UDP, payload.len());
    payload[6..8].copy_from_slice(&checksum::finish(sum).to_be_bytes());
    v4(source, destination, protocol::UDP, &payload)
}

/// The same packet of another flow.
pub(crate) fn from_port(mut packet: Vec<u8>, port: u16) -> Vec<u8> {
    packet[20..22].copy_from_slice(&port.to_be_bytes());
    // no checksum (RFC 768)
    packet[26..28].fill(0);
    packet
}

/// A UDP packet over IPv6, from fd00::FROM to fd00::TO; its checksum is nobody's affair here.
pub(crate) fn udp_v6(from: u8, to: u8, len: usize) -> Vec<u8> {
    let total = (8 + len) as u16;
    let mut packet = vec![0x60, 0, 0, 0, 0, 0, protocol::UDP, 64];
    packet[4..6].copy_from_slice(&total.to_be_bytes());
    for last in [from, to] {
        packet.extend_from_slice(&[0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]);
    }
    packet.extend_from_slice(&[0x12, 0x34, 0x56, 0x78, 0, 0, 1, 1]);
    packet[44..46].copy_from_slice(&total.to_be_bytes());
    packet.resize(48 + len, 7);
    packet
}

pub(crate) fn dont_fragment(mut packet: Vec<u8>) -> Vec<u8> {
    packet[6] |= 0x40;
    fix_header(&mut packet);
    packet
}

pub(crate) fn with_class(mut packet: Vec<u8>, traffic_class: u8) -> Vec<u8> {
    packet[1] = traffic_class;
    fix_header(&mut packet);
    packet
}

/// A TCP packet with these flags and options.
pub(crate) fn tcp(source: [u8; 4], destination: [u8; 4], flags: u8, options: &[u8], data: &[u8]) -> Vec<u8> {
    let mut segment = vec![0x12, 0x34, 0, 80, 0, 0, 0, 1, 0, 0, 0, 1, 0, flags, 1, 0, 0, 0, 0, 0];
    segment[12] = (((20 + options.len()) / 4) << 4) as u8;
    segment.extend_from_slice(options);
    segment.extend_from_slice(data);
    let sum = u32::from(checksum::sum(&segment))
        + checksum::pseudo(IpAddr::from(source), IpAddr::from(destination), protocol::TCP, segment.len());
    segment[16..18].copy_from_slice(&checksum::finish(sum).to_be_bytes());
    v4(source, destination, protocol::TCP, &segment)
}

/// A TCP super-packet of `len` payload bytes in pieces of `size`, as a kernel hands it out.
pub(crate) fn super_packet(source: [u8; 4], destination: [u8; 4], len: usize, size: u16) -> Vec<u8> {
    let data: Vec<u8> = (0..len).map(|n| (n % 251) as u8).collect();
    let packet = tcp(source, destination, 0x18, &[], &data);
    let header = VnetHeader {
        flags: VnetHeader::NEEDS_CSUM,
        gso_type: GsoType::TcpV4,
        hdr_len: 40,
        gso_size: size,
        csum_start: 20,
        csum_offset: 16,
        ..VnetHeader::default()
    };
    let mut frame = header.to_bytes().to_vec();
    assert_eq!(frame.len(), VNET_LEN);
    frame.extend_from_slice(&packet);
    frame
}

/// Whether IPv4 header and TCP or UDP checksum are right.
pub(crate) fn is_sound(packet: &[u8]) -> bool {
    let at = |n: usize| IpAddr::from(<[u8; 4]>::try_from(&packet[n..n + 4]).unwrap());
    let sum = u32::from(checksum::sum(&packet[20..])) + checksum::pseudo(at(12), at(16), packet[9], packet.len() - 20);
    checksum::sum(&packet[..20]) == 0xffff && checksum::finish(sum) == 0
}
