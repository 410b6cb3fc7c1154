//! A server of an operator: accounts and users by tokens that are signed here.

use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use conformance_tests::fixtures::NatsOptions;
use nkeys::KeyPair;
use serde_json::{Value, json};

/// An operator with one account for messages.
pub(crate) struct Operator {
    operator: KeyPair,
    account: KeyPair,
    system: KeyPair,
}

/// A token: what it claims of whom, signed.
fn token(signer: &KeyPair, subject: &str, mut claims: Value, more: Value) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    claims["version"] = json!(2);
    let mut body = json!({
        "jti": "made-by-a-test", "iat": now.as_secs(), "iss": signer.public_key(),
        "name": "test", "sub": subject, "nats": claims,
    });
    if let (Value::Object(body), Value::Object(more)) = (&mut body, more) {
        body.extend(more);
    }
    let header = json!({ "typ": "JWT", "alg": "ed25519-nkey" });
    let encode = |part: &Value| URL_SAFE_NO_PAD.encode(part.to_string());
    let signed = format!("{}.{}", encode(&header), encode(&body));
    let signature = signer.sign(signed.as_bytes()).unwrap();
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
}

impl Operator {
    pub(crate) fn new() -> Self {
        Self {
            operator: KeyPair::new_operator(),
            account: KeyPair::new_account(),
            system: KeyPair::new_account(),
        }
    }

    /// A server that trusts it.
    pub(crate) fn options(&self) -> NatsOptions {
        let public = self.operator.public_key();
        let operator = token(
            &self.operator,
            &public,
            json!({ "type": "operator" }),
            json!({}),
        );
        let account = |keys: &KeyPair, storage: i64| {
            let limits = json!({
                "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1,
                "wildcards": true, "conn": -1, "leaf": -1, "streams": storage, "consumer": storage,
                "mem_storage": storage, "disk_storage": storage,
            });
            let claims = json!({
                "type": "account", "limits": limits,
                "default_permissions": { "pub": {}, "sub": {} },
            });
            token(&self.operator, &keys.public_key(), claims, json!({}))
        };
        let config = format!(
            "operator: {operator}\nsystem_account: {system}\nresolver: MEMORY\n\
             resolver_preload {{\n{name}: {account}\n{system}: {}\n}}\n",
            account(&self.system, 0),
            system = self.system.public_key(),
            name = self.account.public_key(),
            account = account(&self.account, -1),
        );
        NatsOptions::new().config(&config)
    }

    /// The credentials file of a user of the account, for so many seconds from now.
    pub(crate) fn user(&self, lives: Option<i64>) -> String {
        let user = KeyPair::new_user();
        let claims = json!({
            "type": "user", "pub": {}, "sub": {}, "subs": -1, "data": -1, "payload": -1,
        });
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let more = match lives {
            Some(seconds) => json!({ "exp": now.as_secs().saturating_add_signed(seconds) }),
            None => json!({}),
        };
        let token = token(&self.account, &user.public_key(), claims, more);
        credentials(&token, &user.seed().unwrap())
    }
}

/// As `nsc` writes them.
pub(crate) fn credentials(token: &str, seed: &str) -> String {
    format!(
        "-----BEGIN NATS USER JWT-----\n{token}\n------END NATS USER JWT------\n\n\
         ************************* IMPORTANT *************************\n\
         NKEY Seed printed below can be used to sign and prove identity.\n\
         NKEYs are sensitive and should be treated as secrets.\n\n\
         -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
    )
}
