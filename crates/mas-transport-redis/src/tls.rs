//! Encrypted connections.
//!
//! The handshake is made here and the client given the finished stream: so each step that can fail
//! has an error of its own, the certificates are read once, and no provider of cryptography is set
//! for the whole process.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::config::split;

/// How long a server may take to show what it speaks.
const SHOW: Duration = Duration::from_secs(1);

/// The first byte that a server answers to a greeting on a connection of its own.
async fn first_byte(address: &str, greeting: &[u8]) -> Option<u8> {
    let (host, port) = split(address)?;
    let ask = async {
        let mut stream = TcpStream::connect((host, port)).await.ok()?;
        stream.write_all(greeting).await.ok()?;
        stream.read_u8().await.ok()
    };
    timeout(SHOW, ask).await.ok()?
}

/// Whether a server speaks TLS: one that does answers a handshake message that makes no sense by an
/// alert.
pub(crate) async fn is_encrypted(address: &str) -> bool {
    const NONSENSE: &[u8] = &[22, 3, 1, 0, 4, 13, 0, 0, 0];
    const ALERT: u8 = 21;
    first_byte(address, NONSENSE).await == Some(ALERT)
}

#[cfg(feature = "tls")]
pub(crate) use handshake::Secure;

#[cfg(feature = "tls")]
mod handshake {
    use std::error::Error as _;
    use std::io;
    use std::sync::Arc;
    use std::time::Duration;

    use mas_transport_core::{Error, ErrorKind, Result, Tls};
    use redis::aio::MultiplexedConnection;
    use redis::{AsyncConnectionConfig, RedisConnectionInfo};
    use rustls::pki_types::ServerName;
    use rustls::{AlertDescription, CertificateError};
    use tokio::net::TcpStream;
    use tokio_rustls::TlsConnector;
    use tokio_util::task::AbortOnDropHandle;

    use super::first_byte;
    use crate::BACKEND;
    use crate::config::{RedisConfig, split};
    use crate::connection::Connected;
    use crate::error::map;

    type Kept = Arc<dyn std::error::Error + Send + Sync>;

    /// After this an unanswered handshake makes it worth asking whether the server speaks TLS.
    const SLOW: Duration = Duration::from_millis(300);

    /// What is needed to open encrypted connections to one server.
    pub(crate) struct Secure {
        connector: TlsConnector,
        name: ServerName<'static>,
        host: String,
        port: u16,
        address: String,
        settings: RedisConnectionInfo,
    }

