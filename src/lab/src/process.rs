//! A program that runs inside a namespace: its log, its signals, its end.
//!
//! Standard output and standard error go through one pipe to a thread that stamps each line with the time it came,
//! keeps it for whoever waits for it, and appends it to a file. A process is killed when its handle is dropped.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, Signal};

use crate::error::LabError;
use crate::namespace::Namespace;
use crate::reaper;

/// A running program, or one that ran. Killed on drop.
#[derive(Debug)]
pub struct Process {
    name: String,
    log: PathBuf,
    pid: Pid,
    child: Mutex<Child>,
    lines: Arc<Lines>,
    reader: Option<JoinHandle<()>>,
}

/// One line of a process's output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogLine {
    /// When it came.
    pub at: Instant,
    /// What it says, without the line end.
    pub text: String,
}

impl Process {
    pub(crate) fn start(namespace: &Namespace, name: &str, mut command: Command, log: &Path) -> Result<Self, LabError> {
        let file = File::options().create(true).append(true).open(log).map_err(LabError::io("create", log))?;
        let (output, writer) = std::io::pipe().map_err(LabError::io("make a pipe for", log))?;
        let second = writer.try_clone().map_err(LabError::io("make a pipe for", log))?;
        command.env("NO_COLOR", "1").stdin(Stdio::null()).stdout(writer).stderr(second);
        // The command holds our ends of the pipe: it is gone when this returns.
        let child = namespace.start(command)?;
        let pid = Pid::from_child(&child);
        let lines = Arc::new(Lines::default());
        let sink = Arc::clone(&lines);
        let reader = std::thread::Builder::new()
            .name(format!("{name} log"))
            .spawn(move || sink.collect(output, file))
            .map_err(LabError::io("start a thread for", log))?;
        let (name, log, reader) = (name.to_owned(), log.to_path_buf(), Some(reader));
        Ok(Self { name, log, pid, child: Mutex::new(child), lines, reader })
    }

    /// The name it was started under.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its process number.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    /// The file that holds all it ever said.
    #[must_use]
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Everything it said, oldest first. Complete where it has ended.
    #[must_use]
    pub fn lines(&self) -> Vec<LogLine> {
        self.settled().all.clone()
    }

    /// Its last `count` lines as text.
    #[must_use]
    pub fn tail(&self, count: usize) -> String {
        let state = self.settled();
        let start = state.all.len().saturating_sub(count);
        let mut text = String::new();
        for line in state.all.iter().skip(start) {
            let _ = writeln!(text, "  {}", line.text);
        }
        text
    }

    /// How it ended, or `None` while it runs.
    #[must_use]
    pub fn exit_status(&self) -> Option<ExitStatus> {
        let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        child.try_wait().ok().flatten().inspect(|_| reaper::stand_aside())
    }

