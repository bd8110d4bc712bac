//! Parse, run the command, answer its exit code.

use std::process::ExitCode;

use hotserve_models::Loaders;

fn main() -> ExitCode {
    // Before anything else: a probe has no settings, no log and no threads.
    if let Some(code) = hotserve::probe::child(&Loaders::bundled()) {
        return code;
    }
    hotserve::cli::main()
}
