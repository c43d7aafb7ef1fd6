//! Link state: which hubs reach which, and the way to each.
//!
//! Every hub floods one signed statement of its own adjacencies ([`flatlan_relay::Lsa`]); [`Lsdb`] keeps
//! the newest of each; [`routes`] finds the shortest ways by measured round trip (Dijkstra). A link
//! counts only if both its ends state it, and only hubs that serve a network carry its paths.
//!
//! Who is attached where is not here: that is `presence`.

mod lsdb;
mod spf;

pub(crate) use self::{
    lsdb::{Lsdb, News},
    spf::{Carry, Route, routes},
};
