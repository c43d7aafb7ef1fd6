//! What the admin signed: records, head, chain, claims, tokens.
