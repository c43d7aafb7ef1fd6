//! Packets for tests, made and checked field by field with the plainest code.

use crate::{GsoType, IpVersion, VnetHeader, protocol};

/// The headers of a packet to be made.
#[derive(Debug, Clone)]
pub(crate) struct Sample {
    pub(crate) version: IpVersion,
    pub(crate) protocol: u8,
    pub(crate) traffic_class: u8,
    pub(crate) hop_limit: u8,
    pub(crate) id: u16,
    pub(crate) source_port: u16,
    pub(crate) sequence: u32,
    pub(crate) ack: u32,
    pub(crate) flags: u8,
    pub(crate) window: u16,
    /// TCP options, padded to four bytes by the test.
    pub(crate) options: Vec<u8>,
}

impl Sample {
    pub(crate) fn tcp(version: IpVersion) -> Self {
        Self {
            version,
            protocol: protocol::TCP,
            traffic_class: 0,
            hop_limit: 64,
            id: 0x1234,
            source_port: 40_000,
            sequence: 0x0102_0304,
            ack: 0x0506_0708,
            flags: 0x10,
            window: 501,
            options: Vec::new(),
        }
    }

    pub(crate) fn udp(version: IpVersion) -> Self {
        Self { protocol: protocol::UDP, ..Self::tcp(version) }
    }

    /// Bytes of all headers.
    pub(crate) fn headers(&self) -> usize {
        self.l4() + if self.protocol == protocol::TCP { 20 + self.options.len() } else { 8 }
    }

    pub(crate) fn l4(&self) -> usize {
        if self.version == IpVersion::V4 { 20 } else { 40 }
    }

    /// The complete packet.
    pub(crate) fn packet(&self, payload: &[u8]) -> Vec<u8> {
        let mut packet = self.unsummed(payload);
        let at = self.l4() + self.sum_offset();
        let mut sum = naive_sum(&[&self.pseudo(packet.len()), &packet[self.l4()..]].concat());
        sum = !sum;
        if sum == 0 && self.protocol == protocol::UDP {
            sum = 0xffff;
        }
        packet[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        packet
    }

    /// What a TUN would give: the pseudo-header's sum instead of the checksum, and segments of `size`.
    pub(crate) fn super_packet(&self, payload: &[u8], size: u16) -> (VnetHeader, Vec<u8>) {
        let mut packet = self.unsummed(payload);
        let at = self.l4() + self.sum_offset();
        let sum = naive_sum(&self.pseudo(packet.len()));
        packet[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        let header = VnetHeader {
            flags: VnetHeader::NEEDS_CSUM,
            gso_type: match (size, self.protocol, self.version) {
                (0, ..) => GsoType::None,
                (_, protocol::UDP, _) => GsoType::Udp,
                (_, _, IpVersion::V4) => GsoType::TcpV4,
                (_, _, IpVersion::V6) => GsoType::TcpV6,
            },
            ecn: false,
            hdr_len: self.headers() as u16,
            gso_size: size,
            csum_start: self.l4() as u16,
            csum_offset: self.sum_offset() as u16,
        };
        (header, packet)
    }

    /// The packets that `payload` takes in pieces of `size`, each made for itself.
    pub(crate) fn pieces(&self, payload: &[u8], size: usize) -> Vec<Vec<u8>> {
        let count = payload.len().div_ceil(size);
        let piece = |(index, payload): (usize, &[u8])| {
            let mut sample = self.clone();
            sample.id = self.id.wrapping_add(index as u16);
            sample.sequence = self.sequence.wrapping_add((index * size) as u32);
            if index > 0 {
                sample.flags &= !0x80;
            }
            if index + 1 < count {
                sample.flags &= !0x09;
            }
            sample.packet(payload)
        };
        payload.chunks(size).enumerate().map(piece).collect()
    }

    fn sum_offset(&self) -> usize {
        if self.protocol == protocol::TCP { 16 } else { 6 }
    }

    fn addresses(&self) -> Vec<u8> {
        match self.version {
            IpVersion::V4 => vec![10, 1, 2, 3, 10, 200, 201, 202],
            IpVersion::V6 => (0..32).map(|i| if i % 16 == 0 { 0xfd } else { i * 7 }).collect(),
        }
    }

    fn pseudo(&self, len: usize) -> Vec<u8> {
        let l4_len = (len - self.l4()) as u32;
        [&self.addresses()[..], &l4_len.to_be_bytes(), &[0, 0, 0, self.protocol]].concat()
    }

    fn unsummed(&self, payload: &[u8]) -> Vec<u8> {
        let l4_len = self.headers() - self.l4() + payload.len();
        let mut packet = Vec::new();
        match self.version {
            IpVersion::V4 => {
                packet.extend([0x45, self.traffic_class]);
                packet.extend(((20 + l4_len) as u16).to_be_bytes());
                packet.extend(self.id.to_be_bytes());
                packet.extend([0x40, 0, self.hop_limit, self.protocol, 0, 0]);
                packet.extend(self.addresses());
                let sum = !naive_sum(&packet);
                packet[10..12].copy_from_slice(&sum.to_be_bytes());
            }
            IpVersion::V6 => {
                packet.extend([0x60 | (self.traffic_class >> 4), (self.traffic_class << 4) | 1, 2, 3]);
                packet.extend((l4_len as u16).to_be_bytes());
                packet.extend([self.protocol, self.hop_limit]);
                packet.extend(self.addresses());
            }
        }
        packet.extend(self.source_port.to_be_bytes());
        packet.extend(443_u16.to_be_bytes());
        if self.protocol == protocol::TCP {
            packet.extend(self.sequence.to_be_bytes());
            packet.extend(self.ack.to_be_bytes());
            packet.extend([((20 + self.options.len()) as u8 / 4) << 4, self.flags]);
            packet.extend(self.window.to_be_bytes());
            packet.extend([0, 0, 0, 0]);
            packet.extend(&self.options);
        } else {
            packet.extend((l4_len as u16).to_be_bytes());
            packet.extend([0, 0]);
        }
        packet.extend(payload);
        packet
    }
}

/// Whether every checksum of a whole packet without extension headers is right.
pub(crate) fn is_sound(packet: &[u8]) -> bool {
    let (l4, protocol, addresses) = match packet[0] >> 4 {
        4 => (20, packet[9], &packet[12..20]),
        _ => (40, packet[6], &packet[8..40]),
    };
    let l4_len = ((packet.len() - l4) as u32).to_be_bytes();
    let pseudo = match protocol {
        protocol::ICMP => Vec::new(),
        _ => [addresses, &l4_len, &[0, 0, 0, protocol]].concat(),
    };
    (l4 == 40 || naive_sum(&packet[..20]) == 0xffff) && naive_sum(&[&pseudo, &packet[l4..]].concat()) == 0xffff
}

fn naive_sum(bytes: &[u8]) -> u16 {
    let mut total = 0_u32;
    for pair in bytes.chunks(2) {
        total += u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
        total = (total & 0xffff) + (total >> 16);
    }
    total as u16
}
