//! Who a client says it is, and whom it trusts.

use std::fmt;

use mas_transport_core::{Error, Result, Tls};
use rdkafka::ClientConfig;

use crate::BACKEND;

/// Whether this build has TLS and SCRAM: the cargo feature `ssl`, which is `kafka-ssl` of
/// `mas-transport`.
pub const SSL: bool = cfg!(feature = "ssl");

/// How a user proves to be one: [`KafkaConfig::sasl`](crate::KafkaConfig::sasl).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Mechanism {
    /// The password itself goes over the connection: only with TLS is it hidden from others.
    #[default]
    Plain,
    /// A proof of the password goes over the connection, by SHA-256. Needs the cargo feature `ssl`.
    ScramSha256,
    /// The same by SHA-512.
    ScramSha512,
}

impl Mechanism {
    fn name(self) -> &'static str {
        match self {
            Self::Plain => "PLAIN",
            Self::ScramSha256 => "SCRAM-SHA-256",
            Self::ScramSha512 => "SCRAM-SHA-512",
        }
    }
}

/// Who a client says it is, and whom it trusts.
#[derive(Clone, Default)]
pub(crate) struct Security {
    pub(crate) mechanism: Mechanism,
    pub(crate) user: Option<(String, String)>,
    pub(crate) tls: Option<Tls>,
}

impl Security {
    /// Checks what can be checked without connecting.
    pub(crate) fn check(&self) -> Result<()> {
        let wrong = |why: &'static str| Err(Error::invalid("connect", why).on(BACKEND));
        match &self.user {
            Some((user, _)) if user.is_empty() => return wrong("the user has an empty name"),
            // Between the two stands a zero.
            Some((user, password)) if user.contains('\0') || password.contains('\0') => {
                return wrong("a user and a password hold no zero byte");
            }
            None if self.mechanism != Mechanism::Plain => {
                return wrong("a SASL mechanism needs a user and a password");
            }
            _ => {}
        }
        if !SSL && (self.tls.is_some() || self.mechanism != Mechanism::Plain) {
            return Err(Error::unsupported(
                BACKEND,
                "connect",
                "this build lacks TLS and SCRAM: add the cargo feature kafka-ssl of mas-transport \
                 (ssl of mas-transport-kafka), which needs OpenSSL",
            ));
        }
        let Some(tls) = &self.tls else { return Ok(()) };
        let holds = |pem: &[u8], what: &str| {
            let text = std::str::from_utf8(pem).ok();
            text.is_some_and(|text| text.contains(what) && !text.contains('\0'))
        };
        let certificates = |pem: &[u8]| holds(pem, "-----BEGIN CERTIFICATE-----");
        if tls.authority_pem().is_some_and(|pem| !certificates(pem)) {
            return wrong("the CA certificate is not PEM text of certificates");
        }
        if let Some((chain, key)) = tls.client_pem() {
            if !certificates(chain) {
                return wrong("the client certificate is not PEM text of certificates");
            }
            if !holds(key, "PRIVATE KEY-----") {
                return wrong("the key of the client certificate is not PEM text of a private key");
            }
        }
        Ok(())
    }

    /// Sets it on a client.
    pub(crate) fn apply(&self, client: &mut ClientConfig) {
        client.set(
            "security.protocol",
            match (&self.tls, &self.user) {
                (None, None) => "plaintext",
                (Some(_), None) => "ssl",
                (None, Some(_)) => "sasl_plaintext",
                (Some(_), Some(_)) => "sasl_ssl",
            },
        );
        if let Some((user, password)) = &self.user {
            client
                .set("sasl.mechanisms", self.mechanism.name())
                .set("sasl.username", user)
                .set("sasl.password", password);
        }
        let Some(tls) = &self.tls else { return };
        client
            .set("enable.ssl.certificate.verification", "true")
            .set("ssl.endpoint.identification.algorithm", "https");
        let text = String::from_utf8_lossy;
        if let Some(pem) = tls.authority_pem() {
            client.set("ssl.ca.pem", text(pem));
        }
        if let Some((chain, key)) = tls.client_pem() {
            client
                .set("ssl.certificate.pem", text(chain))
                .set("ssl.key.pem", text(key));
        }
    }
}

impl fmt::Debug for Security {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sasl = self.user.as_ref().map(|_| self.mechanism);
        f.debug_struct("Security")
            .field("sasl", &sasl)
            .field("tls", &self.tls)
            .finish()
    }
}
