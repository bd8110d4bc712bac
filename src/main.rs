//! Parse, run the command, answer its exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    hotserve::cli::main()
}
