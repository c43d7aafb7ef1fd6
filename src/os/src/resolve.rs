//! From a name to the endpoints it stands for, with a deadline.
//!
//! All addresses are kept, in the order of RFC 6724 as the system's resolver gives them, the two families
//! interleaved as RFC 8305 wants it: whoever dials tries them in turn. Caching is the caller's business.

use std::time::Duration;

use flatlan_types::{Endpoint, HostPort};

use crate::{ExitClass, Why};

/// Every endpoint of `target`, without duplicates, at least one. A literal address asks nobody.
///
/// # Errors
/// Where the name has no address, or no answer came in time.
pub async fn resolve(target: &HostPort, timeout: Duration) -> Result<Vec<Endpoint>, ResolveError> {
    if let Some(endpoint) = target.literal() {
        return Ok(vec![endpoint]);
    }
    let host = || target.host().to_owned();
    let lookup = tokio::net::lookup_host((target.host(), target.port()));
    let found = tokio::time::timeout(timeout, lookup)
        .await
        .map_err(|_| ResolveError::TimedOut { host: host(), timeout })?
        .map_err(|e| ResolveError::Failed { host: host(), why: e.into() })?;
    let endpoints = interleave(found.map(Endpoint::from));
    if endpoints.is_empty() { Err(ResolveError::NoAddress { host: host() }) } else { Ok(endpoints) }
}

/// The endpoints without duplicates, the families in turn, the first one's family first.
pub(crate) fn interleave(endpoints: impl IntoIterator<Item = Endpoint>) -> Vec<Endpoint> {
    let mut all: Vec<Endpoint> = Vec::new();
    for endpoint in endpoints {
        if !all.contains(&endpoint) {
            all.push(endpoint);
        }
    }
    let first_is_v6 = all.first().is_some_and(|e| e.socket_addr().is_ipv6());
    let (first, second): (Vec<Endpoint>, Vec<_>) = all.iter().partition(|e| e.socket_addr().is_ipv6() == first_is_v6);
    let (mut first, mut second) = (first.into_iter(), second.into_iter());
    let mut out = Vec::with_capacity(all.len());
    loop {
        let pair = [first.next(), second.next()];
        if pair == [None, None] {
            return out;
        }
        out.extend(pair.into_iter().flatten());
    }
}

/// Why a name has no endpoint.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    /// The resolver said no.
    #[error("cannot resolve {host}: {why}")]
    Failed {
        /// The name.
        host: String,
        /// The resolver's reason.
        why: Why,
    },
    /// It exists and has no address.
    #[error("cannot resolve {host}: the name has no address")]
    NoAddress {
        /// The name.
        host: String,
    },
    /// No answer.
    #[error("cannot resolve {host}: no answer within {timeout:?}")]
    TimedOut {
        /// The name.
        host: String,
        /// How long it was waited.
        timeout: Duration,
    },
}

impl ResolveError {
    /// Which exit code it asks for.
    pub fn exit_class(&self) -> ExitClass {
        ExitClass::Unreachable
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoints(texts: &[&str]) -> Vec<Endpoint> {
        texts.iter().map(|t| Endpoint::new(t.parse().unwrap())).collect()
    }

    #[test]
    fn families_take_turns_and_duplicates_go() {
        let found = endpoints(&["[::1]:1", "[::2]:1", "[::1]:1", "[::3]:1", "1.1.1.1:1", "2.2.2.2:1"]);
        let expected = endpoints(&["[::1]:1", "1.1.1.1:1", "[::2]:1", "2.2.2.2:1", "[::3]:1"]);
        assert_eq!(interleave(found), expected);
    }

    #[tokio::test]
    async fn a_literal_is_its_own_answer_and_localhost_has_one() {
        let second = Duration::from_secs(1);
        assert_eq!(resolve(&"[::9]:7".parse().unwrap(), second).await.unwrap(), endpoints(&["[::9]:7"]));
        assert!(!resolve(&"localhost:7".parse().unwrap(), second).await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn an_unknown_name_is_named() {
        let error = resolve(&"no-such.invalid:1".parse().unwrap(), Duration::from_secs(20)).await.unwrap_err();
        assert!(error.to_string().starts_with("cannot resolve no-such.invalid: "), "{error}");
        assert_eq!(error.exit_class(), ExitClass::Unreachable);
    }
}
