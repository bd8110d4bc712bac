//! Threads for predictions too dear for the threads that answer requests.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

use metrics::Gauge;
use tokio::sync::oneshot;

type Job = Box<dyn FnOnce() + Send>;

/// A fixed number of threads behind a bounded queue.
pub struct ComputePool {
    queue: SyncSender<Job>,
    threads: usize,
    depth: Gauge,
}

/// Why a job gave no answer.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ComputeError {
    /// The queue is full: try later.
    #[error("the compute queue is full")]
    Full,
    /// The job panicked.
    #[error("the model panicked")]
    Panicked,
}

impl ComputePool {
    /// Starts the threads; they end when the pool is dropped and its queue is empty.
    pub fn new(threads: usize, queue: usize, depth: Gauge) -> std::io::Result<Self> {
        let (sender, receiver) = sync_channel::<Job>(queue);
        let receiver = Arc::new(Mutex::new(receiver));
        let threads = threads.max(1);
        for number in 0..threads {
            let receiver = Arc::clone(&receiver);
            std::thread::Builder::new().name(format!("compute-{number}")).spawn(move || work(&receiver))?;
        }
        Ok(Self { queue: sender, threads, depth })
    }

    /// How many threads there are.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// Runs a job and waits for its answer. A job whose caller has gone is not begun.
    pub async fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> Result<T, ComputeError> {
        let (sender, receiver) = oneshot::channel();
        self.submit(move || {
            if !sender.is_closed() {
                // A caller that left meanwhile wants no answer.
                let _ = sender.send(job());
            }
        })?;
        receiver.await.map_err(|_| ComputeError::Panicked)
    }

    /// Puts a job into the queue, unless that is full.
    pub fn submit(&self, job: impl FnOnce() + Send + 'static) -> Result<(), ComputeError> {
        let depth = self.depth.clone();
        self.depth.increment(1.0);
        let task = Box::new(move || {
            depth.decrement(1.0);
            job();
        });
        self.queue.try_send(task).map_err(|_| {
            self.depth.decrement(1.0);
            ComputeError::Full
        })
    }
}

fn work(receiver: &Mutex<Receiver<Job>>) {
    crate::priority::low();
    loop {
        let job = receiver.lock().unwrap_or_else(PoisonError::into_inner).recv();
        match job {
            // The job's answer channel is dropped by the panic: its caller learns of it.
            Ok(job) => drop(catch_unwind(AssertUnwindSafe(job))),
            Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_full_queue_refuses_at_once_and_a_panic_costs_one_answer() {
        let pool = Arc::new(ComputePool::new(1, 1, Gauge::noop()).expect("threads"));
        let (block, blocked) = std::sync::mpsc::channel::<()>();
        let (begun, has_begun) = oneshot::channel();
        let first = tokio::spawn({
            let pool = Arc::clone(&pool);
            async move {
                pool.run(move || {
                    let _ = begun.send(());
                    blocked.recv().is_ok()
                })
                .await
            }
        });
        has_begun.await.expect("the first job runs");
        let queued = tokio::spawn({
            let pool = Arc::clone(&pool);
            async move { pool.run(|| 2).await }
        });
        tokio::task::yield_now().await;
        assert_eq!(pool.run(|| 3).await, Err(ComputeError::Full));
        block.send(()).expect("the first job waits");
        assert_eq!(first.await.expect("no panic here"), Ok(true));
        assert_eq!(queued.await.expect("no panic here"), Ok(2));
        let panicked = pool.run(|| -> u8 { panic!("on purpose") }).await;
        assert_eq!(panicked, Err(ComputeError::Panicked));
        assert_eq!(pool.run(|| 4).await, Ok(4));
    }
}
