//! A wire of bad quality: delay, jitter, loss, bursts, duplication, reordering, damage and a rate, without any module of
//! the kernel. What it does to each packet is the model of [`flatlan_link`], which the simulation uses too.
//!
//! ```text
//!   party ── core ──▶ TUN ──▶ this program ──▶ TUN ── core ──▶ whoever it was for
//! ```
//!
//! The core routes all that a party sends into a TUN device, one packet at a time (super-packets are cut on the way
//! into it); a thread reads it, `wire` decides, and what goes on is written back into the device, which the core then
//! routes as usual. What is held back waits in a second thread. Every decision comes of the seed, so the same packets
//! meet the same fate; every packet is counted. What it does not do: touch what a party receives.

mod wire;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use flatlan_link::Quality;
use tun_tap::{Iface, Mode};
pub use wire::Fates;
use wire::{Verdict, Wire};

use crate::error::LabError;
use crate::fault::emulated;
use crate::lab::Lab;
use crate::namespace::Namespace;

/// A wire of bad quality. It is a good one again when this is dropped.
#[derive(Debug)]
pub struct Emulator {
    core: Namespace,
    device: String,
    rules: Vec<Vec<String>>,
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Lab {
    /// Makes what a hub, a site, a bare machine or the admin's machine sends meet a wire of this quality, from here on.
    ///
    /// # Errors
    /// [`LabError::UnknownName`], or [`LabError::Io`] where there can be no TUN device.
    pub fn emulate(&self, party: &str, quality: Quality, seed: u64) -> Result<Emulator, LabError> {
        let wires = self.wires.parties.get(party).ok_or_else(|| LabError::UnknownName(party.to_owned()))?;
        Emulator::start(&self.core, party, wires, Wire::new(quality, seed))
    }
}

impl Emulator {
    fn start(core: &Namespace, party: &str, ends: &[String], wire: Wire) -> Result<Self, LabError> {
        let device = emulated(party);
        let name = device.clone();
        let tun = core.run(move || Iface::without_packet_info(&name, Mode::Tun));
        let tun = Arc::new(tun.map_err(LabError::io("open a TUN device in", core.name()))?);
        core.set_up(&device)?;
        // a queue that does not drop where this program is late by a moment
        core.exec("ip", ["link", "set", &device, "txqueuelen", QUEUE])?;
        // the number of the device is that of its table of routes
        let table = core.exec("cat", [format!("/sys/class/net/{device}/ifindex")])?.trim().to_owned();
        let table = (TABLES + table.parse::<u32>().unwrap_or(0)).to_string();
        let shared = Arc::new(Shared { wire: Mutex::new(wire), changed: Condvar::new(), stop: AtomicBool::new(false) });
        let mut emulator = Self { core: core.clone(), device, rules: Vec::new(), shared, threads: Vec::new() };
        let (reader, writer) = (Arc::clone(&emulator.shared), Arc::clone(&emulator.shared));
        let held = Arc::clone(&tun);
        let threads = [
            std::thread::Builder::new().name(emulator.device.clone()).spawn(move || reader.read(&tun)),
            std::thread::Builder::new().name(emulator.device.clone()).spawn(move || writer.write(&held)),
        ];
        for thread in threads {
            emulator.threads.push(thread.map_err(LabError::io("start a thread for", &emulator.device))?);
        }
        for family in ["-4", "-6"] {
            let route = ["route", "add", "default", "dev", &emulator.device, "table", &table];
            core.exec("ip", [family].into_iter().chain(route))?;
            for end in ends {
                let rule = [family, "rule", "add", "iif", end, "lookup", &table].map(str::to_owned);
                core.exec("ip", &rule)?;
                emulator.rules.push(rule.into());
            }
        }
        Ok(emulator)
    }

    /// What became of the packets so far.
    #[must_use]
    pub fn fates(&self) -> Fates {
        self.shared.lock().fates()
    }

    /// How many packets the device dropped because this program was late: nobody's decision.
    ///
    /// # Errors
    /// [`LabError::Unexpected`] where the kernel does not say it.
    pub fn overrun(&self) -> Result<u64, LabError> {
        let file = format!("/sys/class/net/{}/statistics/tx_dropped", self.device);
        let answer = self.core.exec("cat", [&file])?;
        answer.trim().parse().map_err(|_| LabError::Unexpected { command: format!("cat {file}"), answer })
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        for mut rule in self.rules.drain(..) {
            rule.splice(2..3, ["del".to_owned()]);
            let _ = self.core.exec("ip", rule);
        }
        self.shared.stop.store(true, Ordering::Relaxed);
        self.shared.changed.notify_all();
        // whoever reads from a device that is deleted is told
        let deleted = self.core.exec("ip", ["link", "del", &self.device]);
        for thread in self.threads.drain(..).filter(|_| deleted.is_ok()) {
            let _ = thread.join();
        }
    }
}

#[derive(Debug)]
struct Shared {
    wire: Mutex<Wire>,
    changed: Condvar,
    stop: AtomicBool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Wire> {
        self.wire.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn read(&self, tun: &Iface) {
        let mut packet = [0; LONGEST];
        while !self.stopped() {
            let Ok(length) = tun.recv(&mut packet) else { return };
            let Some(packet) = packet.get_mut(..length) else { return };
            match self.lock().handle_packet(packet, Instant::now()) {
                Verdict::Lost => {}
                Verdict::Pass => self.send(tun, packet),
                Verdict::PassTwice => {
                    self.send(tun, packet);
                    self.send(tun, packet);
                }
                Verdict::Wait => self.changed.notify_all(),
            }
        }
    }

    fn write(&self, tun: &Iface) {
        let mut wire = self.lock();
        while !self.stopped() {
            let now = Instant::now();
            if let Some(packet) = wire.poll_packet(now) {
                drop(wire);
                self.send(tun, &packet);
                wire = self.lock();
                continue;
            }
            wire = match wire.poll_timeout() {
                None => self.changed.wait(wire).unwrap_or_else(PoisonError::into_inner),
                Some(due) => {
                    let left = due.saturating_duration_since(now);
                    self.changed.wait_timeout(wire, left).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }

    fn send(&self, tun: &Iface, packet: &[u8]) {
        if tun.send(packet).is_err() {
            self.lock().note_refused();
        }
    }
}

/// No packet of the lab's wires is longer.
const LONGEST: usize = 65_536;
/// Packets that the device holds for the reader.
const QUEUE: &str = "20000";
/// Tables of routes from here on are the emulators'.
const TABLES: u32 = 7000;
