//! Names of networks, members, hubs and groups.

use std::{fmt, str::FromStr, sync::Arc};

use minicbor::{Decode, Decoder, Encode, Encoder, decode, encode};
use serde::{Deserialize, Serialize};

/// `[a-z0-9-]{1,63}`, neither beginning nor ending with a dash: a DNS label (RFC 1123), so that no
/// name needs quoting in a shell, a log or a resolver. Copies share the text: a node holds each member's name in
/// several places.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(Arc<str>);

impl Name {
    /// The text of the name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = ParseNameError;

    fn from_str(s: &str) -> Result<Self, ParseNameError> {
        let legal = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if s.is_empty() || s.len() > MAX_NAME {
            return Err(ParseNameError::Length { got: s.len() });
        }
        if !s.chars().all(legal) || s.starts_with('-') || s.ends_with('-') {
            return Err(ParseNameError::Character);
        }
        Ok(Self(s.into()))
    }
}

impl TryFrom<String> for Name {
    type Error = ParseNameError;

    fn try_from(s: String) -> Result<Self, ParseNameError> {
        s.parse()
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.as_str().to_owned()
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<C> Encode<C> for Name {
    fn encode<W: encode::Write>(&self, e: &mut Encoder<W>, _: &mut C) -> Result<(), encode::Error<W::Error>> {
        e.str(&self.0)?.ok()
    }
}

impl<'b, C> Decode<'b, C> for Name {
    fn decode(d: &mut Decoder<'b>, _: &mut C) -> Result<Self, decode::Error> {
        d.str()?.parse().map_err(decode::Error::custom)
    }
}

/// Why a text is no name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ParseNameError {
    /// A character outside the alphabet, or a dash at an end.
    #[error("a name is made of a-z, 0-9 and inner dashes")]
    Character,
    /// Too short or too long.
    #[error("a name has 1 to {MAX_NAME} characters, not {got}")]
    Length {
        /// Bytes in the text.
        got: usize,
    },
}

const MAX_NAME: usize = 63;
