//! A transport URL, taken apart.
//!
//! Several hosts by comma are common in addresses of brokers and no generic URL parser takes them,
//! so the parts are split here; decoding is `percent-encoding`'s.

use std::fmt;

use percent_encoding::percent_decode_str;

use crate::secret::{Secret, has_odd_port};

/// `scheme://user:password@host:port,host:port/path?option=value`, taken apart and decoded.
#[derive(Clone)]
pub(crate) struct TransportUrl {
    pub(crate) scheme: String,
    pub(crate) username: Option<String>,
    pub(crate) password: Option<Secret>,
    /// As written, several by comma; empty when there is none.
    pub(crate) hosts: String,
    /// With its slash; empty when there is none.
    pub(crate) path: String,
    pub(crate) options: Vec<(String, String)>,
}

impl fmt::Debug for TransportUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TransportUrl")
            .field("scheme", &self.scheme)
            .field("hosts", &self.hosts)
            .finish_non_exhaustive()
    }
}

impl TransportUrl {
    /// Takes a URL apart; otherwise says what is wrong, without repeating it.
    pub(crate) fn parse(text: &str) -> Result<Self, &'static str> {
        let text = text.trim();
        let (scheme, rest) = text
            .split_once("://")
            .ok_or("it has no scheme, such as redis://")?;
        let mut letters = scheme.bytes();
        let named = letters.next().is_some_and(|b| b.is_ascii_alphabetic())
            && letters.all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b));
        if !named {
            return Err("its scheme is not a word of letters and digits");
        }
        if rest.contains('#') {
            return Err("it has a fragment: write %23 for a # in a password");
        }
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = match rest.find('/') {
            Some(at) => rest.split_at(at),
            None => (rest, ""),
        };
        if path.contains('@') || query.contains('@') {
            return Err(
                "it has an @ behind its host: write %2F for a /, %3F for a ? and %40 for \
                        an @ in a password",
            );
        }
        let (credentials, hosts) = match authority.rsplit_once('@') {
            Some((credentials, hosts)) => (Some(credentials), hosts),
            None => (None, authority),
        };
        if credentials.is_none() && has_odd_port(hosts) {
            return Err(
                "its port is not a number; with a password it is scheme://user:password@host:port",
            );
        }
        let (username, password) = match credentials {
            Some(credentials) => match credentials.split_once(':') {
                Some((username, password)) => (Some(username), Some(password)),
                None => (Some(credentials), None),
            },
            None => (None, None),
        };
        let text_of = |part: Option<&str>| match part.filter(|part| !part.is_empty()) {
            Some(part) => decode(part).map(Some),
            None => Ok(None),
        };
        let mut options = Vec::new();
        for option in query.split('&').filter(|option| !option.is_empty()) {
            let (name, value) = option
                .split_once('=')
                .ok_or("an option of it has no value: ?name=value&name=value")?;
            options.push((decode(name)?, decode(value)?));
        }
        Ok(Self {
            scheme: scheme.to_ascii_lowercase(),
            username: text_of(username)?,
            password: text_of(password)?.map(Secret::from),
            hosts: decode(hosts)?,
            path: decode(path)?,
            options,
        })
    }
}

fn decode(text: &str) -> Result<String, &'static str> {
    let decoded = percent_decode_str(text).decode_utf8();
    let decoded = decoded.map_err(|_| "a percent-encoded part of it is not UTF-8")?;
    Ok(decoded.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_taken_apart_and_decoded() {
        let url = TransportUrl::parse("Redis://ann:hu%2Fsh%40@a:1,[::1]:2/3?pool_size=4&x=%20y");
        let url = url.unwrap();
        assert_eq!(url.scheme, "redis");
        assert_eq!(url.username.as_deref(), Some("ann"));
        assert_eq!(url.password.as_ref().unwrap().expose(), "hu/sh@");
        assert_eq!(url.hosts, "a:1,[::1]:2");
        assert_eq!(url.path, "/3");
        let options = [("pool_size", "4"), ("x", " y")];
        assert_eq!(
            url.options,
            options.map(|(n, v)| (n.to_owned(), v.to_owned()))
        );
        assert!(!format!("{url:?}").contains("hu"));

        let bare = TransportUrl::parse("memory://").unwrap();
        assert!(bare.hosts.is_empty() && bare.path.is_empty() && bare.username.is_none());
        let only_password = TransportUrl::parse("redis://:hush@h").unwrap();
        assert!(only_password.username.is_none() && only_password.password.is_some());
        assert_eq!(
            TransportUrl::parse("files:///var/x").unwrap().path,
            "/var/x"
        );
    }

    #[test]
    fn what_is_no_url_is_refused_without_being_repeated() {
        for bad in [
            "localhost:6379",
            "://h",
            "9p://h",
            "redis://:hu#sh@h",
            "redis://:hu/sh@h",
            "redis://:hu?sh@h",
            "redis://h?hush",
            "redis://%ff@h",
        ] {
            let wrong = TransportUrl::parse(bad).unwrap_err();
            assert!(!wrong.contains("hu"), "{wrong}");
        }
    }
}
