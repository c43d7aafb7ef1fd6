//! What a process uses, as the kernel counts it.

use std::fs;

/// One look.
#[derive(Debug, Clone, Copy, Default)]
#[allow(dead_code, reason = "every program takes what it needs")]
pub(crate) struct Usage {
    /// Resident memory, in KiB.
    pub(crate) resident_kib: u64,
    /// Of that what is no file's, in KiB.
    pub(crate) anonymous_kib: u64,
    /// Processor time, in ticks of 10 ms.
    pub(crate) ticks: u64,
    /// How often its threads went to sleep and were woken.
    pub(crate) wakes: u64,
}

impl Usage {
    pub(crate) fn of(pid: i32) -> Self {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let times = stat.rsplit(')').next().unwrap().split_whitespace().skip(11).take(2);
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap().map(|task| task.unwrap().path());
        let wakes = tasks
            .map(|task| field(&fs::read_to_string(task.join("status")).unwrap_or_default(), "voluntary_ctxt_switches"));
        Self {
            resident_kib: field(&status, "VmRSS"),
            anonymous_kib: field(&status, "RssAnon"),
            ticks: times.map(|time| time.parse::<u64>().unwrap()).sum(),
            wakes: wakes.sum(),
        }
    }
}

fn field(status: &str, name: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}
