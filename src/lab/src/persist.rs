//! A lab that stays: `flatlan lab up` starts it, later commands find it, `flatlan lab down` ends it.
//!
//! A process in the background, the keeper, owns the lab and listens on a socket in the lab's folder; a command is one
//! line of JSON there, and so is the answer. The keeper is the same program: `up` runs it as `flatlan lab keep`, which
//! calls [`keep`]. When the keeper ends, however it ends, the lab is gone as every lab is.
//!
//! Running a program inside the lab is done by the calling process itself (`nsenter`), so terminal, signals and exit
//! code are those of any program.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Write};
use std::os::unix::fs::FileTypeExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::LabError;
use crate::lab::Lab;
use crate::nat::Nat;
use crate::run_dir;
use crate::topology::{HubSpec, SiteSpec};

/// What a lab that stays consists of.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The `flatlan` binary: runs hubs, nodes and the keeper.
    pub flatlan: PathBuf,
    /// The prefix of its namespaces; another one makes another lab.
    pub name: String,
    /// How many hubs: `h1`, `h2`, ...
    pub hubs: u8,
    /// How many sites: `a`, `b`, ... with one host each.
    pub sites: u8,
    /// The kind of router in front of each.
    pub nat: Nat,
}

impl Plan {
    /// Two hubs and three sites behind cone NATs.
    #[must_use]
    pub fn new(flatlan: impl Into<PathBuf>) -> Self {
        Self { flatlan: flatlan.into(), name: NAME.to_owned(), hubs: 2, sites: 3, nat: Nat::Cone }
    }

    /// The command line that runs its keeper, behind the binary's name.
    #[must_use]
    pub fn keeper_args(&self) -> Vec<String> {
        let mut args = ["lab", "keep", "--name", &self.name].map(str::to_owned).to_vec();
        args.extend(["--hubs".to_owned(), self.hubs.to_string(), "--sites".to_owned(), self.sites.to_string()]);
        args.extend(["--nat".to_owned(), self.nat.to_string()]);
        args
    }
}

/// A command to a lab that stays.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "do", content = "what")]
pub enum Action {
    /// Cuts a hub or site off in silence; `a/h1` cuts the two off from each other, `direct` all sites.
    Cut(String),
    /// Ends the lab.
    Down,
    /// Asks for the command line that enters a machine.
    Enter(String),
    /// Freezes a hub's or a node's process.
    Freeze(String),
    /// Mends the wires of a hub or site, lets it go on if frozen, runs it again if dead; `direct` lets sites reach
    /// each other; `all` everything.
    Heal(String),
    /// Kills a hub's or a node's process without warning.
    Kill(String),
    /// Asks what there is.
    Show,
}

/// Starts a keeper for this plan and returns when its lab is up. Progress goes to `out`.
///
/// # Errors
/// [`LabError::AlreadyUp`]; [`LabError::Refused`] with what the keeper said where the lab does not come up.
pub fn up(plan: &Plan, out: &mut dyn Write) -> Result<(), LabError> {
    if is_up(&plan.name)? {
        return Err(LabError::AlreadyUp(plan.name.clone()));
    }
    let log = keeper_log(&plan.name)?;
    let stderr = File::create(&log).map_err(LabError::io("create", &log))?;
    let mut command = Command::new("setsid");
    command.arg(&plan.flatlan).args(plan.keeper_args());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(stderr);
    let mut child = command.spawn().map_err(LabError::io("run", &plan.flatlan))?;
    let progress = BufReader::new(child.stdout.take().unwrap_or_else(|| unreachable!("standard output is a pipe")));
    for line in progress.lines().map_while(Result::ok) {
        if line == READY {
            return Ok(());
        }
        let _ = writeln!(out, "{line}");
    }
    let status = child.wait().map_err(LabError::io("wait for", &plan.flatlan))?;
    let stderr = std::fs::read_to_string(&log).unwrap_or_default().trim().to_owned();
    // its last line is its error; without one it died
    match (stderr.lines().last().and_then(|line| line.strip_prefix("error: ")), status.code()) {
        (Some(why), Some(code)) => {
            Err(LabError::Refused { why: why.to_owned(), code: u8::try_from(code).unwrap_or(1) })
        }
        _ => Err(LabError::Command { command: "flatlan lab keep".to_owned(), status, stderr }),
    }
}

