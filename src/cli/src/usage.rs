//! A command line that is wrong, in one line like every other failure.

use clap::{CommandFactory as _, error::ErrorKind};

use crate::{args::Cli, failure::Failure};

/// What the parser says, as `error: command: why: what to do`.
pub(crate) fn wrong(error: &clap::Error, words: impl IntoIterator<Item = String>) -> Failure {
    let command = command(words);
    let see = format!("see `{command} --help`");
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        return Failure::wrong(format!("{command}: more words are needed: {see}"));
    }
    let text = error.render().to_string();
    let lines =
        text.lines().map(str::trim).take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more"));
    let (tips, why): (Vec<&str>, Vec<&str>) =
        lines.filter(|line| !line.is_empty()).partition(|line| line.starts_with("tip:"));
    let why = why.join(" ");
    let why = why.strip_prefix("error: ").unwrap_or(&why);
    let tip = tips.first().map_or_else(String::new, |tip| format!("{}, or ", tip.trim_start_matches("tip:").trim()));
    Failure::wrong(format!("{command}: {why}: {tip}{see}"))
}

/// The command that was meant, without its arguments.
fn command(words: impl IntoIterator<Item = String>) -> String {
    let root = Cli::command();
    let (mut at, mut said) = (&root, root.get_name().to_owned());
    for word in words.into_iter().skip(1) {
        let Some(next) = at.find_subcommand(&word) else { break };
        at = next;
        said = format!("{said} {word}");
    }
    said
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_visible_command_has_a_help_with_an_example_and_takes_a_state_directory() {
        let mut seen = 0;
        let root = Cli::command();
        let mut queue: Vec<(String, &clap::Command)> = vec![(String::new(), &root)];
        while let Some((path, command)) = queue.pop() {
            let visible = command.get_subcommands().filter(|sub| !sub.is_hide_set());
            queue.extend(visible.map(|sub| (format!("{path} {}", sub.get_name()), sub)));
            if path.is_empty() {
                continue;
            }
            seen += 1;
            assert!(command.get_about().is_some(), "{path} says nothing");
            let examples = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(examples.contains("Example") && examples.contains("flatlan "), "{path} has no example");
            let lab = path.starts_with(" lab");
            let takes_state = lab || command.get_arguments().any(|argument| argument.get_long() == Some("state"));
            assert!(takes_state || command.has_subcommands(), "{path} takes no --state");
        }
        assert!(seen > 25, "{seen}");
    }
}
