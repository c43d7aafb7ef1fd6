//! Keys as text: Bech32m (BIP 350), so that a mistyped key is refused and says of what kind it is.

use bech32::{Bech32m, Hrp};

/// `bytes` as text under the human-readable part `hrp`.
pub(crate) fn to_text(hrp: &str, bytes: &[u8]) -> String {
    let hrp = Hrp::parse(hrp).expect("`hrp` is one of this crate's constants");
    bech32::encode::<Bech32m>(hrp, bytes).expect("keys are far shorter than the code's limit")
}

/// The bytes of `text`, which must have the human-readable part `hrp` and hold `N` bytes.
pub(crate) fn from_text<const N: usize>(hrp: &'static str, text: &str) -> Result<[u8; N], KeyTextError> {
    let checked = bech32::primitives::decode::CheckedHrpstring::new::<Bech32m>(text)
        .map_err(|_| KeyTextError::Checksum { expected: hrp })?;
    if checked.hrp().to_lowercase() != hrp {
        return Err(KeyTextError::Kind { expected: hrp });
    }
    let bytes: Vec<u8> = checked.byte_iter().collect();
    bytes.try_into().map_err(|_| KeyTextError::Length { expected: hrp })
}

/// Why a text is not the key that was expected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyTextError {
    /// Mistyped or cut off.
    #[error("not a valid {expected}1... key: mistyped or cut off")]
    Checksum {
        /// The human-readable part of the kind that was expected.
        expected: &'static str,
    },
    /// Another kind of key.
    #[error("this is another kind of key; expected one that begins with {expected}1")]
    Kind {
        /// The human-readable part of the kind that was expected.
        expected: &'static str,
    },
    /// The right kind, the wrong length.
    #[error("a {expected}1... key of the wrong length")]
    Length {
        /// The human-readable part of the kind that was expected.
        expected: &'static str,
    },
}
