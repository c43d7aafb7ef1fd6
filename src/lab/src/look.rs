//! Looking at a machine from outside the overlay: what sockets it has, and how fast TCP goes.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::error::LabError;
use crate::lab::Lab;
use crate::namespace::Namespace;

/// A TCP connection as one of its ends sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Socket {
    /// This end.
    pub local: SocketAddr,
    /// The other end.
    pub peer: SocketAddr,
}

/// The established TCP connections of a machine, as `ss -tn` shows them.
///
/// # Errors
/// [`LabError::ProgramMissing`] without `ss`.
pub fn sockets(machine: &Namespace) -> Result<Vec<Socket>, LabError> {
    let text = machine.exec("ss", ["-tnH", "state", "established"])?;
    Ok(text.lines().filter_map(parse_socket).collect())
}

/// Receive queue, send queue, local, peer.
fn parse_socket(line: &str) -> Option<Socket> {
    let mut ends = line.split_whitespace().skip(2).map(|word| word.parse::<SocketAddr>().map(unmapped));
    Some(Socket { local: ends.next()?.ok()?, peer: ends.next()?.ok()? })
}

fn unmapped(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Measures TCP from one machine to an address of another with iperf3, in megabits per second at the receiver.
///
/// # Errors
/// [`LabError::ProgramMissing`] without iperf3; [`LabError::Command`] where it fails.
pub fn iperf3(
    lab: &Lab,
    from: &Namespace,
    to: &Namespace,
    address: IpAddr,
    seconds: u32,
    args: &[&str],
) -> Result<f64, LabError> {
    let mut server = Namespace::command("iperf3");
    server.args(["--server", "--one-off", "--forceflush", "--bind", &address.to_string()]);
    let log = lab.folder().join("log").join(format!("{}.iperf3.log", lab.short_name(to)));
    let server = to.spawn("iperf3", server, &log)?;
    server.wait_line("Server listening", Duration::from_secs(10))?;
    let mut client = Namespace::command("iperf3");
    client.args(["--json", "--time", &seconds.to_string(), "--client", &address.to_string()]).args(args);
    let outcome = from.output_within(client, Duration::from_secs(u64::from(seconds) + 20))?.success()?;
    let rate = outcome.json()?.pointer("/end/sum_received/bits_per_second").and_then(serde_json::Value::as_f64);
    let rate = rate.ok_or(LabError::Unexpected { command: outcome.command, answer: outcome.stdout })?;
    Ok(rate / 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_ss_are_read_in_both_families() {
        let line = "0      0      10.77.0.1:22   10.77.0.2:40112 ";
        let socket = Socket { local: "10.77.0.1:22".parse().unwrap(), peer: "10.77.0.2:40112".parse().unwrap() };
        assert_eq!(parse_socket(line), Some(socket));
        assert_eq!(parse_socket("0 0 [::ffff:10.77.0.1]:22 [::ffff:10.77.0.2]:40112"), Some(socket));
        assert_eq!(parse_socket("Recv-Q Send-Q Local Address:Port"), None);
    }
}
