//! WireGuard sessions: the trait, its boringtun engine, lanes and the sealed handshake.
