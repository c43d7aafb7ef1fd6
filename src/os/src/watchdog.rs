//! Telling systemd that the program turns.
//!
//! A task of its own would go on telling it while the loops that matter stand still: so they are asked, and
//! nothing is told before they have answered.

use std::time::Duration;

use sd_notify::NotifyState;

/// Tells, until dropped, where the service manager asks for that (`WatchdogSec=`). `turns` asks what must turn
/// for an answer; where none comes, the manager starts the program again.
pub async fn watch<F, Fut>(turns: F)
where
    F: FnMut() -> Fut,
    Fut: Future<Output = bool>,
{
    let Some(period) = sd_notify::watchdog_enabled() else { return };
    beat(period / 2, turns, || {
        let _ = sd_notify::notify(&[NotifyState::Watchdog]);
    })
    .await;
}

async fn beat<F, Fut>(every: Duration, mut turns: F, mut tell: impl FnMut())
where
    F: FnMut() -> Fut,
    Fut: Future<Output = bool>,
{
    loop {
        if turns().await {
            tell();
        }
        tokio::time::sleep(every).await;
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, future};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn nothing_is_told_while_a_loop_does_not_answer() {
        let (asked, told) = (Cell::new(0), Cell::new(0));
        let turns = async || {
            asked.set(asked.get() + 1);
            if asked.get() > 3 {
                future::pending::<()>().await;
            }
            asked.get() != 2
        };
        let beating = beat(Duration::from_secs(15), turns, || told.set(told.get() + 1));
        let _ = tokio::time::timeout(Duration::from_secs(600), beating).await;
        assert_eq!((asked.get(), told.get()), (4, 2));
    }
}
