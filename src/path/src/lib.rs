//! Candidates, probes, scores and failover of one peer.
