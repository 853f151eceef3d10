use std::process::ExitCode;

/// Only what git's hooks run, until the command line is there.
fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["hook", "pre-receive"] => match berth::control::client::hook() {
            Ok(status) => ExitCode::from(status),
            Err(error) => {
                eprintln!(" !     {error:#}");
                ExitCode::FAILURE
            }
        },
        _ => ExitCode::from(2),
    }
}
