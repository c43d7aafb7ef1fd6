//! The node's control machine: attachments, roster, presence, candidates.
