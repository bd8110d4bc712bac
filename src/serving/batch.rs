//! Requests for a dear model that wait at the same time are answered together, where that is cheaper.
//!
//! Nothing waits for others to come: a thread that is free takes along what waits already. So a batch grows with the
//! load, and a request that comes alone is answered alone.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hotserve_models::{InferError, Tensor, blocks};

use super::{ModelFault, ServedModel};

/// The requests that wait for one model.
pub struct Batches {
    /// How many rows are answered together at most.
    most: usize,
    waiting: Mutex<VecDeque<Arc<Ticket>>>,
}

/// Who waits for an answer.
pub trait Caller: Send {
    /// Whether nobody wants it any more.
    fn is_gone(&self) -> bool;

    /// Here it is.
    fn answer(self: Box<Self>, answered: Answered);
}

/// What a model said to one request.
pub struct Answered {
    /// Its outputs, which have passed the signature.
    pub outputs: Result<Vec<Tensor>, ModelFault>,
    /// When the model was asked.
    pub begun: Instant,
    /// How long it took, for all that was answered together.
    pub infer: Duration,
    /// How many requests that were, and which of them this is, counted from 0.
    pub together: usize,
    /// See `together`.
    pub place: usize,
}

/// A request's place in the queue. Whoever is first takes the request from it.
pub struct Ticket(Mutex<Option<Request>>);

struct Request {
    inputs: Vec<Tensor>,
    rows: usize,
    caller: Box<dyn Caller>,
}

impl Batches {
    /// For a model of which so many rows are best answered together; 1 of one that gains nothing.
    pub fn of(most: usize) -> Self {
        Self { most, waiting: Mutex::default() }
    }

    /// How many rows are answered together at most.
    pub fn most(&self) -> usize {
        self.most
    }

    /// Whether so many rows may be answered together with others.
    pub fn take(&self, rows: usize) -> bool {
        rows > 0 && rows < self.most
    }

    /// Lets a request wait: for [`ServedModel::answer_waiting`] with its ticket, or that of another.
    pub fn wait(&self, inputs: Vec<Tensor>, rows: usize, caller: Box<dyn Caller>) -> Arc<Ticket> {
        let ticket = Arc::new(Ticket(Mutex::new(Some(Request { inputs, rows, caller }))));
        self.queue().push_back(Arc::clone(&ticket));
        ticket
    }

    /// Gives a place up that no thread will be had for. It may be that another has taken the request along meanwhile:
    /// then this says false, and the answer comes.
    pub fn withdraw(&self, ticket: &Arc<Ticket>) -> bool {
        let mut waiting = self.queue();
        if let Some(at) = waiting.iter().rposition(|waiting| Arc::ptr_eq(waiting, ticket)) {
            waiting.remove(at);
        }
        ticket.lock().take().is_some()
    }

    #[cfg(test)]
    pub(crate) fn waiting(&self) -> usize {
        self.queue().len()
    }

    /// Those that are answered together with a request: a fair share of what waits, as far as it fits.
    fn with(&self, first: Request, threads: usize) -> Vec<Request> {
        let mut waiting = self.queue();
        while waiting.front().is_some_and(|ticket| ticket.lock().is_none()) {
            waiting.pop_front();
        }
        let most = 1 + waiting.len().div_ceil(threads.max(1));
        let mut rows = first.rows;
        let mut together = vec![first];
        while together.len() < most
            && let Some(ticket) = waiting.front()
        {
            let mut next = ticket.lock();
            let fits = |next: &Request| {
                let first = together.first().map(|first| first.inputs.as_slice()).unwrap_or_default();
                rows + next.rows <= self.most && alike(first, &next.inputs)
            };
            match &*next {
                // What does not fit is answered by the thread that has its ticket.
                Some(request) if !fits(request) => break,
                Some(request) => rows += request.rows,
                None => {}
            }
            together.extend(next.take());
            drop(next);
            waiting.pop_front();
        }
        together
    }

    fn queue(&self) -> MutexGuard<'_, VecDeque<Arc<Ticket>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ticket {
    fn lock(&self) -> MutexGuard<'_, Option<Request>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ServedModel {
    /// Answers the request of this ticket, and what waits with it, on this thread, one of so many.
    pub fn answer_waiting(&self, ticket: &Ticket, threads: usize) {
        let Some(first) = ticket.lock().take() else { return };
        let mut together = self.batches.with(first, threads);
        together.retain(|request| !request.caller.is_gone());
        let begun = Instant::now();
        if together.len() > 1
            && let Some(outputs) = self.answer_together(&together)
        {
            let (infer, requests) = (begun.elapsed(), together.len());
            for (place, (request, outputs)) in together.into_iter().zip(outputs).enumerate() {
                give(request.caller, Answered { outputs: Ok(outputs), begun, infer, together: requests, place });
            }
            return;
        }
        for Request { inputs, rows, caller } in together {
            // The others took their time.
            if caller.is_gone() {
                continue;
            }
            let begun = Instant::now();
            let outputs = self.ask(&inputs, rows);
            give(caller, Answered { outputs, begun, infer: begun.elapsed(), together: 1, place: 0 });
        }
    }

    /// The outputs of each request; nothing if one of them spoils the answer of all.
    fn answer_together(&self, requests: &[Request]) -> Option<Vec<Vec<Tensor>>> {
        let inputs: Vec<&[Tensor]> = requests.iter().map(|request| request.inputs.as_slice()).collect();
        let inputs = blocks::joined(&inputs).ok()?;
        let rows = requests.iter().map(|request| request.rows).sum();
        let outputs = self.ask(&inputs, rows).ok()?;
        let mut from = 0;
        let mut next = |request: &Request| {
            let rows = from..from + request.rows;
            from = rows.end;
            blocks::rows_of(&outputs, rows)
        };
        requests.iter().map(&mut next).collect::<Result<_, InferError>>().ok()
    }
}

/// A panic on the way of one answer is none of the others': its caller learns of it, for what it waits on is dropped.
fn give(caller: Box<dyn Caller>, answered: Answered) {
    drop(catch_unwind(AssertUnwindSafe(|| caller.answer(answered))));
}

/// Whether rows of both may lie in one tensor.
fn alike(a: &[Tensor], b: &[Tensor]) -> bool {
    let fits = |(a, b): (&Tensor, &Tensor)| a.datatype() == b.datatype() && a.shape().get(1..) == b.shape().get(1..);
    a.len() == b.len() && a.iter().zip(b).all(fits)
}
