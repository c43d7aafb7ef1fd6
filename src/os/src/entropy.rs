//! The one place that reads randomness from the kernel.

/// `N` random bytes.
///
/// # Panics
/// Where the kernel has no random source: nothing here is safe to run then.
pub fn bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("the kernel has a random source");
    bytes
}

/// A seed for a core.
pub fn seed() -> u64 {
    u64::from_ne_bytes(bytes())
}

#[cfg(test)]
mod tests {
    #[test]
    fn two_seeds_differ() {
        assert_ne!(super::seed(), super::seed());
    }
}
