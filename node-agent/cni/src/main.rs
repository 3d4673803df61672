//! `karst-cni`: reads the environment and standard input, runs [`karst_cni::plugin`], prints its
//! result. Standard output has the result and nothing else.
#![forbid(unsafe_code)]

use std::io::{self, Read, Write};
use std::panic;
use std::process::ExitCode;

use karst_cni::config::{Environment, MAX_INPUT, version_of};
use karst_cni::error::CniError;
use karst_cni::plugin;

fn main() -> ExitCode {
    let env = Environment::of_process();
    let (input, outcome) = match read() {
        Ok(input) => {
            // A fault of ours must still be an answer that the runtime understands.
            let outcome = panic::catch_unwind(|| plugin::run(&env, &input))
                .unwrap_or_else(|_| Err(CniError::Internal("it panicked".to_owned())));
            (input, outcome)
        }
        Err(error) => (Vec::new(), Err(CniError::Input(error))),
    };
    let (text, code) = match outcome {
        Ok(text) => (text, ExitCode::SUCCESS),
        Err(error) => (
            error.result(&version_of(&input)).to_string(),
            ExitCode::FAILURE,
        ),
    };
    match io::stdout().lock().write_all(text.as_bytes()) {
        Ok(()) => code,
        Err(_) => ExitCode::FAILURE,
    }
}

fn read() -> io::Result<Vec<u8>> {
    let mut input = Vec::new();
    let read = io::stdin()
        .lock()
        .take(MAX_INPUT + 1)
        .read_to_end(&mut input)?;
    if read as u64 > MAX_INPUT {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("more than {MAX_INPUT} bytes"),
        ));
    }
    Ok(input)
}
