//! OpenVPN in user space (no DCO): pinned certificates, AES-256-GCM, keepalive of its sample configuration. The hub is a
//! server that passes packets between its clients; direct, B is the server. By UDP, and by TCP 443 where that is the mode.

use anyhow::{Context as _, Result};

use super::Running;
use crate::arena::{Arena, Machine, Mode};

pub(super) fn prepare(arena: &Arena, mode: Mode) -> Result<()> {
    let folder = arena.fresh_folder(FOLDER)?;
    std::fs::create_dir_all(folder.join("clients"))?;
    for machine in mode.machines() {
        let (name, key, crt) = (machine.word(), path(arena, machine, "key"), path(arena, machine, "crt"));
        let subject = format!("/CN={name}");
        let kind = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
        let rest = ["-days", "30", "-subj", &subject, "-keyout", &key, "-out", &crt];
        arena.admin().exec("openssl", kind.into_iter().chain(rest))?;
        let print = arena.admin().exec("openssl", ["x509", "-in", &crt, "-noout", "-fingerprint", "-sha256"])?;
        let print = print.trim().split('=').nth(1).context("openssl shows no fingerprint")?.to_owned();
        std::fs::write(path(arena, machine, "fp"), print)?;
        let address = format!("ifconfig-push {} 255.255.255.0\n", machine.overlay());
        std::fs::write(folder.join("clients").join(name), address)?;
    }
    Ok(())
}

pub(super) fn start(running: &mut Running<'_>, mode: Mode) -> Result<()> {
    let (server, clients): (Machine, &[Machine]) = match mode {
        Mode::Direct => (Machine::B, &[Machine::A]),
        Mode::Hub | Mode::Hub2 | Mode::Tls => (Machine::H, &[Machine::A, Machine::B]),
    };
    let (port, protocol) = if mode == Mode::Tls { ("443", "tcp4-") } else { ("1194", "udp4") };
    let arena = running.arena;
    let config = pins(arena, server, clients, "")?;
    let (ip, folder) = (server.overlay().to_string(), arena.folder(FOLDER).join("clients").display().to_string());
    let protocol_of = |end: &str| if mode == Mode::Tls { format!("{protocol}{end}") } else { protocol.to_owned() };
    let mut words = shared(arena, server, &config, &protocol_of("server"));
    words.extend(["--lport", port, "--mode", "server", "--tls-server", "--dh", "none"].map(str::to_owned));
    words.extend(["--ifconfig", &ip, "255.255.255.0", "--client-to-client"].map(str::to_owned));
    words.extend(["--client-config-dir", &folder, "--keepalive", "10", "60"].map(str::to_owned));
    words.extend(["--push", "topology subnet"].map(str::to_owned));
    running.add(server, arena.spawn(server, "openvpn", words)?);
    for client in clients {
        let config = pins(arena, *client, &[server], &format!("remote {} {port}\n", arena.underlay(server)?))?;
        let mut words = shared(arena, *client, &config, &protocol_of("client"));
        words.extend(["--client", "--nobind", "--connect-retry", "1", "1"].map(str::to_owned));
        words.extend(["--server-poll-timeout", "20"].map(str::to_owned));
        running.add(*client, arena.spawn(*client, "openvpn", words)?);
    }
    Ok(())
}

/// A file with the fingerprints of those whom a machine accepts.
fn pins(arena: &Arena, of: Machine, accepted: &[Machine], more: &str) -> Result<String> {
    let mut text = format!("{more}<peer-fingerprint>\n");
    for machine in accepted {
        text.push_str(&std::fs::read_to_string(path(arena, *machine, "fp"))?);
        text.push('\n');
    }
    text.push_str("</peer-fingerprint>\n");
    let file = path(arena, of, "conf");
    std::fs::write(&file, text)?;
    Ok(file)
}

fn shared(arena: &Arena, machine: Machine, config: &str, protocol: &str) -> Vec<String> {
    let (key, crt, device) = (path(arena, machine, "key"), path(arena, machine, "crt"), machine.interface());
    let words =
        ["--config", config, "--dev", &device, "--dev-type", "tun", "--proto", protocol, "--topology", "subnet"];
    let keys = ["--cert", &crt, "--key", &key, "--data-ciphers", "AES-256-GCM", "--disable-dco"];
    let rest = ["--verb", "1", "--persist-tun", "--persist-key"];
    words.into_iter().chain(keys).chain(rest).map(str::to_owned).collect()
}

fn path(arena: &Arena, machine: Machine, extension: &str) -> String {
    arena.folder(FOLDER).join(format!("{}.{extension}", machine.word())).to_string_lossy().into_owned()
}

const FOLDER: &str = "openvpn";