    /// Whether it still runs (a frozen process does).
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.exit_status().is_none()
    }

    /// Waits for a line that holds `text`, also among those already seen.
    ///
    /// # Errors
    /// [`LabError::Ended`] where the process ends first, [`LabError::Timeout`] after `within`.
    pub fn wait_line(&self, text: &str, within: Duration) -> Result<LogLine, LabError> {
        self.wait_line_after(0, text, within)
    }

    /// [`Process::wait_line`], ignoring the first `skip` lines: for what is said again after a fault.
    ///
    /// # Errors
    /// As [`Process::wait_line`].
    pub fn wait_line_after(&self, skip: usize, text: &str, within: Duration) -> Result<LogLine, LabError> {
        let deadline = Instant::now() + within;
        let mut next = skip;
        let mut state = self.lines.lock();
        loop {
            if let Some(line) = state.all.iter().skip(next).find(|line| line.text.contains(text)) {
                return Ok(line.clone());
            }
            next = next.max(state.all.len());
            let left = deadline.saturating_duration_since(Instant::now());
            if state.closed || left.is_zero() {
                break;
            }
            state = self.lines.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        drop(state);
        match self.wait_exit(Duration::from_millis(100)) {
            Some(status) => {
                Err(LabError::Ended { name: self.name.clone(), status, awaited: text.to_owned(), tail: self.tail(20) })
            }
            None => Err(LabError::Timeout {
                what: format!("{text:?} from {}", self.name),
                within,
                tail: format!("; its last lines:\n{}", self.tail(20)),
            }),
        }
    }

    /// Waits until it ends.
    #[must_use]
    pub fn wait_exit(&self, within: Duration) -> Option<ExitStatus> {
        let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        wait_child(&mut child, within)
    }

    /// Sends SIGKILL and waits for the end. Returns when the signal was sent.
    pub fn kill(&self) -> Instant {
        let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        let at = Instant::now();
        let _ = child.kill();
        let _ = child.wait();
        at
    }

    /// Sends SIGTERM and waits; SIGKILL where it takes longer than `within`. Returns how it ended.
    ///
    /// # Errors
    /// [`LabError::Timeout`] where it had to be killed.
    pub fn stop(&self, within: Duration) -> Result<ExitStatus, LabError> {
        self.signal(Signal::TERM);
        if let Some(status) = self.wait_exit(within) {
            return Ok(status);
        }
        self.kill();
        let what = format!("the end of {} on SIGTERM", self.name);
        Err(LabError::Timeout { what, within, tail: format!("; its last lines:\n{}", self.tail(20)) })
    }

    /// Stops the process where it stands (SIGSTOP). It stands when this returns; returns when the signal was sent.
    pub fn freeze(&self) -> Instant {
        let at = self.signal(Signal::STOP);
        // The signal is taken when the kernel next looks, a moment later on another processor.
        while at.elapsed() < FREEZE_LIMIT && !self.stands() {
            std::thread::yield_now();
        }
        at
    }

    /// Lets a frozen process go on.
    pub fn thaw(&self) -> Instant {
        self.signal(Signal::CONT)
    }

    /// Asks it to read its configuration again (SIGHUP).
    pub fn reload(&self) -> Instant {
        self.signal(Signal::HUP)
    }

    /// What it said; where it has ended, after the last of it came through the pipe.
    fn settled(&self) -> MutexGuard<'_, LineState> {
        let ended = self.child.lock().unwrap_or_else(PoisonError::into_inner).try_wait().is_ok_and(|end| end.is_some());
        let state = self.lines.lock();
        if !ended {
            return state;
        }
        // A grandchild may hold the pipe open for ever.
        let open = |state: &mut LineState| !state.closed;
        self.lines.changed.wait_timeout_while(state, PIPE_LIMIT, open).unwrap_or_else(PoisonError::into_inner).0
    }

    /// Whether each of its threads is stopped or gone.
    fn stands(&self) -> bool {
        let Ok(threads) = std::fs::read_dir(format!("/proc/{}/task", self.pid())) else { return true };
        threads.filter_map(Result::ok).all(|thread| {
            let stat = std::fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
            let state = stat.rsplit(')').next().and_then(|rest| rest.trim_start().chars().next());
            !matches!(state, Some('R' | 'S' | 'D'))
        })
    }

    fn signal(&self, signal: Signal) -> Instant {
        // While the child is not waited for, its number cannot be somebody else's.
        let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        let at = Instant::now();
        if matches!(child.try_wait(), Ok(None)) {
            let _ = rustix::process::kill_process(self.pid, signal);
        }
        at
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        // A grandchild may still hold the pipe: the log is complete when it closes, and nobody waits for that here.
        if let Some(reader) = self.reader.take().filter(JoinHandle::is_finished) {
            let _ = reader.join();
        }
    }
}

/// How a program that ran to its end did.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// The command line.
    pub command: String,
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
    /// How long it ran.
    pub took: Duration,
}

