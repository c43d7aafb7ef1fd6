//! Whether this machine forwards IPv4 packets between its devices, as a gateway must.
//!
//! IPv6 is left as it is: a machine that forwards it takes no routes from routers any more, and may lose its own way out.

use std::fs;

use crate::Why;

/// Forwarding that was switched on here, until it is dropped.
#[derive(Debug)]
pub struct Forwarding(());

impl Forwarding {
    /// Switches it on; nothing where it was on.
    ///
    /// # Errors
    /// Where it is not permitted: the setting is root's, and a sandbox may hold it fixed.
    pub fn enable() -> Result<Option<Self>, Why> {
        if forwards() {
            return Ok(None);
        }
        fs::write(SETTING, "1")?;
        Ok(Some(Self(())))
    }
}

impl Drop for Forwarding {
    fn drop(&mut self) {
        if let Err(error) = fs::write(SETTING, "0") {
            tracing::warn!(reason = %error, "forwarding could not be switched off again");
        }
    }
}

fn forwards() -> bool {
    fs::read_to_string(SETTING).is_ok_and(|text| text.trim() == "1")
}

const SETTING: &str = "/proc/sys/net/ipv4/ip_forward";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::in_empty_netns;

    #[test]
    fn forwarding_is_switched_on_and_off_again_and_left_alone_where_it_was_on() {
        in_empty_netns(|| {
            assert!(!forwards());
            let forwarding = Forwarding::enable().unwrap();
            assert!(forwarding.is_some() && forwards());
            assert!(Forwarding::enable().unwrap().is_none());
            drop(forwarding);
            assert!(!forwards());
        });
    }
}
