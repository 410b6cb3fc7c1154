//! `cargo run -p benches --release`: the same as `cargo bench -p benches`.

use std::process::ExitCode;

fn main() -> ExitCode {
    benches::main()
}
