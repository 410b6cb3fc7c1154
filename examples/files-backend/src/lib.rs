//! A backend of `mas-transport` that keeps messages as files in a directory: a worked example.
//!
//! ```text
//! <directory>/lock                           one process at a time
//! <directory>/@<namespace>/<topic>/log       the messages, appended one behind the other
//! <directory>/@<namespace>/<topic>/g-<group> a journal for each group: who holds what
//! ```
//!
//! The files are the truth. What is in memory is an index of them, made by reading them, and made
//! again after a crash: [`FilesBroker::stop`] and [`FilesBroker::start`] do just that, and the
//! conformance suite calls them under load.
//!
//! It is an example and not a product: one lock for everything, blocking calls of the file system
//! inside of async functions, nothing is flushed to the disk (and [`Capabilities`] says so).

mod broker;
mod group;
mod journal;
mod member;
mod store;
mod transport;

pub use broker::{FilesBroker, Options};
pub use transport::FilesTransport;

#[cfg(doc)]
use mas_transport_core::Capabilities;
use mas_transport_core::{Error, ErrorKind};

/// The name in errors and in `TransportInfo`.
pub(crate) const BACKEND: &str = "files";

/// What the file system says. Waiting may help: there may be room again, or the mount is back.
pub(crate) fn failed(operation: &'static str, error: std::io::Error) -> Error {
    let why = "the file system refused";
    Error::new(ErrorKind::Unavailable, operation, why)
        .on(BACKEND)
        .because(error)
}

pub(crate) fn stopped(operation: &'static str) -> Error {
    let why = "the broker is stopped; start it again";
    Error::new(ErrorKind::Unavailable, operation, why).on(BACKEND)
}
