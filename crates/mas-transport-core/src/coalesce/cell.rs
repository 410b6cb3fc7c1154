//! The outcomes of a batch, and the handles through which its entries learn them.

use std::fmt;
use std::future::Future;
use std::ops::Range;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use super::carried::Carrier;
use super::lock;

/// The outcomes of one batch, shared by the handles of its entries.
pub(super) struct Cell<R>(Mutex<CellState<R>>);

enum CellState<R> {
    Waiting(Vec<Option<Waker>>),
    Done(Vec<R>),
}

impl<R> Cell<R> {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self(Mutex::new(CellState::Waiting(Vec::new()))))
    }

    pub(super) fn complete(&self, results: Vec<R>) {
        let before = std::mem::replace(&mut *lock(&self.0), CellState::Done(results));
        if let CellState::Waiting(wakers) = before {
            wakers.into_iter().flatten().for_each(Waker::wake);
        }
    }

    /// Nobody waits under this index for now.
    fn forget(&self, index: usize) {
        if let CellState::Waiting(wakers) = &mut *lock(&self.0)
            && let Some(slot) = wakers.get_mut(index)
        {
            *slot = None;
        }
    }

    /// What `read` makes of the results, once they are there. Who waits is named by an index.
    fn poll<T>(
        &self,
        index: usize,
        cx: &Context<'_>,
        read: impl FnOnce(&[R]) -> Option<T>,
    ) -> Poll<T> {
        match &mut *lock(&self.0) {
            CellState::Done(results) => match read(results) {
                Some(read) => Poll::Ready(read),
                // Every cell is completed with a result for each of its entries.
                None => Poll::Pending,
            },
            CellState::Waiting(wakers) => {
                if wakers.len() <= index {
                    wakers.resize(index + 1, None);
                }
                if let Some(slot) = wakers.get_mut(index) {
                    match slot {
                        Some(waker) => waker.clone_from(cx.waker()),
                        None => *slot = Some(cx.waker().clone()),
                    }
                }
                Poll::Pending
            }
        }
    }
}

/// The handle of one entry: resolves to its result. Dropping it withdraws nothing.
pub(crate) struct Ticket<R> {
    pub(super) cell: Arc<Cell<R>>,
    pub(super) index: usize,
}

impl<R> fmt::Debug for Ticket<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ticket").finish_non_exhaustive()
    }
}

impl<R: Clone> Ticket<R> {
    /// A handle whose result is known already.
    pub(crate) fn ready(result: R) -> Self {
        let cell = Cell::new();
        cell.complete(vec![result]);
        Self { cell, index: 0 }
    }
}

impl<R: Clone> Future for Ticket<R> {
    type Output = R;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<R> {
        let one = |results: &[R]| results.get(self.index).cloned();
        self.cell.poll(self.index, cx, one)
    }
}

/// The handle of neighbours in one batch: resolves to their results, in order. Dropping it withdraws
/// nothing.
pub(crate) struct Part<R> {
    pub(super) cell: Arc<Cell<R>>,
    pub(super) entries: Range<usize>,
    /// Where this is what moves the batch on.
    pub(super) carrier: Option<Carrier>,
}

impl<R: Clone> Future for Part<R> {
    type Output = Vec<R>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Vec<R>> {
        let Self {
            cell,
            entries,
            carrier,
        } = &mut *self;
        if let Some(carrier) = carrier {
            // It may complete the cell, which would wake this very task.
            cell.forget(entries.start);
            carrier.poll(cx);
        }
        let all = |results: &[R]| results.get(entries.clone()).map(<[R]>::to_vec);
        cell.poll(entries.start, cx, all)
    }
}
