//! Who gives way to whom: what is not an answer to a request must not take time from one.

/// This thread, and the processes that it starts, work when nobody else wants the processor: on Linux whoever wakes up to
/// answer a request takes it from them at once, which no niceness does.
pub fn idle() {
    #[cfg(target_os = "linux")]
    {
        use thread_priority::{NormalThreadSchedulePolicy, ThreadPriority, ThreadSchedulePolicy, thread_native_id};
        let policy = ThreadSchedulePolicy::Normal(NormalThreadSchedulePolicy::Idle);
        let _ = thread_priority::set_thread_priority_and_policy(thread_native_id(), ThreadPriority::Min, policy);
    }
}

/// This thread's work must not take time from the threads that answer requests.
pub fn low() {
    // Not allowed everywhere; then it is only slower to get out of the way.
    let _ = rustix::process::setpriority_process(None, 10);
}
