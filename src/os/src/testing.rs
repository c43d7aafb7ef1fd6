//! Places to test in: an empty network namespace, a user without privileges, a small disk.
#![expect(unsafe_code, reason = "unshare(2) on a thread that ends with the test")]

use std::{future::Future, path::Path, thread};

use ipnetwork::IpNetwork;
use rustix::{
    mount::{MountFlags, MountPropagationFlags, mount, mount_change},
    process::{Gid, Uid},
    thread::{UnshareFlags, set_thread_res_gid, set_thread_res_uid, unshare_unsafe},
};

use crate::{
    Offload,
    netns::NetNs,
    route::{self, Netlink},
    tun::{Queues, Tun, TunBackend, TunConfig},
};

/// A plain TUN device `os0` with these addresses.
pub(crate) fn plain_tun(addresses: Vec<IpNetwork>) -> Tun {
    let config = TunConfig {
        name: "os0".into(),
        mtu: 1400,
        backend: TunBackend::Plain,
        offload: Offload::Off,
        queues: Queues::One,
        addresses,
    };
    Tun::create(&config).unwrap()
}

/// Runs `f` in an empty network namespace with loopback up.
pub(crate) fn in_empty_netns<T: Send>(f: impl FnOnce() -> T + Send) -> T {
    let ns = NetNs::fresh().expect("tests run as root");
    ns.run(|| {
        route::block_on(async {
            let netlink = Netlink::open().unwrap();
            let lo = netlink.link("lo").await.unwrap();
            netlink.set_up(lo).await.unwrap();
        })
        .unwrap();
        f()
    })
    .unwrap()
}

/// Runs an asynchronous test in an empty network namespace with loopback up.
pub(crate) fn async_in_empty_netns<F: Future<Output = ()>>(f: impl FnOnce() -> F + Send) {
    in_empty_netns(|| runtime().block_on(f()));
}

pub(crate) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// Runs `f` as a user who may nothing.
pub(crate) fn as_nobody<T: Send>(f: impl FnOnce() -> T + Send) -> T {
    on_thread(|| {
        // Only this thread changes: the raw calls do not tell the others.
        let (uid, gid) = (Uid::from_raw(65534), Gid::from_raw(65534));
        set_thread_res_gid(gid, gid, gid).expect("tests run as root");
        set_thread_res_uid(uid, uid, uid).expect("tests run as root");
        f()
    })
}

/// Runs `f` with a disk of this many bytes at `path`.
pub(crate) fn with_small_disk<T: Send>(
    path: &Path,
    bytes: usize,
    flags: MountFlags,
    f: impl FnOnce() -> T + Send,
) -> T {
    on_thread(|| {
        // SAFETY: no descriptor table is shared differently; mounts and working directory are this thread's.
        unsafe { unshare_unsafe(UnshareFlags::NEWNS | UnshareFlags::FS) }.expect("tests run as root");
        mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
        let options = std::ffi::CString::new(format!("size={bytes},mode=700")).unwrap();
        mount("tmpfs", path, "tmpfs", flags, options.as_c_str()).unwrap();
        f()
    })
}

fn on_thread<T: Send>(f: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| match scope.spawn(f).join() {
        Ok(value) => value,
        Err(panicked) => std::panic::resume_unwind(panicked),
    })
}
