//! Runs a hub: driver, configuration, admin page.
