//! IP, TCP, UDP and ICMP views, super-packets, segmentation and coalescing.
//!
//! A system call for each packet is what makes a user-space tunnel slow. The kernel hands the TUN one
//! *super-packet* of up to 64 KiB, and takes one back; this crate cuts the first into packets that fit the
//! path ([`Segments`]) and joins what arrived into the second ([`Coalescer`]), bit for bit as Linux would.
//!
//! Outbound: [`SuperPacket::parse`], [`IpView::parse`] on its packet (the routing decision needs it), then
//! [`Segments`] (into another buffer) or [`SegmentsMut`] (in place), each packet sealed as it is made.
//! Inbound: [`Coalescer::slot`], open the datagram there, check it, [`Coalescer::commit`]; at the end of the
//! batch [`Coalescer::flush`].
//!
//! Nothing here allocates per packet, except an ICMP error. Nothing here knows peers, keys, paths or
//! policy, reassembles fragments, or does IO. Every decoder takes any bytes and fails closed.

#![cfg_attr(not(test), warn(clippy::disallowed_methods))]

mod bytes;
pub mod checksum;
mod coalesce;
mod ecn;
mod fragment;
mod icmp;
mod mss;
mod segment;
mod view;
mod vnet;

#[cfg(test)]
mod sample;

pub use coalesce::{Coalescer, Gro, Offload};
pub use ecn::{Marked, merge_ecn};
pub use fragment::Fragments;
pub use icmp::icmp_too_big;
pub use mss::{mss_clamp, mss_for};
pub use segment::{Segments, SegmentsMut};
pub use view::{Fragment, IpVersion, IpView, Malformed, flow_hash, protocol};
pub use vnet::{GsoType, SuperPacket, VNET_LEN, VnetHeader};

/// The longest packet that an IP length field can tell.
pub const MAX_PACKET: usize = 65_535;
