//! What the program tells of itself while it runs: lines of a log, and traces.
//!
//! A log line is one decision, said where it was made. A trace follows one update from the publisher to the swap, or one
//! request; its id comes in as a `traceparent` of [W3C Trace Context](https://www.w3.org/TR/trace-context/), goes into
//! log lines, and goes out to the store. Spans are exported where the feature `otlp` is built in and
//! `OTEL_EXPORTER_OTLP_ENDPOINT` is set; elsewhere a [`Trace`] is the id that came in, and nothing else.
//!
//! `docs/observing.md` has the table of the lines and their fields.

mod context;
mod current;
mod log;
#[cfg(feature = "otlp")]
mod otlp;
mod seldom;
mod trace;

pub use context::TraceContext;
pub use current::{current, within};
pub use log::{LogFormat, shown, start};
pub use seldom::Seldom;
pub use trace::{Answered, Origin, Trace, answered, export, flush};
