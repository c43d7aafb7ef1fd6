//! The text of a secret's file: 32 bytes in hexadecimal, one line.

use data_encoding::HEXLOWER_PERMISSIVE;
use zeroize::Zeroizing;

/// The text of a secret's file.
pub fn to_text(secret: &[u8; LENGTH]) -> Zeroizing<String> {
    // all room at once: growing would leave copies behind
    let mut text = Zeroizing::new(String::with_capacity(2 * LENGTH + 1));
    for byte in secret {
        for digit in [byte >> 4, byte & 15] {
            text.extend(char::from_digit(digit.into(), 16));
        }
    }
    text.push('\n');
    text
}

/// Reads such a text; `None` where it is anything else.
pub fn parse(text: &[u8]) -> Option<Zeroizing<[u8; LENGTH]>> {
    let digits = text.trim_ascii();
    let mut secret = Zeroizing::new([0; LENGTH]);
    if digits.len() != 2 * LENGTH {
        return None;
    }
    HEXLOWER_PERMISSIVE.decode_mut(digits, secret.as_mut_slice()).ok()?;
    Some(secret)
}

const LENGTH: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_survives_its_file_and_anything_else_is_refused() {
        let secret = std::array::from_fn(|at| at as u8 * 7);
        let text = to_text(&secret);
        assert_eq!(text.len(), 2 * LENGTH + 1);
        for good in [text.to_string(), text.to_uppercase(), text.trim().to_owned(), format!(" {}\r\n", text.trim())] {
            assert_eq!(*parse(good.as_bytes()).unwrap(), secret, "{good:?}");
        }
        let signed = text.replacen("00", "+0", 1);
        for damaged in ["", "abc", &text[1..], &signed, &text.replace('0', "g"), &text.replacen("00", "é", 1)] {
            assert!(parse(damaged.as_bytes()).is_none(), "{damaged:?}");
        }
    }
}
