//! Processor time and memory, as the kernel counts them.

use std::fs;

use crate::peer::Running;

/// Processor time so far, in seconds.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Cpu {
    /// Of the overlay's processes at both ends.
    pub(crate) ends: f64,
    /// Of its hubs.
    pub(crate) hubs: f64,
    /// Of the whole machine, without what the hypervisor took away.
    pub(crate) host: f64,
}

impl Cpu {
    /// Looks at the machine and at what runs.
    pub(crate) fn of(running: &Running<'_>) -> Self {
        let mut cpu = Self { host: host(), ..Self::default() };
        for (machine, process) in running.processes() {
            let stat = fs::read_to_string(format!("/proc/{}/stat", process.pid())).unwrap_or_default();
            let spent = parse_process(&stat).unwrap_or(0.0);
            if machine.is_hub() {
                cpu.hubs += spent;
            } else {
                cpu.ends += spent;
            }
        }
        cpu
    }

    /// What was spent since then.
    pub(crate) fn since(self, before: Self) -> Self {
        Self { ends: self.ends - before.ends, hubs: self.hubs - before.hubs, host: self.host - before.host }
    }
}

/// Processor time of the whole machine so far, in seconds.
pub(crate) fn host() -> f64 {
    parse_host(&fs::read_to_string("/proc/stat").unwrap_or_default()).unwrap_or(0.0)
}

/// The largest resident memory of a process at the ends and of a hub, in MiB.
pub(crate) fn memory(running: &Running<'_>) -> (f64, f64) {
    let (mut ends, mut hubs) = (0.0_f64, 0.0_f64);
    for (machine, process) in running.processes() {
        let status = fs::read_to_string(format!("/proc/{}/status", process.pid())).unwrap_or_default();
        let resident = parse_resident(&status).unwrap_or(0.0);
        let larger: &mut f64 = if machine.is_hub() { &mut hubs } else { &mut ends };
        *larger = larger.max(resident);
    }
    (ends, hubs)
}

/// User and system time, fields 14 and 15 of `/proc/PID/stat`; the second may hold blanks.
fn parse_process(stat: &str) -> Option<f64> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let (user, system): (f64, f64) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    Some((user + system) / TICKS)
}

/// The first line of `/proc/stat`: user, nice, system, idle, iowait, irq, softirq, steal.
fn parse_host(stat: &str) -> Option<f64> {
    let fields: Vec<f64> = stat.lines().next()?.split_whitespace().skip(1).flat_map(str::parse).collect();
    let [user, nice, system, _idle, _wait, irq, soft, ..] = fields.as_slice() else { return None };
    Some((user + nice + system + irq + soft) / TICKS)
}

/// In MiB.
fn parse_resident(status: &str) -> Option<f64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.split_whitespace().next()?.parse::<f64>().ok()? / 1024.0)
}

/// What the kernel calls USER_HZ: 100 on every machine that Rust's std knows.
const TICKS: f64 = 100.0;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_with_blanks_and_brackets_in_its_name_is_read() {
        let stat = "77 (a ) b) S 1 77 77 0 -1 4194304 100 0 0 0 250 150 0 0 20 0 3 0 100 0 0";
        assert_eq!(parse_process(stat), Some(4.0));
        assert_eq!(parse_process("77 (cut"), None);
    }

    #[test]
    fn idle_waiting_and_stolen_time_are_nobodys() {
        let stat = "cpu  100 1 200 9999 8888 3 96 7777 0 0\ncpu0 1 1 1 1\n";
        assert_eq!(parse_host(stat), Some(4.0));
    }

    #[test]
    fn resident_memory_is_shown_in_mebibytes() {
        assert_eq!(parse_resident("Name:\tx\nVmRSS:\t    2048 kB\nThreads:\t1\n"), Some(2.0));
        assert_eq!(parse_resident("Name:\tx\n"), None);
    }
}
