//! What is logged, held over the sources: fields are those of the table in `src/README.md`, and text is
//! constant.
//!
//! Whoever reads logs by machine relies on both. Looked at is every `tracing` macro outside of tests.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::{collections::BTreeSet, fs, path::Path};

#[test]
fn the_table_names_every_field_that_is_logged_and_no_other() {
    let logged: BTreeSet<String> = calls().iter().flat_map(|call| call.fields.iter().cloned()).collect();
    let listed = table();
    let unlisted: Vec<_> = logged.difference(&listed).collect();
    let unused: Vec<_> = listed.difference(&logged).collect();
    assert!(unlisted.is_empty() && unused.is_empty(), "not in the table: {unlisted:?}; not logged: {unused:?}");
}

#[test]
fn what_is_logged_has_constant_text() {
    let wrong: Vec<_> =
        calls().into_iter().filter(|call| call.texts != 1 || call.formats).map(|call| call.at).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// One use of a macro.
struct Call {
    at: String,
    fields: Vec<String>,
    texts: usize,
    /// A text has something filled in.
    formats: bool,
}

fn calls() -> Vec<Call> {
    let mut calls = Vec::new();
    read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut calls);
    assert!(calls.len() > 50, "the sources were not found");
    calls
}

fn read(path: &Path, calls: &mut Vec<Call>) {
    let name = path.file_name().unwrap().to_string_lossy().into_owned();
    if path.is_dir() {
        if name != "tests" && name != "target" {
            let mut inside: Vec<_> = fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()).collect();
            inside.sort();
            inside.iter().for_each(|path| read(path, calls));
        }
    } else if name.ends_with(".rs") && name != "tests.rs" {
        let source = fs::read_to_string(path).unwrap();
        let product = source.split("#[cfg(test)]\nmod tests").next().unwrap();
        for (at, _) in product.match_indices("tracing::") {
            let rest = product.get(at..).unwrap();
            let level = LEVELS.iter().find_map(|level| rest.strip_prefix(&format!("tracing::{level}!(")));
            if let Some(body) = level {
                let line = product.get(..at).unwrap().lines().count();
                calls.push(parse(&arguments(body), format!("{}:{line}", path.display())));
            }
        }
    }
}

/// The arguments of a macro, up to its closing parenthesis.
fn arguments(body: &str) -> Vec<String> {
    let (mut all, mut this, mut depth, mut quoted, mut escaped) = (Vec::new(), String::new(), 0, false, false);
    for c in body.chars() {
        match c {
            _ if quoted => {
                quoted = escaped || c != '"';
                escaped = !escaped && c == '\\';
            }
            '"' => quoted = true,
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' if depth > 0 => depth -= 1,
            ')' => break,
            ',' if depth == 0 => {
                all.push(std::mem::take(&mut this));
                continue;
            }
            _ => {}
        }
        this.push(c);
    }
    all.push(this);
    all.iter().map(|argument| argument.trim().to_owned()).filter(|argument| !argument.is_empty()).collect()
}

fn parse(arguments: &[String], at: String) -> Call {
    let mut call = Call { at, fields: Vec::new(), texts: 0, formats: false };
    for argument in arguments {
        if argument.starts_with('"') {
            call.texts += 1;
            call.formats |= argument.contains('{');
            continue;
        }
        let field = argument.split_once(" = ").map_or(argument.as_str(), |(field, _)| field);
        call.fields.push(field.trim_start_matches(['%', '?']).to_owned());
    }
    call
}

/// The first column of the table in the README.
fn table() -> BTreeSet<String> {
    let readme = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/README.md")).unwrap();
    let section = readme.split("## Log fields").nth(1).unwrap();
    let rows = section.lines().skip_while(|line| !line.starts_with("|---")).skip(1).take_while(|l| l.starts_with('|'));
    rows.map(|row| row.split('|').nth(1).unwrap().trim().to_owned()).collect()
}

const LEVELS: [&str; 5] = ["error", "warn", "info", "debug", "trace"];
