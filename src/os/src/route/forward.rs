//! Whether this machine forwards IPv4 packets between its devices, as a gateway must.
//!
//! IPv6 is left as it is: a machine that forwards it takes no routes from routers any more, and may lose its own way out.

use std::fs;

use crate::Why;

/// Forwarding, by level. What was switched on by this is switched off when it is dropped.
#[derive(Debug, Default)]
pub struct Forwarding {
    switched_on: bool,
}

impl Forwarding {
    /// Sees to it that the machine forwards, where that is wanted; else leaves it as it was before.
    ///
    /// # Errors
    /// It does not, and must not be made to: the setting is root's, and a sandbox may hold it fixed.
    pub fn set(&mut self, wanted: bool) -> Result<Found, Why> {
        if !wanted {
            *self = Self::default();
            return Ok(Found::AsWanted);
        }
        if fs::read_to_string(SETTING)?.trim() == "1" {
            return Ok(Found::AsWanted);
        }
        fs::write(SETTING, "1")?;
        self.switched_on = true;
        Ok(Found::Off)
    }
}

/// How the setting was before it was set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// Nothing had to be done.
    AsWanted,
    /// It was off.
    Off,
}

impl Drop for Forwarding {
    fn drop(&mut self) {
        if self.switched_on
            && let Err(error) = fs::write(SETTING, "0")
        {
            tracing::warn!(reason = %error, "forwarding could not be switched off again");
        }
    }
}

const SETTING: &str = "/proc/sys/net/ipv4/ip_forward";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::in_empty_netns;

    fn forwards() -> bool {
        fs::read_to_string(SETTING).unwrap() == "1\n"
    }

    #[test]
    fn forwarding_is_switched_on_and_off_again_and_left_alone_where_it_was_on() {
        in_empty_netns(|| {
            let (mut ours, mut later) = (Forwarding::default(), Forwarding::default());
            assert_eq!(ours.set(true).unwrap(), Found::Off);
            assert_eq!(later.set(true).unwrap(), Found::AsWanted);
            assert!(forwards());
            drop(later);
            assert!(forwards(), "it was on already");
            fs::write(SETTING, "0").unwrap();
            assert_eq!(ours.set(true).unwrap(), Found::Off, "somebody switched it off");
            assert!(forwards());
            ours.set(false).unwrap();
            assert!(!forwards());
        });
    }
}
