//! The files of the admin's secrets: 32 bytes in hexadecimal, one line.

use std::path::Path;

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
    // all room at once: growing would leave copies behind
    let mut text = Zeroizing::new(String::with_capacity(2 * LENGTH + 1));
    for byte in secret.to_bytes().iter() {
        for digit in [byte >> 4, byte & 15] {
            text.extend(char::from_digit(digit.into(), 16));
        }
    }
    text.push('\n');
    text
}

/// Reads the text of a secret's file.
pub(super) fn parse(text: &[u8], path: &Path) -> Result<AdminSecret, Failure> {
    let damaged = || Failure::wrong(format!("{} is damaged: it holds no key: restore it from a copy", path.display()));
    let text = str::from_utf8(text).map_err(|_| damaged())?.trim();
    let mut bytes = Zeroizing::new([0; LENGTH]);
    if text.len() != 2 * LENGTH || !text.is_ascii() {
        return Err(damaged());
    }
    for (at, byte) in bytes.iter_mut().enumerate() {
        let digits = text.get(2 * at..2 * at + 2).ok_or_else(damaged)?;
        *byte = u8::from_str_radix(digits, 16).map_err(|_| damaged())?;
    }
    Ok(AdminSecret::from_bytes(&bytes))
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
