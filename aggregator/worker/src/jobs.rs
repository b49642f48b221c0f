//! Calls that are under way while the loop goes on. Each is about one execution; what comes of it meanwhile either does not
//! depend on the answer or waits for it (`open`).

use std::future::Future;

use glasshouse_schema::dead::DeadLetter;
use glasshouse_schema::ids::ExecutionId;
use tokio::task::JoinSet;

use crate::Error;

/// How many calls may be under way.
const MAX: usize = 256;

/// What came of a call.
pub(crate) enum Answer {
    /// The sequence of the event that closed the execution, if it is closed; 0 if that event was trimmed.
    ClosedAt(Option<u64>),
    /// What the bucket of claims says against a `claimed` event.
    ClaimProblem(Option<String>),
    /// The `closed` event is stored, or why the one that is can end nothing.
    Closed(Result<(), String>),
    /// There is a receipt, if the execution gets one. Should it be another than the one that was folded here: the alarm and its
    /// trace.
    Finished(Option<Box<(DeadLetter, Option<String>)>>),
}

/// A call that is over.
pub(crate) struct Done {
    pub(crate) job: u64,
    pub(crate) execution: ExecutionId,
    pub(crate) answer: Answer,
}

/// All calls that are under way. Dropping it cancels them.
#[derive(Default)]
pub(crate) struct Jobs {
    running: JoinSet<Result<Done, Error>>,
    last: u64,
}

impl Jobs {
    /// Starts a call and gives its number.
    pub(crate) fn start(
        &mut self,
        execution: ExecutionId,
        call: impl Future<Output = Result<Answer, Error>> + Send + 'static,
    ) -> u64 {
        self.last += 1;
        let job = self.last;
        self.running.spawn(async move { Ok(Done { job, execution, answer: call.await? }) });
        job
    }

    /// The next call that is over; `None` if none is under way. Safe to cancel.
    pub(crate) async fn next(&mut self) -> Option<Result<Done, Error>> {
        let ended = self.running.join_next().await?;
        Some(ended.unwrap_or(Err(Error::TaskGone)))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.running.is_empty()
    }

    /// Whether as many are under way as may be.
    pub(crate) fn is_full(&self) -> bool {
        self.running.len() >= MAX
    }
}
