//! From the environment and the global options to a bus.

use std::ffi::OsStr;
use std::path::PathBuf;

use clap::builder::TypedValueParser;
use mas_transport::{Bus, Config};

use crate::failure::Failure;

/// How to reach the broker: each goes before the environment, which goes before the file.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Connection")]
pub(crate) struct Connection {
    /// The backend: PROTOCOL_TYPE.
    #[arg(long, global = true, value_name = "NAME")]
    protocol: Option<String>,
    /// Backend and address in one, such as redis://host:6379/0: TRANSPORT_URL. Others can see the
    /// arguments of a process: keep passwords in the environment.
    #[arg(long, global = true)]
    url: Option<String>,
    /// A file with settings: MAS_CONFIG.
    #[arg(long, global = true, value_name = "PATH")]
    config: Option<PathBuf>,
    /// Goes in front of every name in the broker: MAS_NAMESPACE.
    #[arg(long, global = true, value_name = "NAME")]
    namespace: Option<String>,
    /// Any setting by the name of its variable, such as REDIS_DB=2; may be repeated.
    #[arg(long, global = true, value_name = "NAME=VALUE", value_parser = SettingParser)]
    set: Vec<Given>,
}

/// A setting from the command line. Its value may be a secret.
#[derive(Clone)]
struct Given {
    name: String,
    value: String,
}

impl std::fmt::Debug for Given {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}=***", self.name)
    }
}

/// Reads a setting. What clap says of a wrong value repeats it, and here that may be a secret.
#[derive(Clone)]
struct SettingParser;

impl TypedValueParser for SettingParser {
    type Value = Given;

    fn parse_ref(
        &self,
        command: &clap::Command,
        _argument: Option<&clap::Arg>,
        value: &OsStr,
    ) -> Result<Given, clap::Error> {
        match value.to_str().and_then(|text| text.split_once('=')) {
            Some((name, value)) if !name.is_empty() => Ok(Given {
                name: name.to_owned(),
                value: value.to_owned(),
            }),
            _ => Err(clap::Error::raw(
                clap::error::ErrorKind::ValueValidation,
                "--set takes NAME=VALUE, such as --set REDIS_DB=2\n",
            )
            .with_cmd(command)),
        }
    }
}

impl Connection {
    /// The configuration.
    pub(crate) fn config(&self) -> Config {
        let mut config = Config::from_env();
        for Given { name, value } in &self.set {
            config = config.set(name, value);
        }
        if let Some(protocol) = &self.protocol {
            config = config.backend(protocol);
        }
        if let Some(url) = &self.url {
            config = config.url(url);
        }
        if let Some(path) = &self.config {
            config = config.file(path);
        }
        if let Some(namespace) = &self.namespace {
            config = config.set("MAS_NAMESPACE", namespace);
        }
        config
    }

    /// Connects.
    pub(crate) async fn bus(&self) -> Result<Bus, Failure> {
        Ok(Bus::connect(self.config()).await?)
    }
}
