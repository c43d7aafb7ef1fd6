//! Everything that crosses a machine's interfaces, as a pcap file, and the search for a text in it.
//!
//! A packet socket of the lab's own, not tcpdump: that insists on changing its user, which the only user of a user
//! namespace cannot. Every IP packet is taken whole, in and out, on every interface and without link headers
//! (`LINKTYPE_RAW`), so a batch of the kernel's is one packet of up to 64 KiB.

use std::fs::File;
use std::io::{self, BufWriter, Write as _};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use rustix::net::sockopt::{
    Timeout, set_socket_recv_buffer_size, set_socket_recv_buffer_size_force, set_socket_timeout,
};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, eth, recv, socket_with};

use crate::error::LabError;
use crate::lab::Lab;
use crate::namespace::Namespace;

/// A running capture. It stops when it is dropped.
#[derive(Debug)]
pub struct Capture {
    file: PathBuf,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<io::Result<()>>>,
}

impl Capture {
    /// Starts to capture on a machine; whatever crosses it after this returns is taken.
    ///
    /// # Errors
    /// [`LabError::Io`] where a packet socket is refused or the file cannot be written.
    pub fn start(lab: &Lab, machine: &Namespace) -> Result<Self, LabError> {
        let path = lab.folder().join("log").join(format!("{}.pcap", lab.short_name(machine)));
        let file = File::create(&path).map_err(LabError::io("create", &path))?;
        let socket = machine.run(open).map_err(LabError::io("capture on", machine.name()))?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = machine.thread("lab capture", move || write(&socket, file, &stopped))?;
        Ok(Self { file: path, stop, thread: Some(thread) })
    }

    /// Stops and returns the pcap file.
    ///
    /// # Errors
    /// [`LabError::Io`] where it could not be written.
    pub fn stop(mut self) -> Result<PathBuf, LabError> {
        self.end().map_err(LabError::io("write", &self.file))?;
        Ok(self.file.clone())
    }

    fn end(&mut self) -> io::Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        let written = self.thread.take().map(JoinHandle::join);
        written.unwrap_or(Ok(Ok(()))).unwrap_or_else(|_| Err(io::ErrorKind::Other.into()))
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        let _ = self.end();
    }
}

/// How often these bytes occur in a file.
///
/// # Errors
/// [`LabError::Io`] where it cannot be read.
pub fn occurrences(file: &Path, bytes: &[u8]) -> Result<usize, LabError> {
    let content = std::fs::read(file).map_err(LabError::io("read", file))?;
    let Some(first) = bytes.first() else { return Ok(0) };
    let starts = content.iter().enumerate().filter(|(_, byte)| *byte == first);
    Ok(starts.filter(|(at, _)| content.get(*at..).is_some_and(|rest| rest.starts_with(bytes))).count())
}

fn open() -> io::Result<OwnedFd> {
    let socket = socket_with(AddressFamily::PACKET, SocketType::DGRAM, SocketFlags::CLOEXEC, Some(eth::ALL))?;
    // The larger needs a right that a user namespace does not give.
    if set_socket_recv_buffer_size_force(&socket, QUEUE).is_err() {
        set_socket_recv_buffer_size(&socket, QUEUE)?;
    }
    set_socket_timeout(&socket, Timeout::Recv, Some(POLL))?;
    Ok(socket)
}

fn write(socket: &OwnedFd, file: File, stop: &AtomicBool) -> io::Result<()> {
    let began = (SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default(), Instant::now());
    let mut file = BufWriter::with_capacity(1 << 20, file);
    for word in [0xa1b2_c3d4, 0x0004_0002, 0, 0, LONGEST, LINKTYPE_RAW] {
        file.write_all(&word.to_le_bytes())?;
    }
    let mut packet = vec![0; LONGEST as usize];
    loop {
        // Once told to stop, what waits is written and nothing is waited for: traffic need not pause for it.
        let stopping = stop.load(Ordering::Relaxed);
        let flags = if stopping { RecvFlags::DONTWAIT } else { RecvFlags::empty() };
        match recv(socket, &mut packet[..], flags) {
            Ok((length, _)) => {
                let at = began.0 + began.1.elapsed();
                let length32 = u32::try_from(length).unwrap_or(LONGEST);
                // The format has 32 bits for the seconds; it ends in 2106.
                let seconds = u32::try_from(at.as_secs()).unwrap_or(u32::MAX);
                for word in [seconds, at.subsec_micros(), length32, length32] {
                    file.write_all(&word.to_le_bytes())?;
                }
                file.write_all(packet.get(..length).unwrap_or_default())?;
            }
            // Nothing waits any more: whatever came before the stop is in the file.
            Err(_) if stopping => return file.flush(),
            Err(_) => {}
        }
    }
}

/// Raw IP, version told by its first four bits.
const LINKTYPE_RAW: u32 = 101;
/// Longer than any packet, batches included.
const LONGEST: u32 = 256 * 1024;
/// How much may wait to be written.
const QUEUE: usize = 64 << 20;
/// How long the writer waits for a packet before it looks whether it should stop.
const POLL: Duration = Duration::from_millis(20);
