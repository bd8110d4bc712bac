//! One inference, in whatever protocol it was asked for: tensors → [`Model::infer`](hotserve_models::Model::infer) →
//! tensors, on the thread where it costs the others least.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hotserve_models::Tensor;
use http::StatusCode;
use tokio::sync::oneshot;
use tokio::time::timeout_at;

use super::Http;
use super::body::Inputs;
use super::problem::Problem;
use super::trace::Fault;
use crate::metrics::Metrics;
use crate::serving::batch::{Answered, Caller};
use crate::serving::compute::ComputeError;
use crate::serving::{INLINE_COST, ModelFault, ServedModel};

/// Bodies up to this are parsed where they are answered: at 100 to 300 MB/s that is some 200 µs too.
const INLINE_BODY: usize = 32 << 10;

/// An answer, and how long its parts took.
pub(super) struct Done<A> {
    pub(super) answer: A,
    pub(super) parse: Duration,
    pub(super) infer: Duration,
}

/// Parses, infers and writes, as the protocol says.
///
/// `bytes` is the size of what is parsed. Outputs that are written have passed the model's signature; there are none,
/// if there are no rows.
pub(super) async fn run<A: Send + 'static>(
    http: &Http,
    model: &Arc<ServedModel>,
    deadline: tokio::time::Instant,
    bytes: usize,
    parse: impl FnOnce(&ServedModel) -> Result<Inputs, Problem> + Send + 'static,
    write: impl FnOnce(&ServedModel, &[Tensor], usize) -> A + Send + 'static,
) -> Result<Done<A>, Problem> {
    let job = Job { model: Arc::clone(model), metrics: Arc::clone(&http.metrics) };
    let arrived = Instant::now();
    let parsed = move |job: &Job| -> Result<Parsed, Problem> {
        let start = Instant::now();
        let inputs = parse(&job.model)?;
        Ok(Parsed { inputs, queue: start - arrived, parse: start.elapsed() })
    };
    let done = if bytes > INLINE_BODY {
        in_pool(http, model, deadline, move || job.infer(&parsed(&job)?, write)).await
    } else {
        match parsed(&job) {
            Err(problem) => Err(problem),
            Ok(parsed) => {
                let rows = u32::try_from(parsed.inputs.rows).unwrap_or(u32::MAX);
                if model.row_cost.saturating_mul(rows) < INLINE_COST {
                    job.infer(&parsed, write)
                } else if model.batches.take(parsed.inputs.rows) {
                    with_others(http, model, deadline, job, parsed, write).await
                } else {
                    let moved = Instant::now();
                    in_pool(http, model, deadline, move || {
                        job.infer(&Parsed { queue: moved.elapsed(), ..parsed }, write)
                    })
                    .await
                }
            }
        }
    };
    done.inspect_err(|_| model.statistics.failed(arrived.elapsed()))
}

async fn in_pool<T: Send + 'static>(
    http: &Http,
    model: &ServedModel,
    deadline: tokio::time::Instant,
    job: impl FnOnce() -> Result<T, Problem> + Send + 'static,
) -> Result<T, Problem> {
    match timeout_at(deadline, http.compute.run(job)).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(ComputeError::Full)) => Err(queue_is_full()),
        Ok(Err(ComputeError::Panicked)) => Err(failed(model, "the model panicked")),
        Err(_) => Err(timed_out(http)),
    }
}

/// Waits for a thread, which answers what waits for the same model along with it.
async fn with_others<A: Send + 'static>(
    http: &Http,
    model: &Arc<ServedModel>,
    deadline: tokio::time::Instant,
    job: Job,
    parsed: Parsed,
    write: impl FnOnce(&ServedModel, &[Tensor], usize) -> A + Send + 'static,
) -> Result<Done<A>, Problem> {
    let (sender, receiver) = oneshot::channel();
    let Parsed { inputs, parse, .. } = parsed;
    let rows = inputs.rows;
    let caller = Waiting { job, since: Instant::now(), parse, rows, write, sender };
    let ticket = model.batches.wait(inputs.tensors, rows, Box::new(caller));
    let task = {
        let (model, ticket, threads) = (Arc::clone(model), Arc::clone(&ticket), http.compute.threads());
        move || model.answer_waiting(&ticket, threads)
    };
    // Nothing is left of who is refused: a queue is full when many come.
    if http.compute.submit(task).is_err() && model.batches.withdraw(&ticket) {
        return Err(queue_is_full());
    }
    match timeout_at(deadline, receiver).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(_)) => Err(failed(model, "the answer could not be written")),
        Err(_) => Err(timed_out(http)),
    }
}

