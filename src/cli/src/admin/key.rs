//! The files of the admin's secrets: 32 bytes in hexadecimal, one line.

use std::path::Path;

use flatlan_os::secret;
use flatlan_types::AdminSecret;
use zeroize::Zeroizing;

use crate::failure::Failure;

/// A new secret.
pub(super) fn make() -> AdminSecret {
    let bytes = Zeroizing::new(flatlan_os::entropy::bytes::<LENGTH>());
    AdminSecret::from_bytes(&bytes)
}

/// The text of a secret's file.
pub(super) fn to_text(secret: &AdminSecret) -> Zeroizing<String> {
    secret::to_text(&secret.to_bytes())
}

/// Reads the text of a secret's file.
pub(super) fn parse(text: &[u8], path: &Path) -> Result<AdminSecret, Failure> {
    let damaged = || Failure::wrong(format!("{} is damaged: it holds no key: restore it from a copy", path.display()));
    Ok(AdminSecret::from_bytes(&*secret::parse(text).ok_or_else(damaged)?))
}

const LENGTH: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_survives_its_file_and_a_damaged_one_is_refused() {
        let secret = make();
        let text = to_text(&secret);
        let again = parse(text.as_bytes(), Path::new("admin.key")).expect("it was just written");
        assert_eq!(again.public(), secret.public());
        for damaged in ["", "abc", &text[1..], &text.replace(|c: char| c.is_ascii_hexdigit(), "g")] {
            assert!(parse(damaged.as_bytes(), Path::new("admin.key")).is_err(), "{damaged:?}");
        }
    }
}