    impl std::fmt::Debug for Secure {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.debug_struct("Secure")
                .field("address", &self.address)
                .finish_non_exhaustive()
        }
    }

    fn wrong(config: &RedisConfig, why: &'static str) -> Error {
        Error::invalid("connect", why)
            .on(BACKEND)
            .with("address", config.address())
    }

    impl Secure {
        /// Reads the certificates.
        ///
        /// # Errors
        /// `InvalidArgument` for what cannot be read.
        pub(crate) fn new(
            config: &RedisConfig,
            tls: &Tls,
            settings: RedisConnectionInfo,
        ) -> Result<Self> {
            let wrong = |why| wrong(config, why);
            let client = tls
                .client_config()
                .map_err(|e| e.on(BACKEND).with("address", config.address()))?;
            let address = config.address();
            let why = "the address is not of the form host:port";
            let (host, port) = split(address).ok_or_else(|| wrong(why))?;
            let why = "the host of the address is neither a name nor an IP address";
            Ok(Self {
                connector: TlsConnector::from(Arc::new(client)),
                name: ServerName::try_from(host.to_owned()).map_err(|_| wrong(why))?,
                host: host.to_owned(),
                port,
                address: address.to_owned(),
                settings,
            })
        }

        /// Opens a connection.
        pub(crate) async fn open(&self, config: AsyncConnectionConfig) -> Result<Connected> {
            let unreachable = |e: io::Error| map("connect", &self.address, e.into());
            let tcp = TcpStream::connect((self.host.as_str(), self.port))
                .await
                .map_err(unreachable)?;
            tcp.set_nodelay(true).map_err(unreachable)?;
            let shaking = self.connector.connect(self.name.clone(), tcp);
            tokio::pin!(shaking);
            // A server without TLS takes our greeting for the beginning of a line, and waits for
            // its end.
            let shaken = tokio::select! {
                shaken = &mut shaking => shaken,
                () = tokio::time::sleep(SLOW) => match self.is_plain().await {
                    true => return Err(no_tls(&self.address)),
                    false => shaking.await,
                },
            };
            let stream = match shaken {
                Ok(stream) => stream,
                Err(error) => match explain(&self.address, &error) {
                    Some(explained) => return Err(explained),
                    None if self.is_plain().await => return Err(no_tls(&self.address)),
                    None => return Err(unreachable(error)),
                },
            };
            let opened =
                MultiplexedConnection::new_with_config(&self.settings, stream, config).await;
            match opened {
                Ok((connection, driver)) => Ok(Connected {
                    connection,
                    driver: Some(AbortOnDropHandle::new(tokio::spawn(driver))),
                }),
                Err(error) => {
                    // Kept by the client in a shared pointer, which it gives out as the source.
                    let kept = error.source().and_then(|e| e.downcast_ref::<Kept>());
                    let io = kept.and_then(|e| e.downcast_ref::<io::Error>());
                    let explained = io.and_then(|e| explain(&self.address, e));
                    Err(explained.unwrap_or_else(|| map("connect", &self.address, error)))
                }
            }
        }
    }

    impl Secure {
        /// Whether the server answers to what is not encrypted.
        async fn is_plain(&self) -> bool {
            let answer = first_byte(&self.address, b"PING\r\n").await;
            matches!(answer, Some(b'+' | b'-'))
        }
    }

    fn no_tls(address: &str) -> Error {
        Error::unsupported(
            BACKEND,
            "connect",
            "the server does not speak TLS on this port: connect to its tls-port, or without TLS (redis://)",
        )
        .with("address", address)
    }

    /// What a failure of TLS means; `None` for one of the network.
    fn explain(address: &str, error: &io::Error) -> Option<Error> {
        let cause = error.get_ref()?.downcast_ref::<rustls::Error>()?;
        use AlertDescription as Alert;
        use rustls::Error as Tls;
        let (kind, why) = match cause {
            Tls::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            ) => (
                ErrorKind::Unauthorized,
                "the server's certificate is for another name: connect by a name or an IP address that stands in it",
            ),
            Tls::InvalidCertificate(
                CertificateError::Expired | CertificateError::ExpiredContext { .. },
            ) => (
                ErrorKind::Unauthorized,
                "the server's certificate has expired: renew it",
            ),
            Tls::InvalidCertificate(_) => (
                ErrorKind::Unauthorized,
                "the server's certificate is not trusted: name the authority that signed it with REDIS_TLS_CA (Tls::ca_certificate), or have the system trust it",
            ),
            Tls::AlertReceived(Alert::CertificateRequired | Alert::HandshakeFailure) => (
                ErrorKind::Unauthorized,
                "the server asks for a client certificate (tls-auth-clients): show one with REDIS_TLS_CERT and REDIS_TLS_KEY (Tls::client_certificate)",
            ),
            Tls::AlertReceived(
                Alert::UnknownCA
                | Alert::BadCertificate
                | Alert::CertificateExpired
                | Alert::CertificateRevoked
                | Alert::CertificateUnknown
                | Alert::UnsupportedCertificate
                | Alert::AccessDenied
                | Alert::DecryptError,
            ) => (
                ErrorKind::Unauthorized,
                "the server refuses the client certificate: show one that its own authority (tls-ca-cert-file) has signed and that is valid now",
            ),
            Tls::InvalidMessage(_) => return Some(no_tls(address).because(cause.clone())),
            _ => (
                ErrorKind::Unavailable,
                "no encrypted connection could be made",
            ),
        };
        let explained = Error::new(kind, "connect", why)
            .on(BACKEND)
            .with("address", address);
        Some(explained.because(cause.clone()))
    }
}
