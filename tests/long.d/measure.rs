//! What every benchmark prints: the machine, and the numbers of its runs beside their goals; also as a file of
//! `tests/results`. A missed goal fails the run, after its numbers are written.

#![allow(dead_code, reason = "every benchmark takes what it needs")]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

/// What goes to the screen and into the result file.
#[derive(Debug)]
pub(crate) struct Paper {
    name: &'static str,
    text: String,
    missed: Vec<String>,
    begun: Instant,
    kept: bool,
}

/// What is asked of the times of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Goal {
    /// The median is at most this.
    Median(Duration),
    /// Each is at most this.
    Each(Duration),
}

impl Paper {
    /// Begins with the machine.
    pub(crate) fn new(name: &'static str, title: &str) -> Self {
        let mut paper = Self { name, text: String::new(), missed: Vec::new(), begun: Instant::now(), kept: true };
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let info = read("/proc/cpuinfo");
        let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split(':').nth(1));
        let cores = std::thread::available_parallelism().map_or(0, usize::from);
        paper.say(format!("# {title}\n"));
        paper.say(format!("`tests/long {name}`: everything runs on this one machine.\n"));
        paper.say(format!(
            "* kernel {}, {cores} cores,{}",
            read("/proc/sys/kernel/osrelease").trim(),
            model.unwrap_or(" unknown")
        ));
        let load: Vec<String> = read("/proc/loadavg").split(' ').take(3).map(str::to_owned).collect();
        paper.say(format!("* load when it began: {}", load.join(" ")));
        paper.say(format!("* TCP by {}", read("/proc/sys/net/ipv4/tcp_congestion_control").trim()));
        paper.say(format!("* {} binary\n", if cfg!(debug_assertions) { "debug" } else { "release" }));
        paper
    }

    /// Only a part of what it is about is measured: it goes to the screen alone.
    pub(crate) fn is_part(&mut self) {
        self.kept = false;
    }

    /// A line.
    pub(crate) fn say(&mut self, line: impl AsRef<str>) {
        let line = line.as_ref();
        println!("{line}");
        let _ = writeln!(self.text, "{line}");
    }

    /// The head of a table.
    pub(crate) fn head(&mut self, columns: &[&str]) {
        self.say(format!("| {} |\n|{}", columns.join(" | "), "---|".repeat(columns.len())));
    }

    /// A row: what, how many runs, median, least and most.
    pub(crate) fn row(&mut self, what: &str, times: &[Duration], extra: &str) {
        let sorted = sorted(times);
        let ms = |time: Option<&Duration>| {
            time.map_or_else(|| "-".to_owned(), |time| format!("{:.0}", time.as_secs_f64() * 1e3))
        };
        let (least, median, most) = (sorted.first(), sorted.get(sorted.len() / 2), sorted.last());
        self.say(format!("| {what} | {} | {} | {} | {} | {extra} |", times.len(), ms(median), ms(least), ms(most)));
    }

    /// A row with its goal; no time at all misses it.
    pub(crate) fn judged_row(&mut self, what: &str, times: &[Duration], goal: Goal) {
        let sorted = sorted(times);
        let (judged, limit, word) = match goal {
            Goal::Median(limit) => (sorted.get(sorted.len() / 2), limit, "median"),
            Goal::Each(limit) => (sorted.last(), limit, "each"),
        };
        self.row(what, times, &format!("{word} at most {limit:?}"));
        self.must(judged.is_some_and(|time| *time <= limit), &format!("{what}: {judged:?}, not at most {limit:?}"));
    }

    /// Notes a goal that is missed where it does not hold.
    pub(crate) fn must(&mut self, held: bool, missed: &str) {
        if !held {
            self.missed.push(missed.to_owned());
        }
    }

    /// Writes the file, where it is about all that it should be.
    ///
    /// # Panics
    /// Where a goal was missed.
    pub(crate) fn end(mut self) {
        let missed = std::mem::take(&mut self.missed);
        if missed.is_empty() {
            self.say("\nEvery goal was met.");
        } else {
            self.say(format!("\nMissed:\n\n* {}", missed.join("\n* ")));
        }
        let seconds = self.begun.elapsed().as_secs();
        self.say(format!("\nWall time: {} min {} s.", seconds / 60, seconds % 60));
        if !self.kept {
            println!("(a part: not written to tests/results)");
            assert!(missed.is_empty(), "missed: {missed:#?}");
            return;
        }
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/results");
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join(format!("{}.md", self.name)), &self.text).unwrap();
        assert!(missed.is_empty(), "missed: {missed:#?}");
    }
}

/// The words behind the flags of a program that takes several.
#[derive(Debug)]
pub(crate) struct Flags(BTreeMap<String, String>);

impl Flags {
    /// Reads them.
    ///
    /// # Panics
    /// Where there is another, or one without its word.
    pub(crate) fn read(known: &[&str]) -> Self {
        let mut words = std::env::args().skip(1).filter(|word| word != "--bench");
        let mut flags = BTreeMap::new();
        while let Some(flag) = words.next() {
            assert!(known.contains(&flag.as_str()), "{flag}: only {}", known.join(" W, "));
            let word = words.next().unwrap_or_else(|| panic!("{flag}: what?"));
            flags.insert(flag, word);
        }
        Self(flags)
    }

    /// The word behind a flag.
    pub(crate) fn word(&self, flag: &str) -> Option<&str> {
        self.0.get(flag).map(String::as_str)
    }

    /// The number behind a flag, or `otherwise`.
    pub(crate) fn number(&self, flag: &str, otherwise: u32) -> u32 {
        let number = |word: &str| word.parse().ok().filter(|given| *given > 0);
        self.word(flag).map_or(otherwise, |word| number(word).unwrap_or_else(|| panic!("{flag} N: a number from 1")))
    }

    /// Whether a name is among those behind a flag, separated by commas; without the flag, all are.
    pub(crate) fn wants(&self, flag: &str, name: &str) -> bool {
        self.word(flag).is_none_or(|list| list.split(',').any(|listed| listed == name))
    }
}

/// The number behind the one flag that a benchmark takes, or `otherwise`.
pub(crate) fn number(flag: &str, otherwise: u32) -> u32 {
    let mut number = otherwise;
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        if word == flag {
            let given = words.next().and_then(|word| word.parse().ok()).filter(|given| *given > 0);
            number = given.unwrap_or_else(|| panic!("{flag} N: a number from 1"));
        } else {
            // cargo says it
            assert!(word == "--bench", "{word}: only {flag} N");
        }
    }
    number
}

fn sorted(times: &[Duration]) -> Vec<Duration> {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    sorted
}
