//! From the environment and the global options to a bus.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use clap::builder::TypedValueParser;
use mas_transport::{Bus, Config, Kind, Settings};
use tokio::time::sleep;

use crate::failure::Failure;
use crate::output::tell;
use crate::text::harmless;

/// How long nothing is said while a broker does not answer.
const SILENCE: Duration = Duration::from_secs(1);

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
    /// It was told that the broker is waited for: once is enough.
    #[arg(skip)]
    told: AtomicBool,
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
        let mut config = Config::from_env().on_command_line();
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

    /// Says on stderr that a broker is named and nobody chose it.
    pub(crate) fn caution(&self) {
        let settings = self.config().resolve();
        let mut cautions = settings.cautions().iter();
        if let Some(caution) = cautions.find(|caution| caution.name == "PROTOCOL_TYPE") {
            tell!("mas: warning: {caution}");
        }
    }

    /// Connects.
    pub(crate) async fn bus(&self) -> Result<Bus, Failure> {
        self.reach(self.config()).await
    }

    /// Connects as this configuration says, which is ours with something added. When that takes
    /// long, stderr tells whom it waits for.
    pub(crate) async fn reach(&self, config: Config) -> Result<Bus, Failure> {
        let failed = |error| Failure::to_connect(error, &config.resolve());
        let connecting = Bus::connect(config.clone());
        tokio::pin!(connecting);
        tokio::select! {
            biased;
            done = &mut connecting => return done.map_err(failed),
            () = sleep(SILENCE) => {}
        }
        if !self.told.swap(true, Relaxed) {
            tell!("mas: still waiting for {}", broker(&config.resolve()));
        }
        connecting.await.map_err(failed)
    }
}

/// The backend and its address, without credentials.
fn broker(settings: &Settings) -> String {
    let address = |url: bool| {
        settings.iter().find_map(|setting| {
            let is_one = match setting.variable().kind() {
                Kind::Address | Kind::Addresses => !url,
                // The other backends' URLs are their addresses.
                Kind::Url => url && setting.name() != "TRANSPORT_URL",
                _ => false,
            };
            setting.shown().filter(|_| is_one)
        })
    };
    let name = harmless(settings.backend());
    match address(false).or_else(|| address(true)) {
        Some(address) => format!("{name} at {}", harmless(address)),
        None => name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broker_is_named_by_its_address_and_never_by_its_credentials() {
        for (variables, expected) in [
            (
                &[("PROTOCOL_TYPE", "redis"), ("REDIS_PASSWORD", "hush")][..],
                "redis at localhost:6379",
            ),
            (
                &[("TRANSPORT_URL", "redis://ann:hush@there:1/0")],
                "redis at there:1",
            ),
            (
                &[
                    ("PROTOCOL_TYPE", "redis"),
                    ("REDIS_URL", "redis://ann:hush@there:1"),
                ],
                "redis at there:1",
            ),
            (
                &[
                    ("PROTOCOL_TYPE", "kafka"),
                    ("KAFKA_BROKERS", "one:9092,two:9092"),
                ],
                "kafka at one:9092,two:9092",
            ),
            (&[], "memory"),
        ] {
            let settings = Config::from_vars(variables.iter().copied()).resolve();
            assert_eq!(broker(&settings), expected);
        }
        let nats = [
            ("PROTOCOL_TYPE", "nats"),
            ("NATS_URL", "nats://ann:hush@there:4222"),
        ];
        let told = broker(&Config::from_vars(nats).resolve());
        assert!(told.starts_with("nats at nats://"), "{told}");
        assert!(
            told.contains("there:4222") && !told.contains("hush"),
            "{told}"
        );
    }
}
