//! Tokens with which boards join: Secrets of the type `bootstrap.kubernetes.io/token` in `kube-system`, as kubeadm's,
//! but for two things: only the hash of the secret is kept, and a token is used up by the first board that joins with it.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::{SignedDuration, Timestamp};
use ring::rand::{SecureRandom, SystemRandom};
use serde_json::{Value, json};

use crate::kinds::status::Status;
use crate::kinds::{Kind, Object, meta};
use crate::link::membership::{Reason, Refused};
use crate::pki::{Fingerprint, floor_time};
use crate::registry::{DeleteOptions, Preconditions, Registry};

/// Where token Secrets are.
pub const NAMESPACE: &str = "kube-system";
/// Type of token Secrets.
pub const TYPE: &str = "bootstrap.kubernetes.io/token";
/// Begins the names of token Secrets.
pub const PREFIX: &str = "bootstrap-token-";

const ID: &str = "token-id";
const HASH: &str = "token-secret-sha256";
const EXPIRATION: &str = "expiration";
const NODE_NAME: &str = "node-name";
const LABELS: &str = "node-labels";
const ALPHABET: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";
/// As kubeadm's.
const ID_LENGTH: usize = 6;
/// 165 bits: a hash of it can be kept without salt.
const SECRET_LENGTH: usize = 32;

/// A token as it is stored.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredToken {
    /// Its name.
    pub id: String,
    /// When it ends; `None`: never.
    pub expires: Option<Timestamp>,
    /// The one node name it is good for.
    pub node: Option<String>,
    /// Labels the node gets.
    pub labels: Vec<(String, String)>,
    hash: Option<Fingerprint>,
    uid: String,
    revision: String,
}

impl StoredToken {
    /// Reads a Secret; `None` if it is no token.
    pub fn of(secret: &Object) -> Option<Self> {
        let id = meta::name(secret).strip_prefix(PREFIX)?.to_owned();
        let text = |key: &str| {
            let bytes = STANDARD.decode(meta::text(meta::sub(secret, "data")?, key)).ok()?;
            String::from_utf8(bytes).ok().filter(|text| !text.is_empty())
        };
        if meta::text(secret, "type") != TYPE || text(ID).as_deref() != Some(&id) {
            return None;
        }
        // What cannot be understood must not be valid for ever.
        let expires = text(EXPIRATION).map(|time| time.parse().unwrap_or(Timestamp::UNIX_EPOCH));
        let pair = |label: &str| label.split_once('=').map(|(k, v)| (k.to_owned(), v.to_owned()));
        Some(Self {
            id,
            expires,
            node: text(NODE_NAME),
            labels: text(LABELS).iter().flat_map(|list| list.split(',')).filter_map(pair).collect(),
            hash: text(HASH).and_then(|hash| hash.parse().ok()),
            uid: meta::uid(secret).to_owned(),
            revision: meta::resource_version(secret).to_owned(),
        })
    }

    /// Whether its time is over.
    pub fn expired(&self, now: Timestamp) -> bool {
        self.expires.is_some_and(|end| end <= now)
    }
}

/// A token to be made.
#[derive(Clone, Debug, Default)]
pub struct NewToken {
    /// How long it is good; zero: for ever.
    pub ttl: Duration,
    /// The one node name it is good for.
    pub node: Option<String>,
    /// Labels the node gets.
    pub labels: Vec<(String, String)>,
}

impl NewToken {
    /// Its id, its secret, and the Secret to be created, which does not hold the latter.
    ///
    /// # Errors
    /// When the kernel gives no random numbers.
    pub fn make(&self, now: Timestamp) -> Result<(String, String, Value), ring::error::Unspecified> {
        let (id, secret) = (random(ID_LENGTH)?, random(SECRET_LENGTH)?);
        let mut data = Object::new();
        let mut set = |key: &str, value: String| drop(data.insert(key.to_owned(), value.into()));
        set(ID, id.clone());
        set(HASH, Fingerprint::of(secret.as_bytes()).to_string());
        if !self.ttl.is_zero() {
            let ttl = SignedDuration::try_from(self.ttl).unwrap_or(SignedDuration::MAX);
            set(EXPIRATION, meta::format_time(now.saturating_add(ttl).unwrap_or(Timestamp::MAX)));
        }
        if let Some(node) = &self.node {
            set(NODE_NAME, node.clone());
        }
        if !self.labels.is_empty() {
            let labels: Vec<String> = self.labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
            set(LABELS, labels.join(","));
        }
        let secret_object = json!({
            "apiVersion": "v1", "kind": "Secret", "type": TYPE,
            "metadata": {"name": format!("{PREFIX}{id}"), "namespace": NAMESPACE},
            "stringData": data,
        });
        Ok((id, secret, secret_object))
    }
}

