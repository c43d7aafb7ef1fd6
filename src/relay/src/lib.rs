//! The wire between node and hub, and hub and hub.