/// Builds the lab of a plan, brings it up, and serves commands until one says down. This is what the keeper does.
///
/// # Errors
/// Where the lab does not come up.
pub fn keep(plan: &Plan, out: &mut dyn Write) -> Result<(), LabError> {
    let lab = build(plan)?;
    let path = lab.folder().join(SOCKET);
    let listener = UnixListener::bind(&path).map_err(LabError::io("listen on", &path))?;
    let _ = writeln!(out, "{} machines: {}", lab.machines().len(), names(&lab).join(" "));
    lab.bring_up()?;
    for site in lab.sites() {
        let _ = writeln!(out, "{} is up as {}", site.name(), site.virtual_ip());
    }
    let _ = writeln!(out, "{READY}");
    let _ = out.flush();
    serve(&lab, &listener)
}

/// Serves commands on a lab that is up, until one says down.
///
/// # Errors
/// Where the socket fails.
fn serve(lab: &Lab, listener: &UnixListener) -> Result<(), LabError> {
    loop {
        let (stream, _) = listener.accept().map_err(LabError::io("accept on", SOCKET))?;
        let mut line = String::new();
        if BufReader::new(&stream).read_line(&mut line).is_err() {
            continue;
        }
        let Ok(action) = serde_json::from_str::<Action>(&line) else {
            let _ = answer(&stream, &Answer::Failed { why: "not a command".to_owned(), code: 2 });
            continue;
        };
        let done = perform(lab, &action)
            .map_or_else(|error| Answer::Failed { why: error.explained(), code: error.exit_code() }, Answer::Done);
        let _ = answer(&stream, &done);
        if action == Action::Down {
            return Ok(());
        }
    }
}

/// Gives a command to the lab of this name.
///
/// # Errors
/// [`LabError::NotUp`] where no such lab is up; [`LabError::Refused`] with what the lab said where it would not.
pub fn ask(name: &str, action: &Action) -> Result<Value, LabError> {
    let path = run_dir::base()?.join(name).join(SOCKET);
    let there = std::fs::metadata(&path).is_ok_and(|meta| meta.file_type().is_socket());
    let stream = UnixStream::connect(&path).ok().filter(|_| there);
    let mut stream = stream.ok_or_else(|| LabError::NotUp(name.to_owned()))?;
    let text = serde_json::to_string(action).unwrap_or_default();
    writeln!(stream, "{text}").map_err(LabError::io("write to", &path))?;
    let mut line = String::new();
    BufReader::new(&stream).read_line(&mut line).map_err(LabError::io("read from", &path))?;
    match serde_json::from_str(&line) {
        Ok(Answer::Done(value)) => Ok(value),
        Ok(Answer::Failed { why, code }) => Err(LabError::Refused { why, code }),
        Err(_) => Err(LabError::Unexpected { command: text, answer: line }),
    }
}

/// Runs a program on a machine of the lab of this name, with this process's own terminal, and returns how it ended.
///
/// # Errors
/// As [`ask`]; [`LabError::Io`] where the program cannot be run.
pub fn exec(name: &str, machine: &str, words: &[String]) -> Result<ExitStatus, LabError> {
    let entry = ask(name, &Action::Enter(machine.to_owned()))?;
    let entry: Vec<String> = serde_json::from_value(entry).unwrap_or_default();
    let Some((program, args)) = entry.split_first() else { return Err(LabError::UnknownName(machine.to_owned())) };
    let status = Command::new(program).args(args).args(words).status();
    status.map_err(LabError::io("run", program))
}

/// Ends the lab of this name and removes what it left, also where its keeper is dead.
///
/// # Errors
/// [`LabError::NotUp`] where there is none.
pub fn down(name: &str) -> Result<(), LabError> {
    let folder = run_dir::base()?.join(name);
    let there = folder.exists();
    let asked = ask(name, &Action::Down);
    run_dir::wait_free(&folder);
    run_dir::sweep()?;
    let _ = std::fs::remove_file(keeper_log(name)?);
    if there { Ok(()) } else { asked.map(drop) }
}

