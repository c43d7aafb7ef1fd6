//! Whether this machine tells the hosts of a LAN to send to each other what they sent to it (ICMP redirects, RFC 792).
//!
//! A gateway that forwards a packet back into the LAN that it came from says so to its sender, who then passes the
//! gateway by for five minutes. An address that moved here is best sent by the gateway: when it moves on, nobody needs to be told.
//! The kernel has no such setting for IPv6, and a host may have been told before: such hosts are told again, and answered
//! where they look for the address.

use std::{collections::BTreeSet, fs, io};

use crate::Why;

/// Devices on which no redirects are sent, by level. What was switched off by this is switched on again when it is
/// dropped. IPv4 only.
#[derive(Debug, Default)]
pub struct Redirects {
    switched_off: BTreeSet<String>,
}

impl Redirects {
    /// Sees to it that none are sent on these devices; leaves the others as they were before. A device that is gone
    /// sends none.
    ///
    /// # Errors
    /// They are sent on one of them, and must not be stopped: the setting is root's, and a sandbox may hold it fixed.
    pub fn stop_on(&mut self, mut wanted: BTreeSet<String>) -> Result<(), Why> {
        if !wanted.is_empty() {
            // a device sends them where either allows it
            wanted.insert(ALL.to_owned());
        }
        for device in self.switched_off.extract_if(.., |device| !wanted.contains(device)) {
            switch_on(&device);
        }
        let mut done = Ok(());
        for device in wanted {
            match switch_off(&device) {
                Ok(false) => {}
                Ok(true) => {
                    self.switched_off.insert(device);
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => done = done.and_then(|()| Err(error.into())),
            }
        }
        done
    }
}

impl Drop for Redirects {
    fn drop(&mut self) {
        self.switched_off.iter().for_each(|device| switch_on(device));
    }
}

/// Whether it was on.
fn switch_off(device: &str) -> io::Result<bool> {
    if fs::read_to_string(setting(device))?.trim() == "0" {
        return Ok(false);
    }
    fs::write(setting(device), "0").map(|()| true)
}

fn switch_on(device: &str) {
    match fs::write(setting(device), "1") {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(reason = %error, "ICMP redirects could not be switched on again on the LAN");
        }
        _ => {}
    }
}

fn setting(device: &str) -> String {
    format!("/proc/sys/net/ipv4/conf/{device}/send_redirects")
}

/// The kernel's word for all devices.
const ALL: &str = "all";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::in_empty_netns;

    fn sends(device: &str) -> bool {
        fs::read_to_string(setting(device)).unwrap() == "1\n"
    }

    #[test]
    fn redirects_are_stopped_where_that_is_wanted_and_are_as_they_were_afterwards() {
        in_empty_netns(|| {
            let on = |devices: &[&str]| devices.iter().map(|device| (*device).to_owned()).collect();
            let mut redirects = Redirects::default();
            redirects.stop_on(on(&[])).unwrap();
            assert!(sends("lo") && sends(ALL), "nothing is wanted");
            redirects.stop_on(on(&["lo", "nobody"])).unwrap();
            assert!(!sends("lo") && !sends(ALL));
            fs::write(setting("lo"), "1").unwrap();
            redirects.stop_on(on(&["lo"])).unwrap();
            assert!(!sends("lo"), "somebody switched them on");
            redirects.stop_on(on(&[])).unwrap();
            assert!(sends("lo") && sends(ALL));
            redirects.stop_on(on(&["lo"])).unwrap();
            drop(redirects);
            assert!(sends("lo") && sends(ALL));

            fs::write(setting("lo"), "0").unwrap();
            let mut redirects = Redirects::default();
            redirects.stop_on(on(&["lo"])).unwrap();
            drop(redirects);
            assert!(!sends("lo") && sends(ALL), "they were off already");
        });
    }
}