fn queue_is_full() -> Problem {
    Problem::unavailable("overloaded", "the queue of predictions is full: send the request again")
}

/// A 504 would blame a server behind this one.
fn timed_out(http: &Http) -> Problem {
    let detail = format!("the prediction was not done within {:?}", http.config.request_timeout);
    Problem::unavailable("timeout", detail)
}

/// A request that waits for a thread.
struct Waiting<A, W> {
    job: Job,
    since: Instant,
    parse: Duration,
    rows: usize,
    write: W,
    sender: oneshot::Sender<Result<Done<A>, Problem>>,
}

impl<A: Send, W: FnOnce(&ServedModel, &[Tensor], usize) -> A + Send> Caller for Waiting<A, W> {
    fn is_gone(&self) -> bool {
        self.sender.is_closed()
    }

    fn answer(self: Box<Self>, answered: Answered) {
        let Self { job, since, parse, rows, write, sender } = *self;
        let Answered { outputs, begun, infer, together, place } = answered;
        if together > 1 {
            job.metrics.predict_batched.increment(1);
            job.metrics.predict_batches.increment(u64::from(place == 0));
        }
        let answer = job.finish(outputs, rows, [begun - since, parse, infer], write);
        // A caller that left meanwhile wants no answer.
        let _ = sender.send(answer);
    }
}

/// One prediction, on whichever thread.
struct Job {
    model: Arc<ServedModel>,
    metrics: Arc<Metrics>,
}

struct Parsed {
    inputs: Inputs,
    /// How long it waited for a thread.
    queue: Duration,
    parse: Duration,
}

impl Job {
    fn infer<A>(
        &self,
        parsed: &Parsed,
        write: impl FnOnce(&ServedModel, &[Tensor], usize) -> A,
    ) -> Result<Done<A>, Problem> {
        let model = &self.model;
        let Parsed { inputs, queue, parse } = parsed;
        if inputs.rows == 0 {
            return Ok(Done { answer: write(model, &[], 0), parse: *parse, infer: Duration::ZERO });
        }
        let start = Instant::now();
        let outputs = model.ask(&inputs.tensors, inputs.rows);
        self.finish(outputs, inputs.rows, [*queue, *parse, start.elapsed()], write)
    }

    /// What the model said becomes an answer, after so long a wait, a parse and an inference.
    fn finish<A>(
        &self,
        outputs: Result<Vec<Tensor>, ModelFault>,
        rows: usize,
        [queue, parse, infer]: [Duration; 3],
        write: impl FnOnce(&ServedModel, &[Tensor], usize) -> A,
    ) -> Result<Done<A>, Problem> {
        let Self { model, metrics } = self;
        let outputs = outputs.map_err(|fault| match fault {
            ModelFault::BadInput(detail) => bad_input(detail),
            ModelFault::Failed(error) => failed(model, &error),
        })?;
        metrics.predict_duration.record(infer);
        metrics.predict_rows.increment(rows as u64);
        let inferred = Instant::now();
        let answer = write(model, &outputs, rows);
        model.statistics.answered(rows, [queue, parse, infer, inferred.elapsed()]);
        Ok(Done { answer, parse, infer })
    }
}

/// The input does not fit the model: the caller's mistake.
pub(super) fn bad_input(detail: String) -> Problem {
    Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "bad_input", detail)
}

/// A fault of the model. The client learns that there was one, the log what it was: with the id of the request.
fn failed(model: &ServedModel, error: &str) -> Problem {
    let (name, version) = (&model.facts.name, &model.facts.rank);
    let detail = format!("model {name:?} version {version} failed on an input that fits it");
    let fault = Fault::of_model(name.clone(), version.clone(), error);
    let problem = Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "inference_failed", detail);
    Problem { fault: Some(Arc::new(fault)), ..problem }
}
