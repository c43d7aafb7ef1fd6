//! Times and spans as an operator reads and writes them.
//!
//! The cores count seconds; a file and an error message say `2026-03-01T12:00:00Z` and `24h`. Dates are
//! those of the proleptic Gregorian calendar (days-from-civil), UTC only. Nothing here knows what
//! time it is.

use std::{fmt, str::FromStr};

use flatlan_types::UnixTime;

/// A time as `YYYY-MM-DDTHH:MM:SSZ` (RFC 3339).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Utc(pub UnixTime);

impl fmt::Display for Utc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (days, second) = (self.0.0 / DAY, self.0.0 % DAY);
        let (year, month, day) = civil(days);
        let (h, m, s) = (second / 3600, second / 60 % 60, second % 60);
        write!(f, "{year:04}-{month:02}-{day:02}T{h:02}:{m:02}:{s:02}Z")
    }
}

impl Utc {
    /// The time of these parts; `None` before 1970, after 9999, or where a part is out of range.
    pub(crate) fn of(year: u16, month: u8, day: u8, hour: u8, minute: u8, second: u8) -> Option<Self> {
        let legal = (1970..=9999).contains(&year)
            && (1..=12).contains(&month)
            && (1..=31).contains(&day)
            && hour < 24
            && minute < 60
            && second < 60;
        if !legal {
            return None;
        }
        let days = days(u64::from(year), u64::from(month), u64::from(day));
        if civil(days) != (u64::from(year), u64::from(month), u64::from(day)) {
            return None;
        }
        Some(Self(UnixTime(days * DAY + u64::from(hour) * 3600 + u64::from(minute) * 60 + u64::from(second))))
    }

    /// The parts: year, month, day, hour, minute, second. Years beyond 9999 are shown as 9999.
    pub(crate) fn parts(self) -> (u16, u8, u8, u8, u8, u8) {
        let (days, second) = (self.0.0 / DAY, self.0.0 % DAY);
        let (year, month, day) = civil(days);
        let small = |n: u64| u8::try_from(n).unwrap_or(u8::MAX);
        let year = u16::try_from(year).unwrap_or(9999).min(9999);
        (year, small(month), small(day), small(second / 3600), small(second / 60 % 60), small(second % 60))
    }
}

/// A length of time as `90s`, `30m`, `24h` or `7d`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span {
    /// In seconds, at least 1.
    pub seconds: u64,
}

impl Span {
    /// So many hours.
    pub const fn hours(hours: u64) -> Self {
        Self { seconds: hours * 3600 }
    }

    /// So many days.
    pub const fn days(days: u64) -> Self {
        Self { seconds: days * DAY }
    }
}

impl FromStr for Span {
    type Err = ParseSpanError;

    fn from_str(s: &str) -> Result<Self, ParseSpanError> {
        let (number, unit) = s.split_at_checked(s.len().saturating_sub(1)).ok_or(ParseSpanError)?;
        let unit = match unit {
            "s" => 1,
            "m" => 60,
            "h" => 3600,
            "d" => DAY,
            _ => return Err(ParseSpanError),
        };
        let number: u64 = number.parse().map_err(|_| ParseSpanError)?;
        match number.checked_mul(unit) {
            Some(seconds @ 1..=MAX_SPAN) => Ok(Self { seconds }),
            Some(_) | None => Err(ParseSpanError),
        }
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [(DAY, "d"), (3600, "h"), (60, "m")];
        let (size, unit) = units.into_iter().find(|(size, _)| self.seconds.is_multiple_of(*size)).unwrap_or((1, "s"));
        write!(f, "{}{unit}", self.seconds / size)
    }
}

/// A text is no span.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a span is a number and one of s, m, h, d, such as 24h, and at most 3650d")]
pub struct ParseSpanError;

/// Year, month, day of a day since 1970-01-01.
fn civil(days: u64) -> (u64, u64, u64) {
    let z = days + 719_468;
    let (era, day_of_era) = (z / 146_097, z % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

/// Days since 1970-01-01 of a date in 1970 or later.
fn days(year: u64, month: u64, day: u64) -> u64 {
    let year = year - u64::from(month <= 2);
    let (era, year_of_era) = (year / 400, year % 400);
    let shifted = if month > 2 { month - 3 } else { month + 9 };
    let day_of_year = (153 * shifted + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

const DAY: u64 = 86_400;
const MAX_SPAN: u64 = 3650 * DAY;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        let known = [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_772_366_399, "2026-03-01T11:59:59Z"),
            (4_102_444_800, "2100-01-01T00:00:00Z"),
        ];
        for (seconds, text) in known {
            let utc = Utc(UnixTime(seconds));
            assert_eq!(utc.to_string(), text);
            let (y, mo, d, h, mi, s) = utc.parts();
            assert_eq!(Utc::of(y, mo, d, h, mi, s), Some(utc));
        }
        assert_eq!(Utc::of(2026, 2, 29, 0, 0, 0), None);
        assert!(!Utc(UnixTime(u64::MAX)).to_string().is_empty());
    }

    #[test]
    fn a_span_prints_as_it_was_written() {
        for text in ["90s", "30m", "24h", "7d"] {
            let span: Span = text.parse().unwrap();
            assert_eq!(span.to_string().parse(), Ok(span));
        }
        assert_eq!("24h".parse(), Ok(Span::hours(24)));
        for wrong in ["", "h", "0h", "1w", "-1h", "1.5h", "99999d", "1é", "18446744073709551615d"] {
            assert_eq!(wrong.parse::<Span>(), Err(ParseSpanError), "{wrong}");
        }
    }
}
