//! The `flatlan` binary.

fn main() {}
