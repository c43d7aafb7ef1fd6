//! Nothing outlives a lab, however its process ends.
//!
//! * Dropped, or dropped by a panic: the lab takes itself down.
//! * SIGINT, SIGTERM, SIGHUP: the thread here takes every lab of the process down, then ends the process with the code
//!   that a shell gives for the signal.
//! * Killed, aborted: the kernel kills the programs (parent-death signal), and the next lab to start removes the names
//!   that are left.
//!
//! The gate keeps new programs and namespaces from appearing while labs are being taken down.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, Once, PoisonError, RwLock, RwLockReadGuard};

use tokio::signal::unix::{SignalKind, signal};

use crate::run_dir;

static GATE: RwLock<()> = RwLock::new(());
static LABS: Mutex<BTreeMap<String, Option<PathBuf>>> = Mutex::new(BTreeMap::new());
static ENDING: AtomicBool = AtomicBool::new(false);
static LISTENING: Once = Once::new();

/// Held while a program or namespace is made. Never given while the process is going down.
pub(crate) fn enter() -> RwLockReadGuard<'static, ()> {
    GATE.read().unwrap_or_else(PoisonError::into_inner)
}

/// Does not return while the process is going down: whoever sees programs die then should not take it for news.
pub(crate) fn stand_aside() {
    while ENDING.load(Ordering::Acquire) {
        std::thread::park();
    }
}

/// A lab that must not outlive the process.
pub(crate) fn register(prefix: &str, folder: &Path, keep: bool) {
    LISTENING.call_once(listen);
    let folder = (!keep).then(|| folder.to_path_buf());
    LABS.lock().unwrap_or_else(PoisonError::into_inner).insert(prefix.to_owned(), folder);
}

/// A lab that is gone.
pub(crate) fn forget(prefix: &str) {
    LABS.lock().unwrap_or_else(PoisonError::into_inner).remove(prefix);
}

fn listen() {
    let spawned = std::thread::Builder::new().name("lab reaper".to_owned()).spawn(|| {
        let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_io().build() else { return };
        let code = runtime.block_on(async {
            let mut interrupt = signal(SignalKind::interrupt()).ok()?;
            let mut terminate = signal(SignalKind::terminate()).ok()?;
            let mut hangup = signal(SignalKind::hangup()).ok()?;
            tokio::select! {
                _ = interrupt.recv() => Some(130),
                _ = terminate.recv() => Some(143),
                _ = hangup.recv() => Some(129),
            }
        });
        if let Some(code) = code {
            if take_down() > 0 {
                let _ = writeln!(std::io::stderr(), "\ninterrupted: the lab is removed");
            }
            std::process::exit(code);
        }
    });
    if let Err(error) = spawned {
        tracing::warn!(%error, "no thread to take labs down on a signal");
    }
}

/// Returns how many labs there were.
fn take_down() -> usize {
    ENDING.store(true, Ordering::Release);
    let gate = GATE.write().unwrap_or_else(PoisonError::into_inner);
    // Never opened again: the process ends next.
    std::mem::forget(gate);
    let labs = std::mem::take(&mut *LABS.lock().unwrap_or_else(PoisonError::into_inner));
    let count = labs.len();
    for (prefix, folder) in labs {
        run_dir::wipe(&prefix);
        if let Some(folder) = folder {
            let _ = std::fs::remove_dir_all(folder);
        }
    }
    count
}
