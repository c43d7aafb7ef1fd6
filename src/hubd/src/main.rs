//! The `flatlan-hub` binary.

fn main() {}
