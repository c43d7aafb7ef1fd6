//! A clock that is a day behind, by libfaketime.

use std::process::Command;

use flatlan_lab::RunOptions;

/// A process under this environment believes that it is yesterday.
pub(crate) fn yesterday() -> RunOptions {
    let folders = std::fs::read_dir("/usr/lib").unwrap().filter_map(Result::ok);
    let libraries = folders.map(|folder| folder.path().join("faketime/libfaketimeMT.so.1"));
    let library = libraries.into_iter().find(|library| library.exists());
    let library = library.expect("libfaketime is not installed: run deploy/setup");
    let env = [
        ("LD_PRELOAD", library.display().to_string()),
        ("FAKETIME", "-1d".to_owned()),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
    ];
    let options = RunOptions { env: env.map(|(name, value)| (name.to_owned(), value)).into(), ..RunOptions::default() };
    let seconds = |env: &[(String, String)]| -> i64 {
        let mut date = Command::new("date");
        date.arg("+%s").envs(env.iter().map(|(name, value)| (name, value)));
        String::from_utf8(date.output().unwrap().stdout).unwrap().trim().parse().unwrap()
    };
    let set_back = seconds(&[]) - seconds(&options.env);
    assert!((86_000..87_000).contains(&set_back), "the clock was set back by {set_back} s");
    options
}
