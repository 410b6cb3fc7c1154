//! Whom to trust and what to show on encrypted connections.

use std::fmt;

/// Whom to trust and what to show on an encrypted connection.
///
/// By default the server's certificate is checked against the authorities that the system trusts
/// (or those in `SSL_CERT_FILE` and `SSL_CERT_DIR`), and no certificate is shown. The name or the
/// IP address in the server's address has to stand in its certificate. TLS 1.2 and 1.3.
///
/// ```
/// use mas_transport_core::Tls;
/// # fn read(_: &str) -> Vec<u8> { Vec::new() }
/// let tls = Tls::new()
///     .ca_certificate(read("ca.pem"))
///     .client_certificate(read("client.pem"), read("client.key"));
/// assert!(!format!("{tls:?}").contains("KEY"));
/// ```
///
/// What is wrong with a certificate is said when connecting.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Tls {
    authority: Option<Vec<u8>>,
    client: Option<(Vec<u8>, Vec<u8>)>,
}

impl Tls {
    /// The system's authorities, and no certificate of our own.
    pub fn new() -> Self {
        Self::default()
    }

    /// Trusts the authorities in this PEM text, and no others.
    #[must_use]
    pub fn ca_certificate(mut self, pem: impl Into<Vec<u8>>) -> Self {
        self.authority = Some(pem.into());
        self
    }

    /// Shows the server a certificate, for servers that ask for one: the chain, our own certificate
    /// first, and its private key (PKCS#8, PKCS#1 or SEC1), both as PEM text. The key appears in no
    /// message and no `Debug` output.
    #[must_use]
    pub fn client_certificate(
        mut self,
        certificate_pem: impl Into<Vec<u8>>,
        key_pem: impl Into<Vec<u8>>,
    ) -> Self {
        self.client = Some((certificate_pem.into(), key_pem.into()));
        self
    }

    /// The authorities, as PEM text: for a backend whose client reads certificates itself.
    pub fn authority_pem(&self) -> Option<&[u8]> {
        self.authority.as_deref()
    }

    /// The client certificate and its key, as PEM text, likewise. The key is a secret.
    pub fn client_pem(&self) -> Option<(&[u8], &[u8])> {
        let (certificate, key) = self.client.as_ref()?;
        Some((certificate, key))
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls")
            .field("ca_certificate", &self.authority.as_ref().map(|_| "…"))
            .field("client_certificate", &self.client.as_ref().map(|_| "…"))
            .finish()
    }
}

#[cfg(feature = "tls")]
mod client {
    use std::sync::Arc;

    use rustls::pki_types::pem::PemObject as _;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    use rustls::{ClientConfig, RootCertStore};

    use super::Tls;
    use crate::error::{Error, Result};

    fn wrong(why: &'static str) -> Error {
        Error::invalid("connect", why)
    }

    impl Tls {
        /// Reads the certificates: what a backend gives to its client.
        ///
        /// # Errors
        /// `InvalidArgument` for what cannot be read.
        pub fn client_config(&self) -> Result<ClientConfig> {
            let roots = self.roots()?;
            // Named, so that it does not matter which providers other crates of the program bring.
            let provider = Arc::new(rustls::crypto::ring::default_provider());
            let builder = ClientConfig::builder_with_provider(provider)
                .with_safe_default_protocol_versions()
                .map_err(|e| wrong("no version of TLS can be used").because(e))?
                .with_root_certificates(roots);
            let Some((chain, key)) = &self.client else {
                return Ok(builder.with_no_client_auth());
            };
            let why = "the client certificate is not PEM text of certificates";
            let chain = certificates(chain).ok_or_else(|| wrong(why))?;
            let why = "the key of the client certificate is not PEM text of a private key";
            let key = PrivateKeyDer::from_pem_slice(key).map_err(|_| wrong(why))?;
            let why = "the client certificate and its key do not belong together";
            builder
                .with_client_auth_cert(chain, key)
                .map_err(|e| wrong(why).because(e))
        }

        fn roots(&self) -> Result<RootCertStore> {
            let mut roots = RootCertStore::empty();
            if let Some(pem) = &self.authority {
                let why = "the CA certificate is not PEM text of certificates";
                for certificate in certificates(pem).ok_or_else(|| wrong(why))? {
                    let why = "the CA certificate cannot be used to trust a server";
                    roots.add(certificate).map_err(|e| wrong(why).because(e))?;
                }
                return Ok(roots);
            }
            let found = rustls_native_certs::load_native_certs();
            for error in found.errors {
                tracing::warn!(%error, "a certificate of the system cannot be read");
            }
            let (added, _) = roots.add_parsable_certificates(found.certs);
            if added == 0 {
                return Err(wrong(
                    "the system trusts no authority at all: install its CA certificates, or name \
                     the one that signed the server's with Tls::ca_certificate",
                ));
            }
            Ok(roots)
        }
    }

    fn certificates(pem: &[u8]) -> Option<Vec<CertificateDer<'static>>> {
        let read: std::result::Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
        read.ok().filter(|read| !read.is_empty())
    }
}
