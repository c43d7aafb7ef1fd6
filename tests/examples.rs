//! The example configurations in `deploy/` say what holds when nothing is said.
//!
//! Each is read as the program reads it, once as it stands and once with every commented setting turned on:
//! both must equal the defaults, and every field must be there, so that an example cannot fall behind.

use flatlan::config::NodeFile;
use flatlan_hubd::HubFile;

#[test]
fn the_nodes_example_equals_the_defaults() {
    let text = include_str!("../deploy/node.example.toml");
    assert_eq!(toml::from_str::<NodeFile>(text).unwrap(), NodeFile::default());
    assert_eq!(toml::from_str::<NodeFile>(&turned_on(text)).unwrap(), NodeFile::default());
    every_field_is_shown(text, &toml::Value::try_from(NodeFile::default()).unwrap(), &[]);
}

#[test]
fn the_hubs_example_equals_the_defaults() {
    let text = include_str!("../deploy/hub.example.toml");
    assert_eq!(toml::from_str::<HubFile>(text).unwrap(), HubFile::default());
    let on: HubFile = toml::from_str(&turned_on(text)).unwrap();
    // these two have no value that means "absent"
    assert!(on.udp.is_some() && on.admin.is_some_and(|admin| admin.ip().is_loopback()));
    assert_eq!(HubFile { udp: None, admin: None, ..on }, HubFile::default());
    every_field_is_shown(text, &toml::Value::try_from(HubFile::default()).unwrap(), &["udp", "admin"]);
}

#[test]
fn a_setting_that_does_not_exist_is_refused() {
    assert!(toml::from_str::<NodeFile>("prot = 51820").is_err());
    assert!(toml::from_str::<HubFile>("allow_all = true").is_err());
}

/// The example with its commented settings turned on: a setting is a line `#name = value`.
fn turned_on(text: &str) -> String {
    text.lines().map(|line| line.strip_prefix('#').filter(|rest| is_setting(rest)).unwrap_or(line)).fold(
        String::new(),
        |mut all, line| {
            all.push_str(line);
            all.push('\n');
            all
        },
    )
}

fn is_setting(line: &str) -> bool {
    line.split_once(" = ")
        .is_some_and(|(name, _)| !name.is_empty() && name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'))
}

fn every_field_is_shown(text: &str, defaults: &toml::Value, more: &[&str]) {
    let settings = turned_on(text);
    let fields = defaults.as_table().expect("a file is a table").keys().map(String::as_str).chain(more.iter().copied());
    for field in fields {
        assert!(
            settings.lines().any(|line| line.starts_with(&format!("{field} = "))),
            "`{field}` is not in the example"
        );
    }
}
