//! What an idle node and an idle hub cost, as processor time, memory and log lines: `tests/long idle [--seconds N]`.
//!
//! Two hubs, two nodes that have talked once, then nothing for half a minute, then the measurement. The control is a
//! `sleep` beside them. The table is written to `tests/results/idle.md`.

#![expect(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "a program for people")]

mod measure;
#[path = "../netns/usage.rs"]
mod usage;

use std::time::Duration;

use flatlan_lab::{Lab, Namespace, Nat, Probe};
use measure::Paper;
use usage::Usage;

fn main() {
    let seconds = measure::number("--seconds", 60);
    flatlan_lab::enter().unwrap();
    let lab = Lab::builder().flatlan(env!("CARGO_BIN_EXE_flatlan")).hub("h1").hub("h2");
    let lab = lab.site("a", Nat::Cone).site("b", Nat::Cone).build().unwrap();
    lab.bring_up().unwrap();
    let (a, b) = (lab.site("a").unwrap(), lab.site("b").unwrap());
    let probe = Probe::ping(a.gateway(), b.virtual_ip().into(), Duration::from_millis(100)).unwrap();
    probe.wait_answers(5, Duration::from_secs(30)).unwrap();
    drop(probe);
    let mut command = Namespace::command("sleep");
    command.arg("86400");
    let control = lab.admin().spawn("control", command, &lab.folder().join("log").join("control.log")).unwrap();
    std::thread::sleep(SETTLE);
    let processes: Vec<_> = ["h1", "h2", "a", "b"].iter().map(|name| lab.process(name).unwrap()).collect();
    let look = || processes.iter().map(|process| (Usage::of(process.pid()), process.lines().len()));
    let before: Vec<_> = look().collect();
    let control_before = Usage::of(control.pid());
    std::thread::sleep(Duration::from_secs(seconds.into()));
    let mut paper = Paper::new("idle", "Idle nodes and hubs");
    paper.say(format!("{seconds} s; at most 20 MiB, under 0.5 % of a core, nothing logged.\n"));
    paper.head(&["what", "RSS MiB", "CPU % of a core", "wake-ups/s", "lines logged"]);
    let span = f64::from(seconds);
    for (process, ((now, lines), (then, lines_then))) in processes.iter().zip(look().zip(before)) {
        let (mib, cpu) = (now.resident_kib as f64 / 1024.0, (now.ticks - then.ticks) as f64 / span);
        let (wakes, said) = ((now.wakes - then.wakes) as f64 / span, lines - lines_then);
        paper.say(format!("| {} | {mib:.1} | {cpu:.2} | {wakes:.1} | {said} |", process.name()));
        let held = mib <= 20.0 && cpu < 0.5 && said == 0;
        paper.must(held, &format!("{} is above: {}", process.name(), process.tail(said.min(5))));
    }
    let idle = Usage::of(control.pid());
    paper.say(format!(
        "| control: sleep | {:.1} | {:.2} | | |",
        idle.resident_kib as f64 / 1024.0,
        (idle.ticks - control_before.ticks) as f64 / span
    ));
    paper.end();
}

/// When a pair that has talked counts as idle.
const SETTLE: Duration = Duration::from_secs(30);