fn random(length: usize) -> Result<String, ring::error::Unspecified> {
    let source = SystemRandom::new();
    let mut text = String::new();
    while text.len() < length {
        let mut byte = [0];
        source.fill(&mut byte)?;
        // 252 is the largest multiple of 36 in a byte: every character is as likely.
        if byte[0] < 252 {
            text.push(char::from(ALPHABET[usize::from(byte[0] % 36)]));
        }
    }
    Ok(text)
}

/// The time by which tokens expire.
pub(super) fn now() -> Timestamp {
    Timestamp::UNIX_EPOCH.saturating_add(SignedDuration::try_from(floor_time()).unwrap_or_default()).unwrap_or_default()
}

/// Finds the token and checks the secret.
pub(super) fn check(registry: &Registry, kind: &Kind, id: &str, secret: &str) -> Result<StoredToken, Refused> {
    let refused = |message: &str| Refused::new(Reason::Token, message);
    let unknown = || refused("the token is unknown: it may be used up, expired or removed");
    let found = match registry.get(kind, NAMESPACE, &format!("{PREFIX}{id}")) {
        Ok(object) => StoredToken::of(&object),
        Err(status) if matches!(status.code, 400 | 404) => None,
        Err(status) => return Err(Refused::new(Reason::Unavailable, status.message)),
    };
    // Comparing hashes, not secrets: how long it takes tells nothing of use.
    let token = found.filter(|t| t.hash == Some(Fingerprint::of(secret.as_bytes()))).ok_or_else(unknown)?;
    if token.expired(now()) {
        return Err(refused("the token has expired"));
    }
    Ok(token)
}

/// Uses a token up. Of several boards that try at the same time one succeeds.
pub(super) async fn consume(registry: &Registry, kind: &Kind, token: &StoredToken) -> Result<(), Refused> {
    let preconditions = Preconditions { uid: Some(token.uid.clone()), revision: Some(token.revision.clone()) };
    let options = DeleteOptions { preconditions, user: "system:umiak".into(), ..DeleteOptions::now() };
    match registry.delete(kind, NAMESPACE, &format!("{PREFIX}{}", token.id), &options).await {
        Ok(_) => Ok(()),
        Err(status) if matches!(status.code, 404 | 409) => {
            Err(Refused::new(Reason::Token, "the token has just been used"))
        }
        Err(status) => Err(unavailable(&status)),
    }
}

/// The server's own trouble.
pub(super) fn unavailable(status: &Status) -> Refused {
    Refused::new(Reason::Unavailable, format!("the server cannot do it now: {}", status.message))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn stored(new: &NewToken) -> (String, StoredToken) {
        let (_, secret, object) = new.make(Timestamp::from_second(1000).unwrap()).unwrap();
        let mut object = object.as_object().unwrap().clone();
        let texts = object.remove("stringData").unwrap();
        for (key, value) in texts.as_object().unwrap() {
            assert!(!value.as_str().unwrap().contains(&secret), "{key}");
            meta::child(&mut object, "data").insert(key.clone(), STANDARD.encode(value.as_str().unwrap()).into());
        }
        (secret, StoredToken::of(&object).unwrap())
    }

    #[test]
    fn a_token_is_read_as_made() {
        let new = NewToken {
            ttl: Duration::from_secs(60),
            node: Some("pi".into()),
            labels: vec![("site".into(), "roof".into()), ("empty".into(), "".into())],
        };
        let (secret, token) = stored(&new);
        assert_eq!(secret.len(), SECRET_LENGTH);
        assert_eq!((&token.node, &token.labels), (&new.node, &new.labels));
        let at = |second| Timestamp::from_second(second).unwrap();
        assert!(!token.expired(at(1059)) && token.expired(at(1060)));
        assert!(!stored(&NewToken::default()).1.expired(Timestamp::MAX));
    }
}
