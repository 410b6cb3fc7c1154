//! `cargo bench -p benches`: the same as `cargo run -p benches --release`.

use std::process::ExitCode;

fn main() -> ExitCode {
    benches::main()
}
