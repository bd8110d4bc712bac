//! Which trace a task works for.

use super::TraceContext;

tokio::task_local! {
    static CURRENT: Option<TraceContext>;
}

/// Does something as a part of a trace: calls of AWS within it carry the place.
pub async fn within<F: Future>(trace: Option<TraceContext>, work: F) -> F::Output {
    CURRENT.scope(trace, work).await
}

/// The trace that the task works for, if it does.
pub fn current() -> Option<TraceContext> {
    CURRENT.try_with(|trace| *trace).ok().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn work_knows_its_trace_and_nothing_else_does() {
        let trace = TraceContext::new(1, 2, true);
        assert_eq!(current(), None);
        assert_eq!(within(trace, async { current() }).await, trace);
        assert_eq!(current(), None);
    }
}
