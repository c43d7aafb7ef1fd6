//! Datagrams one way, each with its number: what a loss is, one by one. An arrival counts as the answer.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::{POLL, Shared, come_ahead};
use crate::error::LabError;
use crate::namespace::Namespace;

pub(super) fn start(
    from: &Namespace,
    to: &Namespace,
    address: IpAddr,
    interval: Duration,
    shared: &Arc<Shared>,
) -> Result<Vec<JoinHandle<()>>, LabError> {
    let bound = to.run(move || -> io::Result<_> {
        let socket = UdpSocket::bind(SocketAddr::new(address, 0))?;
        socket.set_read_timeout(Some(POLL))?;
        let at = socket.local_addr()?;
        Ok((socket, at))
    });
    let (receiver, at) = bound.map_err(LabError::io("listen on", to.name()))?;
    let connected = from.run(move || -> io::Result<_> {
        let any: IpAddr = if at.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
        let socket = UdpSocket::bind(SocketAddr::new(any, 0))?;
        socket.connect(at)?;
        Ok(socket)
    });
    let sender = connected.map_err(LabError::io("send datagrams from", from.name()))?;
    let (asking, answering) = (Arc::clone(shared), Arc::clone(shared));
    Ok(vec![
        from.thread("lab datagrams", move || send(&sender, interval, &asking))?,
        to.thread("lab arrivals", move || receive(&receiver, &answering))?,
    ])
}

fn send(socket: &UdpSocket, interval: Duration, shared: &Shared) {
    come_ahead();
    let mut next = Instant::now();
    while let Some(number) = shared.ask() {
        let mut datagram = [0; LENGTH];
        let (head, _) = datagram.split_at_mut(NUMBER);
        head.copy_from_slice(&number.to_be_bytes());
        // Where there is no way at the moment, the datagram is a lost one.
        let _ = socket.send(&datagram);
        shared.pace(&mut next, interval);
    }
}

fn receive(socket: &UdpSocket, shared: &Shared) {
    come_ahead();
    let mut datagram = [0; LENGTH];
    let mut came: Vec<bool> = Vec::new();
    while !shared.stopped() {
        let Ok(length) = socket.recv(&mut datagram) else { continue };
        let at = Instant::now();
        let Some(number) = datagram.first_chunk::<NUMBER>().filter(|_| length == LENGTH) else { continue };
        let number = u32::from_be_bytes(*number);
        // Numbers count up from 0, one a datagram: this grows as fast as they come.
        let place = number as usize;
        if came.len() <= place {
            came.resize(place + 1, false);
        }
        // A duplicate is no second arrival.
        if let Some(before) = came.get_mut(place).filter(|before| !**before) {
            *before = true;
            shared.answer(number, at);
        }
    }
}

/// As much as a voice call's packets hold.
const LENGTH: usize = 160;
const NUMBER: usize = 4;
