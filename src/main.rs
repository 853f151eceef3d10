//! The one binary. What it can do is in [`berth::app::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    berth::app::cli::main()
}
