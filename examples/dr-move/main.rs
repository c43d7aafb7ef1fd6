//! A service fails over to the DR site by its own address, and back.
//!
//! ```text
//!                     h1           h2              two hubs
//!                       \         /
//!                        -- inet --
//!                  /         |        \
//!           home-nat       dr-nat      office-nat         symmetric NATs: no direct path
//!          /   |    \       |   \        |     \
//!     [home] home-1 home-2 [dr] dr-1  [office] office-1   [in brackets]: gateways, which run flatlan
//! ```
//!
//! home-1 (192.168.1.11) serves; office-1, home-2 and the gateway of the office are its clients, each with a session that
//! it holds. Then home-1 dies, and dr-1 comes up as what replication made of it: with the same address and the same
//! router, on the LAN of another site. `flatlan network move 192.168.1.11/32 --to dr` brings everybody there, its old
//! neighbour included; `--undo` brings them back. What it shows: how long each time until the service answers each client
//! at its new place, and that nobody's address is rewritten. What it does not do: replicate data.
//!
//! `examples/dr-move/run`

#![expect(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr, reason = "a program for people")]

mod service;
#[path = "../story.rs"]
mod story;
#[path = "../../tests/long.d/twin.rs"]
mod twin;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use flatlan_lab::{Lab, Nat, SiteSpec};
use service::{Client, Service, service_at};
use story::Story;
use twin::Twin;

fn main() -> ExitCode {
    flatlan_lab::enter().unwrap();
    let mut story = Story::default();
    story.say(
        "Three sites behind NAT, home, dr and office, and two hubs. Gateways run flatlan, other machines nothing.",
    );
    let lab = Lab::builder().flatlan(env!("CARGO_BIN_EXE_flatlan")).hub("h1").hub("h2");
    let site = |name, hosts| SiteSpec::new(name).nat(Nat::Symmetric).hosts(hosts);
    let lab = lab.site_with(site("home", 2)).site_with(site("dr", 1)).site_with(site("office", 1)).build().unwrap();
    lab.bring_up().unwrap();

    let twin = Twin::new(&lab, "home", "dr");
    let at = service_at(twin.ip());
    story.say(format!("home-1 serves on {at}. dr-1, on the LAN of dr, is off."));
    let service = Service::start(twin.home(), "home-1", at);
    let host = |site: &str, number: usize| {
        let host = lab.site(site).unwrap().hosts().get(number).unwrap();
        (host.namespace(), host.addresses()[0].to_string())
    };
    let office = lab.site("office").unwrap();
    let clients = [
        ("office-1", host("office", 0)),
        ("home-2", host("home", 1)),
        ("the office's gateway", (office.gateway(), office.virtual_ip().to_string())),
    ];
    let clients = clients.map(|(name, (machine, own))| (name, own, Client::start(machine, at)));
    story.say("Its clients have their first answers:");
    let begun = Instant::now();
    for (name, own, client) in &clients {
        let answer = client.wait_answer("home-1", begun, PATIENCE).unwrap();
        story.claim(format!("{name} is answered by home-1, which sees {own}"), answer.seen == *own);
    }

    story.say("home-1 dies. dr-1 comes up as what replication made of it: same address, same router, another site.");
    twin.fail_over(twin.home(), twin.away());
    drop(service);
    let service = Service::start(twin.away(), "dr-1", at);
    let prefix = format!("{}/32", twin.ip());
    moved(&mut story, &lab, &["network", "move", &prefix, "--to", "dr"], "dr-1", &clients);

    story.say("home is repaired: dr-1 is switched off, home-1 comes up.");
    twin.fail_over(twin.away(), twin.home());
    drop(service);
    let _service = Service::start(twin.home(), "home-1", at);
    moved(&mut story, &lab, &["network", "move", "--undo"], "home-1", &clients);
    story.end()
}

/// The address moves, and the service answers every client where it is now.
fn moved(story: &mut Story, lab: &Lab, command: &[&str], owner: &str, clients: &[(&str, String, Client)]) {
    story.say(format!("flatlan {}", command.join(" ")));
    let at = Instant::now();
    let said = lab.administer(command).unwrap();
    let took = at.elapsed();
    for line in said.stdout.lines() {
        story.say(format!("    {line}"));
    }
    story.say(format!("The command took {} ms. Counted from its beginning:", took.as_millis()));
    for (name, own, client) in clients {
        match client.wait_answer(owner, at, PATIENCE) {
            Err(last) => story.claim(format!("{name} is answered by {owner}; {last}"), false),
            Ok(answer) => {
                let what = format!(
                    "{name} is answered by {owner}, which sees {}, in session {},",
                    answer.seen, answer.session
                );
                story.claim_within(&what, answer.at - at, LIMIT);
                story.claim(format!("that is the own address of {name}"), answer.seen == *own);
            }
        }
    }
}

/// From the command to the first answer of the new owner.
const LIMIT: Duration = Duration::from_secs(2);
const PATIENCE: Duration = Duration::from_secs(30);
