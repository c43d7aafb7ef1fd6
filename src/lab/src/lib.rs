//! A whole internet in network namespaces on one machine.
