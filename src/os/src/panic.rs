//! A panic as an error: what one task or thread does wrong is told, and ends nothing but itself.
//!
//! The standard library's hook has printed where it happened by then. Whoever calls this owns all that the
//! work touched, and throws it away: nothing half-changed is used again.

use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    task::Poll,
};

/// What a panic said.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a bug in flatlan (please report it with the log): {0}")]
pub struct Panicked(String);

impl Panicked {
    fn new(payload: &(dyn Any + Send)) -> Self {
        let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
        Self(text.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no words".to_owned()))
    }
}

/// Does a thread's work.
///
/// # Errors
/// It panicked.
pub fn caught<T>(work: impl FnOnce() -> T) -> Result<T, Panicked> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|payload| Panicked::new(&*payload))
}

/// Does a task's work.
///
/// # Errors
/// It panicked.
pub async fn caught_async<T>(work: impl Future<Output = T>) -> Result<T, Panicked> {
    let mut work = pin!(work);
    std::future::poll_fn(|context| match caught(|| work.as_mut().poll(context)) {
        Ok(Poll::Pending) => Poll::Pending,
        Ok(Poll::Ready(done)) => Poll::Ready(Ok(done)),
        Err(panicked) => Poll::Ready(Err(panicked)),
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_panic_says_is_told() {
        let said = caught(|| panic!("lane {} is gone", 3)).map(|(): ()| ()).unwrap_err();
        assert_eq!(said.to_string(), "a bug in flatlan (please report it with the log): lane 3 is gone");
        assert_eq!(caught(|| 5), Ok(5));
    }

    #[tokio::test]
    async fn a_task_that_panics_half_way_is_an_error_and_not_an_end() {
        let said = caught_async(async {
            tokio::task::yield_now().await;
            panic!("odd");
        });
        assert_eq!(said.await.map(|(): ()| ()), Err(Panicked("odd".to_owned())));
        assert_eq!(caught_async(async { 5 }).await, Ok(5));
    }
}
