//! Super-packets that the TUN does not take.
//!
//! Some kernels refuse correct ones. What was refused is written in its segments at once, so that nothing is
//! lost; its kind is not made again, unless it is to be on. A packet that is no super-packet and is refused is
//! none of this module's business: the kernel cannot read it.

use std::io;

use flatlan_datapath::DropReason;
use flatlan_os::{Offload, Why};
use flatlan_packet::{Gro, GsoType, Segments, SuperPacket, VNET_LEN, VnetHeader};

/// What is known of the TUN's refusals, and the buffer for segments.
#[derive(Debug, Clone)]
pub(crate) struct Refused {
    wanted: Offload,
    /// What is made.
    gro: Gro,
    /// What is to be made from now on, where that changed.
    less: Option<Gro>,
    count: u64,
    /// One segment behind a header; made when it is first needed.
    single: Box<[u8]>,
}

impl Refused {
    /// Nothing was refused yet; super-packets of `gro` are made.
    pub(crate) fn new(wanted: Offload, gro: Gro) -> Self {
        Self { wanted, gro, less: None, count: 0, single: Box::default() }
    }

    /// The device refused this frame for this reason: its segments one by one.
    pub(crate) fn handle(
        &mut self,
        frame: &[u8],
        why: io::Error,
        mut send: impl FnMut(&[u8]) -> io::Result<()>,
    ) -> Result<(), DropReason> {
        let (header, packet) = frame.split_at_checked(VNET_LEN).ok_or(DropReason::Malformed)?;
        let header = VnetHeader::parse(header).map_err(|_| DropReason::Malformed)?;
        if matches!(header.gso_type, GsoType::None | GsoType::UdpFragments) {
            return Err(DropReason::Malformed);
        }
        self.give_up(header.gso_type, why);
        let mut segments = Segments::new(SuperPacket { header, packet }, flatlan_packet::MAX_PACKET)
            .map_err(|_| DropReason::Malformed)?;
        if self.single.is_empty() {
            self.single = vec![0; VNET_LEN + flatlan_packet::MAX_PACKET].into_boxed_slice();
        }
        let mut done = Ok(());
        while let Some(len) = self.single.get_mut(VNET_LEN..).and_then(|packet| segments.write_next(packet)) {
            let segment = self.single.get(..VNET_LEN + len).unwrap_or_default();
            if send(segment).is_err() {
                done = Err(DropReason::Backpressure);
            }
        }
        done
    }

    fn give_up(&mut self, kind: GsoType, why: io::Error) {
        let why = Why(why);
        self.count += 1;
        if self.wanted == Offload::On {
            if self.count == 1 {
                tracing::error!(reason = %why, "the TUN device refuses super-packets, which are to be on: writing single packets");
            }
            return;
        }
        let off = flatlan_packet::Offload::Off;
        let less = match kind {
            GsoType::None | GsoType::UdpFragments => self.gro,
            GsoType::TcpV4 | GsoType::TcpV6 => Gro { tcp: off, ..self.gro },
            GsoType::Udp => Gro { udp: off, ..self.gro },
        };
        if less != self.gro {
            self.gro = less;
            self.less = Some(less);
            tracing::warn!(reason = %why, "the TUN device refuses super-packets of a kind: writing single packets");
        }
    }

    /// What is to be made from now on; told once after each change.
    pub(crate) fn poll_gro(&mut self) -> Option<Gro> {
        self.less.take()
    }

    /// How many super-packets were refused.
    pub(crate) fn count(&self) -> u64 {
        self.count
    }
}

#[cfg(test)]
mod tests;
