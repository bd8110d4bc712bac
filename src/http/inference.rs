//! One inference, in whatever protocol it was asked for: tensors → [`Model::infer`](hotserve_models::Model::infer) →
//! tensors, on the thread where it costs the others least.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hotserve_models::{InferError, Tensor};
use http::StatusCode;
use tokio::time::timeout_at;

use super::Http;
use super::body::Inputs;
use super::problem::Problem;
use super::trace::Fault;
use crate::metrics::Metrics;
use crate::serving::ServedModel;
use crate::serving::compute::ComputeError;

/// Cheaper requests are computed where they are answered: moving one to another thread costs some tens of µs.
const INLINE_COST: Duration = Duration::from_micros(200);
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
        Ok(Err(ComputeError::Full)) => {
            Err(Problem::unavailable("overloaded", "the queue of predictions is full: send the request again"))
        }
        Ok(Err(ComputeError::Panicked)) => Err(failed(model, "the model panicked")),
        // A 504 would blame a server behind this one.
        Err(_) => {
            let detail = format!("the prediction was not done within {:?}", http.config.request_timeout);
            Err(Problem::unavailable("timeout", detail))
        }
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
        let Self { model, metrics } = self;
        let Parsed { inputs, queue, parse } = parsed;
        if inputs.rows == 0 {
            return Ok(Done { answer: write(model, &[], 0), parse: *parse, infer: Duration::ZERO });
        }
        let start = Instant::now();
        // A model holds no state between calls, so that a panic leaves nothing half done.
        let outputs = catch_unwind(AssertUnwindSafe(|| model.model.infer(&inputs.tensors)))
            .map_err(|_| failed(model, "the model panicked"))?
            .map_err(|error| match error {
                InferError::BadInput(detail) => bad_input(detail),
                error => failed(model, &error.to_string()),
            })?;
        let inferred = Instant::now();
        let infer = inferred - start;
        match model.model.signature().check_outputs(&outputs) {
            Ok(rows) if rows == inputs.rows => {}
            Ok(rows) => return Err(failed(model, &format!("{rows} rows came out of {}", inputs.rows))),
            Err(error) => return Err(failed(model, &error.to_string())),
        }
        metrics.predict_duration.record(infer);
        metrics.predict_rows.increment(inputs.rows as u64);
        let answer = write(model, &outputs, inputs.rows);
        model.statistics.answered(inputs.rows, [*queue, *parse, infer, inferred.elapsed()]);
        Ok(Done { answer, parse: *parse, infer })
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
