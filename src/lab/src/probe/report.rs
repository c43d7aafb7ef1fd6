//! What a probe's times say. Pure.

use std::io;
use std::time::{Duration, Instant};

/// When the questions of a probe were answered.
#[derive(Debug, Clone)]
pub struct Report {
    started: Instant,
    stopped: Instant,
    sent: usize,
    /// When each answer came and how long it took, in the order they came.
    answers: Vec<(Instant, Duration)>,
    broken: Option<io::ErrorKind>,
}

/// A time without an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gap {
    /// The last answer before.
    pub from: Instant,
    /// How long none came.
    pub length: Duration,
}

impl Report {
    pub(super) fn new(
        started: Instant,
        stopped: Instant,
        sent: usize,
        answers: Vec<(Instant, Duration)>,
        broken: Option<io::ErrorKind>,
    ) -> Self {
        Self { started, stopped, sent, answers, broken }
    }

    /// How many questions were sent.
    #[must_use]
    pub fn sent(&self) -> usize {
        self.sent
    }

    /// How many answers came.
    #[must_use]
    pub fn answered(&self) -> usize {
        self.answers.len()
    }

    /// How many questions that were asked after this moment were answered.
    #[must_use]
    pub fn answered_of_asked_after(&self, moment: Instant) -> usize {
        self.answers.iter().filter(|(at, took)| at.checked_sub(*took).is_some_and(|asked| asked > moment)).count()
    }

    /// How long the first answer was waited for, from the start.
    #[must_use]
    pub fn first_answer(&self) -> Option<Duration> {
        Some(self.answers.first()?.0.saturating_duration_since(self.started))
    }

    /// What ended the connection, where one was ended.
    #[must_use]
    pub fn broken(&self) -> Option<io::ErrorKind> {
        self.broken
    }

    /// The longest time without an answer, from the first answer (or the start, where there is none) to the end.
    #[must_use]
    pub fn longest_gap(&self) -> Gap {
        let first = self.answers.first().map_or(self.started, |answer| answer.0);
        self.longest_gap_between(first, self.stopped)
    }

    /// The longest time without an answer that touches this span: one that began before counts in full.
    #[must_use]
    pub fn longest_gap_between(&self, from: Instant, to: Instant) -> Gap {
        let none = Gap { from, length: Duration::ZERO };
        self.touching(from, to).fold(none, |longest, gap| if gap.length > longest.length { gap } else { longest })
    }

    /// The longest of the gaps that touch this span, each shorter by what `away` says of the time that it lasted.
    #[must_use]
    pub fn longest_gap_without(
        &self,
        from: Instant,
        to: Instant,
        away: impl Fn(Instant, Instant) -> Duration,
    ) -> Duration {
        let without = |gap: Gap| gap.length.saturating_sub(away(gap.from, gap.from + gap.length));
        self.touching(from, to).map(without).max().unwrap_or_default()
    }

    /// The gap that this share of all gaps does not exceed: 0.999 of a control run tells the machine's own noise.
    #[must_use]
    pub fn gap_quantile(&self, share: f64) -> Duration {
        quantile(self.gaps().map(|gap| gap.length).collect(), share)
    }

    /// The time that this share of all answers did not exceed.
    #[must_use]
    pub fn round_trip_quantile(&self, share: f64) -> Duration {
        quantile(self.answers.iter().map(|answer| answer.1).collect(), share)
    }

    fn touching(&self, from: Instant, to: Instant) -> impl Iterator<Item = Gap> {
        self.gaps().filter(move |gap| gap.from < to && gap.from + gap.length > from)
    }

    /// From the start to the first answer, from answer to answer, from the last to the end.
    fn gaps(&self) -> impl Iterator<Item = Gap> {
        let times = self.answers.iter().map(|answer| answer.0);
        let from = std::iter::once(self.started).chain(times.clone());
        let to = times.chain(std::iter::once(self.stopped));
        from.zip(to).map(|(from, to)| Gap { from, length: to.saturating_duration_since(from) })
    }
}

fn quantile(mut values: Vec<Duration>, share: f64) -> Duration {
    values.sort_unstable();
    let last = values.len().saturating_sub(1);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "an index between 0 and the length"
    )]
    let index = (share.clamp(0.0, 1.0) * last as f64).ceil() as usize;
    values.get(index).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn report(answers: &[u32], end: u32) -> (Instant, Report) {
        let start = Instant::now();
        let answers = answers.iter().map(|at| (start + MS * *at, MS)).collect();
        (start, Report::new(start, start + MS * end, 10, answers, None))
    }

    #[test]
    fn an_answer_counts_by_when_it_was_asked_for() {
        let (start, report) = report(&[10, 20, 300], 320);
        assert_eq!(report.answered_of_asked_after(start + MS * 9), 2);
        assert_eq!(report.answered_of_asked_after(start + MS * 18), 2);
        assert_eq!(report.answered_of_asked_after(start + MS * 299), 0);
    }

    #[test]
    fn the_longest_gap_lies_between_two_answers() {
        let (start, report) = report(&[10, 20, 300, 310], 320);
        assert_eq!(report.longest_gap(), Gap { from: start + MS * 20, length: MS * 280 });
    }

    #[test]
    fn without_the_time_that_the_machine_was_away_another_gap_may_be_the_longest() {
        let (start, report) = report(&[10, 20, 300, 310, 450, 460], 470);
        let (from, to) = (start + MS * 25, start + MS * 460);
        let away = |from: Instant, _| if from < start + MS * 300 { MS * 200 } else { MS * 5 };
        assert_eq!(report.longest_gap_between(from, to).length, MS * 280);
        assert_eq!(report.longest_gap_without(from, to, away), MS * 135);
        assert_eq!(report.longest_gap_without(start + MS * 455, to, away), MS * 5);
    }

    #[test]
    fn silence_until_the_end_is_a_gap() {
        let (start, report) = report(&[10, 20], 500);
        assert_eq!(report.longest_gap(), Gap { from: start + MS * 20, length: MS * 480 });
    }

    #[test]
    fn waiting_for_the_first_answer_is_no_gap_unless_none_comes() {
        let (start, report) = report(&[400, 410], 420);
        assert_eq!(report.longest_gap().length, MS * 10);
        assert_eq!(report.first_answer(), Some(MS * 400));
        let (_, silent) = self::report(&[], 420);
        assert_eq!(silent.longest_gap().length, MS * 420);
        assert_eq!(start, report.started);
    }

    #[test]
    fn a_gap_that_reaches_into_the_span_counts_in_full() {
        let (start, report) = report(&[0, 10, 200, 210, 220], 230);
        assert_eq!(report.longest_gap_between(start + MS * 100, start + MS * 150).length, MS * 190);
        assert_eq!(report.longest_gap_between(start + MS * 205, start + MS * 220).length, MS * 10);
    }

    #[test]
    fn quantiles_are_values_that_occurred() {
        let (_, report) = report(&[10, 20, 30, 130], 140);
        assert_eq!(report.gap_quantile(1.0), MS * 100);
        assert_eq!(report.gap_quantile(0.0), MS * 10);
        assert_eq!(report.round_trip_quantile(0.5), MS);
    }
}