impl Outcome {
    pub(crate) fn of(mut child: Child, command: String, within: Duration) -> Result<Self, LabError> {
        let start = Instant::now();
        let stdout = drain(child.stdout.take());
        let stderr = drain(child.stderr.take());
        let Some(status) = wait_child(&mut child, within) else {
            let _ = child.kill();
            let _ = child.wait();
            return Err(LabError::Timeout { what: format!("the end of `{command}`"), within, tail: String::new() });
        };
        let took = start.elapsed();
        let text =
            |thread: JoinHandle<Vec<u8>>| String::from_utf8_lossy(&thread.join().unwrap_or_default()).into_owned();
        Ok(Self { command, status, stdout: text(stdout), stderr: text(stderr), took })
    }

    /// The exit code; 128 and the signal where one ended it, as shells say.
    #[must_use]
    pub fn code(&self) -> i32 {
        self.status.code().unwrap_or_else(|| 128 + self.status.signal().unwrap_or(0))
    }

    /// Itself, where the program succeeded.
    ///
    /// # Errors
    /// [`LabError::Command`] otherwise.
    pub fn success(self) -> Result<Self, LabError> {
        if self.status.success() {
            return Ok(self);
        }
        let stderr = self.stderr.trim().to_owned();
        Err(LabError::Command { command: self.command, status: self.status, stderr })
    }

    /// The last line of standard output, trimmed: where a key, an id or a token is.
    #[must_use]
    pub fn last_line(&self) -> &str {
        self.stdout.trim_end().lines().next_back().unwrap_or_default().trim()
    }

    /// Standard output as JSON.
    ///
    /// # Errors
    /// [`LabError::Unexpected`] where it is none.
    pub fn json(&self) -> Result<serde_json::Value, LabError> {
        serde_json::from_str(&self.stdout)
            .map_err(|_| LabError::Unexpected { command: self.command.clone(), answer: self.stdout.clone() })
    }
}

/// What a process said.
#[derive(Debug, Default)]
struct Lines {
    state: Mutex<LineState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct LineState {
    all: Vec<LogLine>,
    closed: bool,
}

impl Lines {
    fn lock(&self) -> MutexGuard<'_, LineState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn collect(&self, output: std::io::PipeReader, mut file: File) {
        let mut reader = BufReader::new(output);
        let mut bytes = Vec::new();
        while reader.read_until(b'\n', &mut bytes).is_ok_and(|count| count > 0) {
            let at = Instant::now();
            let _ = file.write_all(&bytes);
            let text = String::from_utf8_lossy(&bytes).trim_end().to_owned();
            self.lock().all.push(LogLine { at, text });
            self.changed.notify_all();
            bytes.clear();
        }
        self.lock().closed = true;
        self.changed.notify_all();
    }
}

fn drain(pipe: Option<impl std::io::Read + Send + 'static>) -> JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            let _ = pipe.by_ref().read_to_end(&mut bytes);
        }
        bytes
    })
}

/// Waits for a child without polling: a process file descriptor becomes readable when it ends.
pub(crate) fn wait_child(child: &mut Child, within: Duration) -> Option<ExitStatus> {
    let ended = |child: &mut Child| child.try_wait().ok().flatten().inspect(|_| reaper::stand_aside());
    if let Some(status) = ended(child) {
        return Some(status);
    }
    let fd = rustix::process::pidfd_open(Pid::from_child(child), PidfdFlags::empty()).ok()?;
    let deadline = Instant::now() + within;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).ok()?;
        let mut fds = [PollFd::new(&fd, PollFlags::IN)];
        let _ = rustix::event::poll(&mut fds, Some(&timeout));
        if let Some(status) = ended(child) {
            return Some(status);
        }
        if left.is_zero() {
            return None;
        }
    }
}

/// How long the last words of a process may take through the pipe.
const PIPE_LIMIT: Duration = Duration::from_millis(200);
/// How long a process may take to stand still.
const FREEZE_LIMIT: Duration = Duration::from_millis(500);
