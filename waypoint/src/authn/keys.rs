//! JSON Web Key Sets (RFC 7517): the keys that tokens may be signed with.

use std::collections::HashSet;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, DecodingKey};
use serde_json::Value;

use super::Refusal;

/// Keys of a set. Issuers have two or three at a time.
pub const MAX_KEYS: usize = 64;

/// Size of a set, bytes.
pub const MAX_BYTES: usize = 256 * 1024;

/// Keys that are tried for one token that names none, or a name that several have: each costs a verification.
const MAX_TRIES: usize = 8;

/// Size of an RSA modulus, bytes: 2048 bits, below which signatures can be made by others, to 8192, above which
/// checking one takes milliseconds.
const RSA_BYTES: std::ops::RangeInclusive<usize> = 256..=1024;

/// The keys of an issuer.
pub struct KeySet {
    keys: Vec<Key>,
}

struct Key {
    name: Option<String>,
    algorithms: Vec<Algorithm>,
    key: DecodingKey,
}

/// Why a text is no key set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeysError {
    /// It is longer than [`MAX_BYTES`].
    #[error("is larger than {MAX_BYTES} bytes")]
    TooLarge,
    /// It is not the JSON of a set.
    #[error("is no JSON Web Key Set")]
    Malformed,
    /// It has more than [`MAX_KEYS`].
    #[error("has more than {MAX_KEYS} keys")]
    TooMany,
    /// None of its keys can be used.
    #[error(
        "has no key that can be used: RSA of at least 2048 bits, P-256, P-384 or Ed25519, for signatures"
    )]
    NoKey,
}

impl KeySet {
    /// Reads a set. Keys that are of no use to us are passed over, symmetric ones among them: who may check tokens by
    /// such a key could make them.
    ///
    /// # Errors
    /// It is none, or has no key that can be used.
    pub fn read(text: &[u8]) -> Result<Self, KeysError> {
        if text.len() > MAX_BYTES {
            return Err(KeysError::TooLarge);
        }
        let set: Value = serde_json::from_slice(text).map_err(|_| KeysError::Malformed)?;
        let keys = set.get("keys").and_then(Value::as_array);
        let keys = keys.ok_or(KeysError::Malformed)?;
        if keys.len() > MAX_KEYS {
            return Err(KeysError::TooMany);
        }
        let keys: Vec<Key> = keys.iter().filter_map(Key::new).collect();
        if keys.is_empty() {
            return Err(KeysError::NoKey);
        }
        Ok(Self { keys })
    }

    /// The keys that a token may be signed with.
    ///
    /// # Errors
    /// There is none of that name, or none for that algorithm.
    pub(super) fn find(
        &self,
        name: Option<&str>,
        algorithm: Algorithm,
    ) -> Result<impl Iterator<Item = &DecodingKey>, Refusal> {
        // A key without a name may be any, and a token without one may be by any.
        let is_named = move |key: &&Key| match (name, &key.name) {
            (Some(name), Some(own)) => name == own,
            (None, _) | (_, None) => true,
        };
        let fits = move |key: &&Key| key.algorithms.contains(&algorithm);
        if !self.keys.iter().any(|key| is_named(&key)) {
            return Err(Refusal::UnknownKey);
        }
        if !self.keys.iter().filter(is_named).any(|key| fits(&key)) {
            return Err(Refusal::BadAlgorithm);
        }
        let keys = self.keys.iter().filter(is_named).filter(fits);
        Ok(keys.take(MAX_TRIES).map(|key| &key.key))
    }
}

impl Key {
    fn new(value: &Value) -> Option<Self> {
        let text = |field: &str| value.get(field).and_then(Value::as_str);
        let is_for_signatures = text("use").is_none_or(|purpose| purpose == "sig");
        let operations = value.get("key_ops").and_then(Value::as_array);
        let may_verify = operations.is_none_or(|list| list.iter().any(|one| one == "verify"));
        if !is_for_signatures || !may_verify {
            return None;
        }
        let mut algorithms = match (text("kty")?, text("crv")) {
            ("RSA", _) => {
                let modulus = URL_SAFE_NO_PAD.decode(text("n")?).ok()?;
                let leading = modulus.iter().take_while(|byte| **byte == 0).count();
                if !RSA_BYTES.contains(&(modulus.len() - leading)) {
                    return None;
                }
                vec![
                    Algorithm::RS256,
                    Algorithm::RS384,
                    Algorithm::RS512,
                    Algorithm::PS256,
                    Algorithm::PS384,
                    Algorithm::PS512,
                ]
            }
            ("EC", Some("P-256")) => vec![Algorithm::ES256],
            ("EC", Some("P-384")) => vec![Algorithm::ES384],
            ("OKP", Some("Ed25519")) => vec![Algorithm::EdDSA],
            _ => return None,
        };
        if let Some(only) = text("alg") {
            let only = only.parse::<Algorithm>().ok()?;
            algorithms.retain(|algorithm| *algorithm == only);
        }
        if algorithms.is_empty() {
            return None;
        }
        let jwk: Jwk = serde_json::from_value(value.clone()).ok()?;
        Some(Self {
            name: text("kid").map(str::to_owned),
            algorithms,
            key: DecodingKey::from_jwk(&jwk).ok()?,
        })
    }
}

impl std::fmt::Debug for KeySet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: HashSet<_> = self.keys.iter().map(|key| &key.name).collect();
        f.debug_struct("KeySet").field("names", &names).finish()
    }
}