/// The name of the lab that stays, unless another is asked for.
pub const NAME: &str = "lab";

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Answer {
    Done(Value),
    Failed { why: String, code: u8 },
}

/// What the keeper says to nobody else.
fn keeper_log(name: &str) -> Result<PathBuf, LabError> {
    Ok(run_dir::base()?.join(format!("{name}.keeper.log")))
}

fn build(plan: &Plan) -> Result<Lab, LabError> {
    let mut builder = Lab::builder().flatlan(&plan.flatlan).prefix(&plan.name);
    for number in 1..=plan.hubs {
        builder = builder.hub_with(HubSpec::new(&format!("h{number}")));
    }
    for letter in ('a'..='z').take(plan.sites.into()) {
        builder = builder.site_with(SiteSpec::new(&letter.to_string()).nat(plan.nat).hosts(1));
    }
    builder.build()
}

fn perform(lab: &Lab, action: &Action) -> Result<Value, LabError> {
    match action {
        Action::Cut(what) if what == DIRECT => lab.forbid_direct().map(drop)?,
        Action::Cut(what) => match what.split_once('/') {
            Some((one, other)) => lab.cut_between(one, other).map(drop)?,
            None => lab.cut(what).map(drop)?,
        },
        Action::Down => {}
        Action::Enter(machine) => return Ok(lab.machine(machine)?.enter_command().into()),
        Action::Freeze(what) => lab.freeze(what).map(drop)?,
        Action::Heal(what) if what == DIRECT => lab.allow_direct().map(drop)?,
        Action::Heal(what) if what == ALL => {
            lab.heal_all()?;
            let names = lab.hubs().map(|hub| hub.name().to_owned());
            for name in names.chain(lab.sites().map(|site| site.name().to_owned())) {
                revive(lab, &name)?;
            }
        }
        Action::Heal(what) => match what.split_once('/') {
            Some((one, other)) => lab.heal_between(one, other).map(drop)?,
            None => {
                lab.heal(what)?;
                revive(lab, what)?;
            }
        },
        Action::Kill(what) => lab.kill(what).map(drop)?,
        Action::Show => return Ok(show(lab)),
    }
    Ok(Value::Null)
}

/// Lets a frozen process go on and runs a dead one again.
fn revive(lab: &Lab, name: &str) -> Result<(), LabError> {
    let process = lab.process(name)?;
    process.thaw();
    if !process.is_running() {
        lab.restart(name)?;
    }
    Ok(())
}

fn show(lab: &Lab) -> Value {
    let faults: Vec<String> = lab.faults().iter().map(|fault| format!("{fault:?}")).collect();
    serde_json::json!({ "machines": names(lab), "folder": lab.folder(), "faults": faults })
}

fn names(lab: &Lab) -> Vec<String> {
    lab.machines().into_iter().map(|machine| lab.short_name(machine).to_owned()).collect()
}

fn answer(mut stream: &UnixStream, answer: &Answer) -> io::Result<()> {
    writeln!(stream, "{}", serde_json::to_string(answer)?)
}

/// Where a path of the lab's socket is, in its folder.
const SOCKET: &str = "control";
/// The last line that a keeper prints.
const READY: &str = "ready";
/// Names all direct paths between sites.
const DIRECT: &str = "direct";
/// Names everything.
const ALL: &str = "all";

/// Whether a lab of this name is up.
///
/// # Errors
/// Where the folder of the labs cannot be read.
pub fn is_up(name: &str) -> Result<bool, LabError> {
    Ok(UnixStream::connect(run_dir::base()?.join(name).join(SOCKET)).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_one_line_of_json() {
        let text = serde_json::to_string(&Action::Cut("a/h1".to_owned())).unwrap();
        assert_eq!(text, r#"{"do":"cut","what":"a/h1"}"#);
        assert_eq!(serde_json::from_str::<Action>(r#"{"do":"down"}"#).unwrap(), Action::Down);
    }

    #[test]
    fn nobody_answers_for_a_lab_that_is_not_up() {
        assert!(matches!(ask("no-such-lab", &Action::Show), Err(LabError::NotUp(_))));
    }
}
