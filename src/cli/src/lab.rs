//! `flatlan lab ...`: a whole internet in network namespaces, from the [`flatlan_lab`] library.

use std::{path::PathBuf, str::FromStr as _};

use flatlan_lab::{LabError, Nat, demo, persist};
use flatlan_os::ExitClass;

use crate::{
    args::{LabArgs, LabCommand},
    failure::Failure,
    output,
};

/// `flatlan lab`.
pub(crate) fn run(args: LabArgs) -> Result<(), Failure> {
    match args.command {
        LabCommand::Demo => {
            flatlan_lab::enter().map_err(failure)?;
            demo::run(&own_binary()?, &mut std::io::stdout()).map_err(failure)?;
        }
        LabCommand::Up { sites, hubs, nat } => {
            let nat = Nat::from_str(&nat).map_err(Failure::wrong)?;
            let plan = persist::Plan { sites, hubs, nat, ..persist::Plan::new(own_binary()?) };
            persist::up(&plan, &mut std::io::stderr()).map_err(failure)?;
        }
        LabCommand::Keep { name, sites, hubs, nat } => {
            flatlan_lab::enter().map_err(failure)?;
            let nat = Nat::from_str(&nat).map_err(Failure::wrong)?;
            let plan = persist::Plan { name, sites, hubs, nat, ..persist::Plan::new(own_binary()?) };
            persist::keep(&plan, &mut std::io::stdout()).map_err(failure)?;
        }
        LabCommand::Exec { host, command } => {
            let status = persist::exec(LAB, &host, &command).map_err(failure)?;
            std::process::exit(status.code().unwrap_or(1));
        }
        LabCommand::Cut { what } => ask(&persist::Action::Cut(what))?,
        LabCommand::Heal { what } => ask(&persist::Action::Heal(what))?,
        LabCommand::Kill { what } => ask(&persist::Action::Kill(what))?,
        LabCommand::Freeze { what } => ask(&persist::Action::Freeze(what))?,
        LabCommand::Show { json } => show(json)?,
        LabCommand::Down => persist::down(LAB).map_err(failure)?,
    }
    Ok(())
}

fn ask(action: &persist::Action) -> Result<(), Failure> {
    let answer = persist::ask(LAB, action).map_err(failure)?;
    if !answer.is_null() {
        output::result(answer);
    }
    Ok(())
}

fn show(json: bool) -> Result<(), Failure> {
    let lab = persist::ask(LAB, &persist::Action::Show).map_err(failure)?;
    if json {
        output::result(serde_json::to_string_pretty(&lab).unwrap_or_default());
        return Ok(());
    }
    let words = |key: &str| {
        let words = lab.get(key).and_then(serde_json::Value::as_array).into_iter().flatten();
        words.filter_map(serde_json::Value::as_str).collect::<Vec<_>>()
    };
    output::result(format!("machines {}", words("machines").join(" ")));
    for fault in words("faults") {
        output::result(format!("fault    {fault}"));
    }
    output::result(format!("folder   {}", lab.get("folder").and_then(serde_json::Value::as_str).unwrap_or("-")));
    Ok(())
}

fn own_binary() -> Result<PathBuf, Failure> {
    std::env::current_exe().map_err(|error| Failure::failed(format!("cannot find this program's own file: {error}")))
}

fn failure(error: LabError) -> Failure {
    let class = match error.exit_code() {
        2 => ExitClass::Wrong,
        3 => ExitClass::NotPermitted,
        4 => ExitClass::Unreachable,
        _ => ExitClass::Failed,
    };
    Failure::new(class, error.explained())
}

/// The one lab that stays.
const LAB: &str = "lab";
