//! One network namespace, and how to do things inside it.
//!
//! A namespace is held by a thread of its own. The thread leaves the network and the mounts of the process, so that
//! `/proc/sys`,
//! `/sys` and `/etc/hosts` are this namespace's own for it, for every thread it starts and for every program it runs.
//! Nothing else in the process ever changes namespace. The same namespace has a name under `/run/netns`, so `ip netns
//! exec` works (without the private `/etc/hosts`; [`Namespace::enter_command`] has everything).
//!
//! Programs are started by that thread with a parent-death signal: when it ends, for whatever reason, the kernel
//! kills them. Dropping the last handle ends the thread and removes the name.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::mount::{MountFlags, MountPropagationFlags};
use rustix::thread::UnshareFlags;

use crate::error::LabError;
use crate::permission::{Missing, unshare};
use crate::process::{Outcome, Process};
use crate::reaper;
use crate::run_dir::{NETNS_DIR, forget};

/// A network namespace. Clones are handles of the same one.
#[derive(Debug, Clone)]
pub struct Namespace {
    inner: Arc<Inner>,
}

impl Namespace {
    /// Makes a namespace called `name`, with loopback up and the settings of a well-behaved host.
    /// `hosts`, where given, is what its programs read as `/etc/hosts`.
    ///
    /// # Errors
    /// [`LabError::NotPermitted`] where namespaces may not be made; [`LabError::Io`] where the name cannot be.
    pub fn create(name: &str, hosts: Option<&Path>) -> Result<Self, LabError> {
        let _gate = reaper::enter();
        share_netns_dir().map_err(LabError::io("prepare", NETNS_DIR))?;
        let path = Path::new(NETNS_DIR).join(name);
        let hosts = hosts.map(Path::to_path_buf);
        let (jobs, inbox) = mpsc::channel::<Box<dyn FnOnce() + Send>>();
        let (ready, born) = mpsc::channel();
        let thread = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                let entered = leave_the_process(hosts.as_deref());
                let failed = entered.is_err();
                let _ = ready.send(entered);
                if failed {
                    return;
                }
                while let Ok(job) = inbox.recv() {
                    job();
                }
            })
            .map_err(LabError::io("start the thread of", &path))?;
        let thread_id = born.recv().unwrap_or_else(|_| Err(Refusal::Namespaces(io::ErrorKind::Other.into())));
        let thread_id = thread_id.map_err(|refusal| match refusal {
            Refusal::Hosts(source) => LabError::Io { action: "bind a private", path: "/etc/hosts".into(), source },
            Refusal::Namespaces(source) => LabError::NotPermitted(Missing::Namespaces(source)),
            Refusal::Root(source) => LabError::NotPermitted(Missing::Root(source)),
        })?;
        let source = format!("/proc/self/task/{thread_id}/ns/net");
        let net = File::open(&source).map_err(LabError::io("open", &source))?.into();
        File::create_new(&path).map_err(LabError::io("create", &path))?;
        let worker = Mutex::new(Some(Worker { jobs, thread }));
        let inner = Inner { name: name.to_owned(), path: path.clone(), net, thread_id, worker };
        let namespace = Self { inner: Arc::new(inner) };
        rustix::mount::mount_bind(&source, &path).map_err(|errno| LabError::io("mount", &path)(errno.into()))?;
        for (key, value) in SYSCTLS {
            match namespace.sysctl(key, value) {
                // A kernel without IPv6 has nothing to set there.
                Err(LabError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
                other => other?,
            }
        }
        namespace.set_up("lo")?;
        Ok(namespace)
    }

    /// Its name, as `ip netns` shows it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// Runs `job` inside, on the namespace's own thread, and returns what it returns. A panic comes back as a panic.
    /// Jobs run one after the other: use [`Namespace::thread`] for what takes long.
    ///
    /// # Panics
    /// Where `job` does.
    pub fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (reply, answer) = mpsc::channel();
        let job = Box::new(move || {
            let _ = reply.send(catch_unwind(AssertUnwindSafe(job)));
        });
        let guard = self.inner.worker.lock().unwrap_or_else(PoisonError::into_inner);
        let worker = guard.as_ref().expect("the thread lives as long as a handle does");
        worker.jobs.send(job).expect("the thread lives as long as a handle does");
        drop(guard);
        match answer.recv().expect("every job answers") {
            Ok(value) => value,
            Err(panic) => resume_unwind(panic),
        }
    }

    /// Starts a thread inside.
    ///
    /// # Errors
    /// Where the machine has no thread left.
    pub fn thread<T: Send + 'static>(
        &self,
        name: &str,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> Result<JoinHandle<T>, LabError> {
        let name = name.to_owned();
        let path = self.inner.path.clone();
        // A new thread inherits the namespaces of the one that starts it.
        let started = self.run(move || std::thread::Builder::new().name(name).spawn(job));
        started.map_err(LabError::io("start a thread in", path))
    }

    /// A command that dies with this lab. Give it to [`Namespace::output`], [`Namespace::spawn`] or
    /// [`Namespace::start`].
    pub fn command(program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).arg(program);
        command
    }

    /// Runs a command inside to its end; input is empty.
    ///
    /// # Errors
    /// [`LabError::ProgramMissing`], or [`LabError::Timeout`] after a minute.
    pub fn output(&self, command: Command) -> Result<Outcome, LabError> {
        self.output_within(command, COMMAND_LIMIT)
    }

    /// [`Namespace::output`] with another limit.
    ///
    /// # Errors
    /// [`LabError::ProgramMissing`], or [`LabError::Timeout`] after `limit`.
    pub fn output_within(&self, mut command: Command, limit: Duration) -> Result<Outcome, LabError> {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let text = command_text(&command);
        let child = self.start(command)?;
        Outcome::of(child, text, limit)
    }

    /// Runs a program with arguments inside and returns its standard output.
    ///
    /// # Errors
    /// [`LabError::Command`] where it fails, and as [`Namespace::output`].
    pub fn exec<I, A>(&self, program: &str, args: I) -> Result<String, LabError>
    where
        I: IntoIterator<Item = A>,
        A: AsRef<OsStr>,
    {
        let mut command = Self::command(program);
        command.args(args);
        Ok(self.output(command)?.success()?.stdout)
    }

    /// Starts a command inside as a process whose output goes line by line to `log`.
    ///
    /// # Errors
    /// [`LabError::ProgramMissing`], or [`LabError::Io`] where the log cannot be written.
    pub fn spawn(&self, name: &str, command: Command, log: &Path) -> Result<Process, LabError> {
        Process::start(self, name, command, log)
    }

    /// Starts a command inside with whatever input and output it was given.
    ///
    /// # Errors
    /// [`LabError::ProgramMissing`] or [`LabError::Io`].
    pub fn start(&self, mut command: Command) -> Result<Child, LabError> {
        let _gate = reaper::enter();
        let program = program_of(&command).to_owned();
        require([&program])?;
        // Ctrl-C on the terminal is for us: we decide who dies in which order.
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        self.run(move || command.spawn()).map_err(LabError::io("run", PathBuf::from(program)))
    }

    /// A command line prefix that runs a program inside from any other process, with this namespace's own
    /// mounts: `nsenter ...`. The program goes behind it.
    #[must_use]
    pub fn enter_command(&self) -> Vec<String> {
        let task = format!("/proc/{}/task/{}/ns", std::process::id(), self.inner.thread_id);
        let mut words = vec!["nsenter".to_owned()];
        if crate::permission::rootless_owner().is_some() {
            words.extend([format!("--user={task}/user"), "--preserve-credentials".to_owned()]);
        }
        words.extend([format!("--mount={task}/mnt"), format!("--net={task}/net"), "--".to_owned()]);
        words
    }

    /// Sets a sysctl of this namespace: `net/ipv4/ip_forward`.
    ///
    /// # Errors
    /// [`LabError::Io`] where the kernel has none or refuses the value.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<(), LabError> {
        let path = Path::new("/proc/sys").join(key);
        let (file, value) = (path.clone(), value.to_owned());
        self.run(move || fs::write(file, value)).map_err(LabError::io("write", path))
    }

    /// Loads nftables rules: one transaction, all or nothing.
    ///
    /// # Errors
    /// [`LabError::Command`] where nft refuses them.
    pub fn nft(&self, rules: &str) -> Result<(), LabError> {
        let mut command = Self::command("nft");
        command.args(["-f", "-"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let text = command_text(&command);
        let mut child = self.start(command)?;
        if let Some(mut input) = child.stdin.take() {
            io::Write::write_all(&mut input, rules.as_bytes()).map_err(LabError::io("write to", "nft"))?;
        }
        Outcome::of(child, text, COMMAND_LIMIT)?.success().map(drop)
    }

    /// The namespace as a file descriptor, for the kernel's link requests.
    pub(crate) fn net_fd(&self) -> RawFd {
        self.inner.net.as_raw_fd()
    }

    /// Stops all of its processes and threads' work and removes its name, even where handles are left.
    pub(crate) fn close(&self) {
        self.inner.close();
    }
}

#[derive(Debug)]
struct Inner {
    name: String,
    path: PathBuf,
    net: OwnedFd,
    thread_id: i32,
    worker: Mutex<Option<Worker>>,
}

#[derive(Debug)]
struct Worker {
    jobs: mpsc::Sender<Box<dyn FnOnce() + Send>>,
    thread: JoinHandle<()>,
}

impl Inner {
    fn close(&self) {
        let worker = self.worker.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(Worker { jobs, thread }) = worker else { return };
        forget(&self.path);
        drop(jobs);
        // The last handle may be dropped by a job: a thread cannot wait for itself.
        if thread.thread().id() != std::thread::current().id() {
            let _ = thread.join();
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.close();
    }
}

/// Why a thread could not become a namespace.
enum Refusal {
    Hosts(io::Error),
    Namespaces(io::Error),
    Root(io::Error),
}

/// Gives the calling thread its own network and mounts.
fn leave_the_process(hosts: Option<&Path>) -> Result<i32, Refusal> {
    unshare(UnshareFlags::NEWNET | UnshareFlags::NEWNS).map_err(Refusal::Namespaces)?;
    // What is unmounted outside goes away inside, never the other way round.
    let slave = MountPropagationFlags::REC | MountPropagationFlags::DOWNSTREAM;
    rustix::mount::mount_change("/", slave).map_err(|errno| match errno {
        rustix::io::Errno::INVAL => Refusal::Root(errno.into()),
        errno => Refusal::Namespaces(errno.into()),
    })?;
    // /sys shows the network of whoever mounted it. Where it may not be mounted, only /sys/class/net is wrong.
    let _ = rustix::mount::mount("sysfs", "/sys", "sysfs", MountFlags::empty(), None::<&std::ffi::CStr>);
    if let Some(hosts) = hosts {
        rustix::mount::mount_bind(hosts, "/etc/hosts").map_err(|errno| Refusal::Hosts(errno.into()))?;
    }
    Ok(rustix::thread::gettid().as_raw_nonzero().get())
}

/// Makes names under `/run/netns` visible to all mount namespaces, and their removal too, as `ip netns add` does.
fn share_netns_dir() -> io::Result<()> {
    fs::create_dir_all(NETNS_DIR)?;
    let lock = File::open(NETNS_DIR)?;
    lock.lock()?;
    let shared = MountPropagationFlags::SHARED | MountPropagationFlags::REC;
    match rustix::mount::mount_change(NETNS_DIR, shared) {
        Err(rustix::io::Errno::INVAL) => {
            rustix::mount::mount_bind_recursive(NETNS_DIR, NETNS_DIR)?;
            Ok(rustix::mount::mount_change(NETNS_DIR, shared)?)
        }
        other => Ok(other?),
    }
}

/// The command as a person would type it, without the wrapper that ties it to the lab.
pub(crate) fn command_text(command: &Command) -> String {
    let words = command.get_args().skip(3).map(|word| word.to_string_lossy());
    words.collect::<Vec<_>>().join(" ")
}

fn program_of(command: &Command) -> &OsStr {
    command.get_args().nth(3).unwrap_or_else(|| command.get_program())
}

fn installed(program: &OsStr) -> bool {
    if Path::new(program).components().count() > 1 {
        return Path::new(program).is_file();
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
}

/// Makes sure that these programs are installed, before anything is built that needs them.
///
/// # Errors
/// [`LabError::ProgramMissing`] for the first that is not.
pub fn require<A: AsRef<OsStr>>(programs: impl IntoIterator<Item = A>) -> Result<(), LabError> {
    for program in programs {
        if !installed(program.as_ref()) {
            let program = program.as_ref().to_string_lossy().into_owned();
            return Err(LabError::ProgramMissing { package: package_of(&program), program });
        }
    }
    Ok(())
}

fn package_of(program: &str) -> &'static str {
    match program {
        "ip" | "ss" => "iproute2",
        "iperf3" => "iperf3",
        "nft" => "nftables",
        "nsenter" | "setpriv" | "setsid" | "unshare" => "util-linux",
        "ping" => "iputils-ping",
        _ => "of that name",
    }
}

/// How long a command may run that nobody gave a limit.
const COMMAND_LIMIT: Duration = Duration::from_secs(60);

/// What every namespace starts with: addresses usable at once, no filtering by source, errors not rate limited,
/// unprivileged ping sockets for the lab's own group (no other exists in a user namespace), nothing learned from
/// router advertisements.
const SYSCTLS: [(&str, &str); 9] = [
    ("net/ipv6/conf/all/accept_dad", "0"),
    ("net/ipv6/conf/default/accept_dad", "0"),
    ("net/ipv6/conf/default/accept_ra", "0"),
    ("net/ipv6/conf/all/keep_addr_on_down", "1"),
    ("net/ipv6/conf/default/keep_addr_on_down", "1"),
    ("net/ipv4/conf/all/rp_filter", "0"),
    ("net/ipv4/conf/default/rp_filter", "0"),
    ("net/ipv4/icmp_ratelimit", "0"),
    ("net/ipv4/ping_group_range", "0 0"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn in_a_root_directory_that_is_no_mount_point_the_remedy_is_named() {
        crate::enter().unwrap();
        let plain = tempfile::tempdir().unwrap();
        let path = plain.path().to_owned();
        let thread = std::thread::spawn(move || {
            unshare(UnshareFlags::FS).unwrap();
            rustix::process::chroot(&path).unwrap();
            leave_the_process(None).map(|_| ()).err()
        });
        let Some(Refusal::Root(source)) = thread.join().unwrap() else {
            panic!("it was no refusal of the root directory")
        };
        let told = Missing::Root(source).to_string();
        assert!(told.contains("mount --bind DIR DIR"), "{told}");
    }
}
