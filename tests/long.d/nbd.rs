//! A disk over the network while hubs die: `tests/long nbd [--kills N] [--flatlan PATH]`.
//!
//! Two sites behind symmetric NATs, two hubs, a round trip of 40 ms, of which each way loses one packet of a hundred. A LAN
//! host of b serves a disk by NBD (nbdkit), a LAN host of a writes blocks of random bytes to it and reads each back (nbdsh),
//! in one session. The hub in use is killed and comes back, again and again. No request may fail, and in the end every
//! block must hold what was written to it last. Needs Debian's `nbdkit`, `libnbd-bin` and `python3-libnbd`.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::indexing_slicing,
    reason = "a program for people"
)]

mod measure;
#[path = "../netns/support.rs"]
mod support;

use std::time::{Duration, Instant};

use flatlan_lab::{Namespace, Nat, Process, Quality, require};
use measure::{Flags, Paper};
use support::{PATIENCE, ping, wait_path};

fn main() {
    let flags = Flags::read(&["--kills", "--flatlan"]);
    let kills = flags.number("--kills", 6);
    if require(["nbdkit", "nbdsh"]).is_err() {
        eprintln!("error: apt-get install --no-install-recommends nbdkit libnbd-bin python3-libnbd");
        std::process::exit(3);
    }
    flatlan_lab::enter().unwrap();
    let lab = support::lab().hub("h1").hub("h2");
    let lab = flags.word("--flatlan").map_or_else(|| lab.clone(), |binary| lab.clone().flatlan(binary));
    let lab = lab.site("a", Nat::Symmetric).site("b", Nat::Symmetric).build().unwrap();
    lab.bring_up().unwrap();
    let bad = Quality { delay: Duration::from_millis(20), lost: 10, ..Quality::default() };
    let _wires = [("a", 1), ("b", 2)].map(|(site, seed)| lab.emulate(site, bad, seed).unwrap());
    let _talk = ping(&lab, "a", "b");
    wait_path(&lab, "a", "b", "a relayed path", |path| path["kind"] == "relay");

    let [client, server] = ["a", "b"].map(|site| lab.site(site).unwrap().hosts().first().unwrap());
    let [ip, _] = server.addresses();
    let mut serve = Namespace::command("nbdkit");
    serve.args(["--foreground", "--exit-with-parent", "--ipaddr", &ip.to_string(), "memory", "size=16M"]);
    let log = |name: &str| lab.folder().join("log").join(format!("{name}.log"));
    let server = server.namespace().spawn("nbdkit", serve, &log("nbdkit")).unwrap();
    let stop = lab.folder().join("stop");
    // Debian's own python, which has the module
    let mut work = Namespace::command("/usr/bin/python3");
    work.args(["-c", WORK]).env("DISK", format!("nbd://{ip}")).env("STOP", &stop);
    let disk = client.namespace().spawn("nbdsh", work, &log("nbdsh")).unwrap();
    more(&disk, 20);

    let mut paper = Paper::new("nbd", "A disk over the network while hubs die");
    paper.say("Blocks of 64 KiB written and read back by NBD, round trip 40 ms, 1 % lost each way.\n");
    paper.head(&["killed", "blocks before", "the next block after, ms"]);
    for _ in 0..kills {
        let path = wait_path(&lab, "a", "b", "a relayed path", |path| path["kind"] == "relay");
        let hub = path["via"][0].as_str().unwrap().to_owned();
        let before = disk.lines().len();
        let at = lab.kill(&hub).unwrap();
        more(&disk, 20);
        let next =
            disk.lines().into_iter().find(|line| line.at > at + SOON).map_or(Duration::ZERO, |line| line.at - at);
        paper.say(format!("| {hub} | {before} | {} |", next.as_millis()));
        lab.restart(&hub).unwrap();
        more(&disk, 20);
    }
    std::fs::write(&stop, "").unwrap();
    // which reads every block again: some round trips of 40 ms each
    let ended = disk.wait_exit(PATIENCE * 10);
    let verdict = disk.lines().last().map(|line| line.text.clone()).unwrap_or_default();
    paper.say(format!("\n{verdict}; nbdkit {}.", if server.is_running() { "runs" } else { "is gone" }));
    let whole = ended.is_some_and(|status| status.success()) && verdict.starts_with("verified");
    paper.must(whole, &format!("the session: {ended:?}: {}", disk.tail(5)));
    paper.end();
}

/// Waits until so many blocks more were written and read back.
fn more(disk: &Process, blocks: usize) {
    let (wanted, deadline) = (disk.lines().len() + blocks, Instant::now() + PATIENCE * 2);
    while disk.lines().len() < wanted {
        assert!(disk.is_running() && Instant::now() < deadline, "{}", disk.tail(10));
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// What was under way when the hub died may still arrive.
const SOON: Duration = Duration::from_millis(50);
/// Any request that fails ends it with an error.
const WORK: &str = "
import nbd, os
h = nbd.NBD()
h.connect_uri(os.environ['DISK'])
size, block, count, written = h.get_size(), 65536, 0, {}
while not os.path.exists(os.environ['STOP']):
    at = count * block % size
    written[at] = os.urandom(block)
    h.pwrite(written[at], at)
    assert h.pread(block, at) == written[at], 'block %d differs' % count
    count += 1
    print(count, flush=True)
for at, data in written.items():
    assert h.pread(block, at) == data, 'offset %d differs' % at
print('verified: %d blocks written and read back, %d read again in the end' % (count, len(written)), flush=True)
";
