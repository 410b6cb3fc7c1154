//! Encrypted connections, on real servers.

use std::time::Duration;

use conformance_tests::fixtures::{NatsOptions, NatsServer};
use mas_transport_core::{ErrorKind, Message, Transport as _};
use mas_transport_nats::{NatsConfig, Tls};
use tokio::time::Instant;

use crate::certificates::{Authority, Pair};
use crate::support::{
    Member, SOON, config, connect, one, outcomes, publish, refused, server, soon, subscription,
    works,
};

use ErrorKind::{InvalidArgument, Unauthorized, Unavailable, Unsupported};

/// A server that speaks TLS, and what it takes to reach it.
struct Encrypted {
    server: NatsServer,
    authority: Authority,
    client: Pair,
}

impl Encrypted {
    /// One with a certificate for this name, which asks for certificates with `verify: true`.
    fn start(name: &str, more: &str) -> Option<Self> {
        let authority = Authority::new();
        let pair = authority.sign(name);
        let options = NatsOptions::new()
            .file("ca.pem", authority.pem())
            .file("server.pem", pair.certificate)
            .file("server.key", pair.key)
            .config(&format!(
                "tls {{\ncert_file: \"{{dir}}/server.pem\"\nkey_file: \"{{dir}}/server.key\"\n\
                 ca_file: \"{{dir}}/ca.pem\"\n{more}\n}}"
            ))
            .config("authorization { token: \"open-sesame\" }");
        Some(Self {
            server: server(&options)?,
            client: authority.sign("client"),
            authority,
        })
    }

    fn strict() -> Option<Self> {
        Self::start("127.0.0.1", "verify: true")
    }

    fn config(&self) -> NatsConfig {
        config(&self.server).token("open-sesame")
    }

    /// Trusts the server and shows nothing.
    fn trusting(&self) -> Tls {
        Tls::new().ca_certificate(self.authority.pem())
    }

    fn tls(&self) -> Tls {
        let client = &self.client;
        let (certificate, key) = (client.certificate.clone(), client.key.clone());
        self.trusting().client_certificate(certificate, key)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_with_an_authority_of_our_own_is_trusted_when_it_is_named() {
    let Some(there) = Encrypted::start("127.0.0.1", "") else {
        return;
    };
    works(there.config().tls(there.trusting())).await;
    // A certificate that nobody asked for does no harm.
    works(there.config().tls(there.tls())).await;
    let url = format!("tls://open-sesame@{}", there.server.address());
    let url = NatsConfig::from_url(&url).unwrap();
    works(url.clone().tls(there.trusting())).await;
    let words = ["not trusted", "NATS_TLS_CA", "Tls::ca_certificate"];
    let other = Tls::new().ca_certificate(Authority::new().pem());
    refused(url.clone().tls(other), Unauthorized, &words).await;
    // The system does not trust it, or trusts nobody at all.
    let kind = match rustls_trusts_somebody() {
        true => Unauthorized,
        false => InvalidArgument,
    };
    refused(url, kind, &["Tls::ca_certificate"]).await;
    // Encrypted, and the token is wrong.
    let wrong = there.config().token("hush-hush").tls(there.trusting());
    refused(wrong, Unauthorized, &["refuses these credentials"]).await;
}

/// Whether this machine has authorities of its own.
fn rustls_trusts_somebody() -> bool {
    Tls::new().client_config().is_ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_shows_its_certificate_also_after_a_kill() {
    let Some(there) = Encrypted::strict() else {
        return;
    };
    let config = there.config().tls(there.tls());
    works(config.clone()).await;
    let transport = connect(config).await;
    let mut member = Member::join(&transport, &subscription("orders", 30_000)).await;
    // Larger than a record of TLS.
    let large = "x".repeat(300_000);
    let batch = vec![Message::new("orders", large.clone()).unwrap()];
    outcomes(&transport, batch).await.pop().unwrap().unwrap();
    publish(&transport, "orders", 500).await;
    let got = member.deliveries(501).await;
    assert_eq!(got[0].message.payload(), large.as_bytes());
    member.ack(&got).await;
    // While a pull waits at the server.
    there.server.kill().unwrap();
    there.server.restart().unwrap();
    soon("it comes back", || async {
        let again = one(&transport, "orders", "again").await;
        again.map_err(|e| e.to_string())
    })
    .await;
    // A server that was killed may have forgotten the last acks.
    loop {
        let held = member.delivery().await;
        let last = held.message.payload() == b"again".as_slice();
        member.ack(&[held]).await;
        if last {
            break;
        }
    }
    transport.close(Instant::now() + SOON).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_a_certificate_is_said() {
    let Some(there) = Encrypted::strict() else {
        return;
    };
    let other = Authority::new();
    let with = |tls| there.config().tls(tls);
    let words = ["not trusted", "NATS_TLS_CA", "Tls::ca_certificate"];
    let wrong = there.tls().ca_certificate(other.pem());
    refused(with(wrong), Unauthorized, &words).await;

    // The server says so after its part of the handshake: that may get lost on the way.
    let shown = [
        "client certificate",
        "ca_file",
        "NATS_TLS_CERT and NATS_TLS_KEY",
        "Tls::client_certificate",
    ];
    for _ in 0..10 {
        refused(with(there.trusting()), Unauthorized, &shown).await;
    }
    let theirs = other.sign("client");
    let foreign = there.trusting();
    let foreign = foreign.client_certificate(theirs.certificate.clone(), theirs.key.clone());
    for _ in 0..10 {
        refused(with(foreign.clone()), Unauthorized, &shown).await;
    }
    let (tls, client) = (there.trusting(), &there.client);
    let shown = |certificate: &str, key: &str| tls.clone().client_certificate(certificate, key);
    for (bad, words) in [
        (there.tls().ca_certificate("nonsense"), "the CA certificate"),
        (shown("nonsense", &client.key), "the client certificate"),
        (shown(&client.certificate, "nonsense"), "the key"),
        (
            shown(&client.certificate, &theirs.key),
            "do not belong together",
        ),
    ] {
        refused(with(bad), InvalidArgument, &[words]).await;
    }
    let Some(elsewhere) = Encrypted::start("nats.example.org", "") else {
        return;
    };
    let config = elsewhere.config().tls(elsewhere.trusting());
    refused(config, Unauthorized, &["another name"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_speaks_otherwise_is_told() {
    let (Some(there), Some(plain)) = (Encrypted::strict(), server(&NatsOptions::new())) else {
        return;
    };
    let words = ["wants encrypted connections", "tls://"];
    refused(there.config(), Unsupported, &words).await;
    for _ in 0..10 {
        let words = ["does not speak TLS", "nats://"];
        refused(config(&plain).tls(there.tls()), Unsupported, &words).await;
    }
    // Nobody is there at all: that may pass, so it is tried for as long as it is told.
    let port = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().port()
    };
    let config = NatsConfig::new(format!("127.0.0.1:{port}"))
        .tls(there.tls())
        .connect_timeout(Duration::from_millis(300));
    refused(config, Unavailable, &["cannot be reached"]).await;
}
