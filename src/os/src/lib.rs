//! TUN, UDP, TLS streams, routes and files: the only crate that touches the kernel unsafely.
