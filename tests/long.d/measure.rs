//! What every benchmark prints: the machine, and the numbers of its runs; also as a file of `tests/results`.

#![allow(dead_code, reason = "every benchmark takes what it needs")]

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

/// What goes to the screen and into the result file.
#[derive(Debug)]
pub(crate) struct Paper {
    name: &'static str,
    text: String,
}

impl Paper {
    /// Begins with the machine.
    pub(crate) fn new(name: &'static str, title: &str) -> Self {
        let mut paper = Self { name, text: String::new() };
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
        paper.say(format!("* {} binary\n", if cfg!(debug_assertions) { "debug" } else { "release" }));
        paper
    }

    /// A line.
    pub(crate) fn say(&mut self, line: impl AsRef<str>) {
        let line = line.as_ref();
        println!("{line}");
        let _ = writeln!(self.text, "{line}");
    }

    /// A row: what, how many runs, median, least and most.
    pub(crate) fn row(&mut self, what: &str, times: &[Duration], extra: &str) {
        let mut sorted = times.to_vec();
        sorted.sort_unstable();
        let ms = |time: Option<&Duration>| {
            time.map_or_else(|| "-".to_owned(), |time| format!("{:.0}", time.as_secs_f64() * 1e3))
        };
        let (least, median, most) = (sorted.first(), sorted.get(sorted.len() / 2), sorted.last());
        self.say(format!("| {what} | {} | {} | {} | {} | {extra} |", times.len(), ms(median), ms(least), ms(most)));
    }

    /// Writes the file.
    pub(crate) fn write(&self) {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/results");
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join(format!("{}.md", self.name)), &self.text).unwrap();
    }
}

/// The value of `--runs N`, or `otherwise`.
pub(crate) fn runs(otherwise: usize) -> usize {
    let mut runs = otherwise;
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        match word.as_str() {
            "--runs" => runs = words.next().and_then(|word| word.parse().ok()).expect("--runs N"),
            // cargo says it
            "--bench" => {}
            other => panic!("{other}: only --runs N"),
        }
    }
    runs
}
