//! The hub's machine: attachments, labels, forwarding, presence, link state.
