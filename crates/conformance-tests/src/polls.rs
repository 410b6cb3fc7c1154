//! Dropping futures halfway.

use std::future::{Future, poll_fn};
use std::task::Poll;

use crate::harness::Failure;

/// More polls than any future of this library needs.
const MOST: usize = 500;

/// Makes a future and drops it after its first poll, makes another and drops that after its second,
/// and so on, until one completes. Answers how many were dropped, and the result of the last.
///
/// `make` is told how many polls the future will get. Polls are driven by wake-ups, as a runtime
/// would: a future that is never woken is never dropped, so give the trial a limit.
///
/// # Errors
/// When a future still has not completed after 500 polls: it spins.
pub async fn drop_after_each_poll<F: Future>(
    mut make: impl FnMut(usize) -> F,
) -> Result<(usize, F::Output), Failure> {
    for allowed in 1..=MOST {
        if let Some(output) = drop_after(allowed, make(allowed)).await {
            return Ok((allowed - 1, output));
        }
    }
    Err(format!("a future was still pending after {MOST} polls").into())
}

/// Polls a future so often at most, and drops it then. Answers its output, if it had one by then.
pub(crate) async fn drop_after<F: Future>(allowed: usize, future: F) -> Option<F::Output> {
    let mut future = Box::pin(future);
    let mut polls = 0;
    poll_fn(|cx| {
        polls += 1;
        match future.as_mut().poll(cx) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending if polls == allowed => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn each_poll_is_tried() {
        let mut made = 0;
        let (dropped, output) = drop_after_each_poll(|_| {
            made += 1;
            async {
                for _ in 0..3 {
                    tokio::task::yield_now().await;
                }
                7
            }
        })
        .await
        .unwrap();
        assert_eq!((made, dropped, output), (4, 3, 7));
    }
}
