//! Benches: what is measured, and never asserted, for that depends on the machine.
//!
//! `cargo bench --bench gates -- http`, `beside`, `isolation` or `memory`.
#![expect(clippy::unwrap_used, reason = "a bench may")]

mod common;
#[path = "../tests/misbehaving.rs"]
mod misbehaving;

mod beside;
mod http;
mod isolation;
mod memory;

use std::process::ExitCode;

fn main() -> ExitCode {
    if let Some(code) = hotserve::probe::child(&common::loaders()) {
        return code;
    }
    if let Some(code) = common::client() {
        return code;
    }
    if let Some(code) = http::server() {
        return code;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let names: Vec<String> = std::env::args().collect();
        let asked = |name: &str| names.iter().any(|asked| asked == name);
        if asked("http") {
            http::run().await;
        }
        if asked("beside") {
            beside::run().await;
        }
        if asked("isolation") {
            isolation::run().await;
        }
        if asked("memory") {
            memory::run().await;
        }
        if !["http", "beside", "isolation", "memory"].into_iter().any(asked) {
            println!("name what to measure: http, beside, isolation, memory");
        }
    });
    ExitCode::SUCCESS
}
