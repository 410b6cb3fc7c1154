//! The Redis server of a run.

use std::env;

use conformance_tests::fixtures::RedisServer;

use crate::Result;

/// A server that runs, stopped at the end when it was started here.
#[derive(Debug)]
pub(crate) struct Server {
    url: String,
    /// Ends with this.
    _started: Option<RedisServer>,
}

impl Server {
    /// The server that the environment names, or else one started for the run.
    pub(crate) fn find() -> Result<Self> {
        let variable = |name| env::var(name).ok().filter(|value| !value.is_empty());
        let address = variable("REDIS_ADDR").map(|address| format!("redis://{address}"));
        if let Some(url) = variable("TEST_REDIS_URL").or(address) {
            return Ok(Self {
                url,
                _started: None,
            });
        }
        let started = RedisServer::start(&[])?;
        Ok(Self {
            url: format!("redis://{}", started.address()),
            _started: Some(started),
        })
    }

    /// Where it is, as `redis://host:port`.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }
}
