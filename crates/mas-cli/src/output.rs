//! What a command prints. A reader that goes away, as in `mas … | head -1`, is no failure.

use std::io::{self, ErrorKind, Write};

use serde::Serialize;

use crate::failure::Failure;

/// Writes text to stdout; its colours reach a terminal only, and not with `NO_COLOR`.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    let mut out = anstream::stdout().lock();
    written(out.write_all(text.as_bytes()).and_then(|()| out.flush()))
}

/// Writes a value to stdout, as JSON on a line of its own.
pub(crate) fn json_line(value: &impl Serialize) -> Result<(), Failure> {
    let mut line = serde_json::to_vec(value)
        .map_err(|error| Failure::new(format!("cannot write the result as JSON: {error}")))?;
    line.push(b'\n');
    let mut out = io::stdout().lock();
    written(out.write_all(&line).and_then(|()| out.flush()))
}

/// The outcome of writing to stdout.
pub(crate) fn written(outcome: io::Result<()>) -> Result<(), Failure> {
    match outcome {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(Failure::new(format!(
            "cannot write to the standard output: {error}"
        ))),
        _ => Ok(()),
    }
}

/// Writes a line to stderr, for people. Nobody may be reading; the command goes on.
macro_rules! tell {
    ($($text:tt)*) => {{
        use std::io::Write as _;
        let mut out = anstream::stderr().lock();
        let _ = writeln!(out, $($text)*);
    }};
}
pub(crate) use tell;
