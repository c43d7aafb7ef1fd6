//! A lab leaves nothing behind, however it ends.

use std::collections::BTreeSet;
use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use flatlan_lab::{Lab, Namespace, Nat};

#[test]
fn a_dropped_lab_leaves_no_namespace_no_process_and_no_file() {
    let lab = Lab::builder().hub("h1").site("a", Nat::Cone).build().unwrap();
    let (prefix, folder) = (lab.prefix().to_owned(), lab.folder().to_path_buf());
    let mut sleeper = Namespace::command("sleep");
    sleeper.arg("1000");
    let child = lab.hub("h1").unwrap().namespace().start(sleeper).unwrap();
    assert_eq!(named(&prefix).len(), 6, "{:?}", named(&prefix));
    assert!(alive(child.id()));
    drop(lab);
    assert_eq!(named(&prefix), BTreeSet::new());
    assert!(!folder.exists());
    assert!(!alive(child.id()));
}

fn named(prefix: &str) -> BTreeSet<String> {
    let output = Command::new("ip").arg("netns").output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().filter(|line| line.starts_with(prefix)).map(str::to_owned).collect()
}

fn alive(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')').next().is_some_and(|rest| !rest.is_empty() && !rest.trim_start().starts_with('Z'))
}
