//! The keys that may sign tokens.

use std::{fs, os::unix::fs::MetadataExt, path::Path};

use anyhow::{Context, ensure};
use jsonwebtoken::{
    Algorithm, DecodingKey,
    jwk::{AlgorithmParameters, EllipticCurve, Jwk, JwkSet},
};

/// Largest JWKS file in bytes.
const MAX_FILE_BYTES: u64 = 1024 * 1024;

/// Keys that are used; an API server has one or two.
const MAX_KEYS: usize = 32;

/// What tells one content of the file from another.
type Stamp = (u64, u64, i64, i64);

/// The keys of a JWKS file.
pub struct Jwks {
    stamp: Option<Stamp>,
    keys: Vec<(Option<String>, Algorithm, DecodingKey)>,
}

impl Jwks {
    /// Reads the file.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let context = || format!("reading the token keys {}", path.display());
        let metadata = fs::metadata(path).with_context(context)?;
        ensure!(
            metadata.len() <= MAX_FILE_BYTES,
            "{}: larger than {MAX_FILE_BYTES} bytes",
            path.display()
        );
        let stamp = (
            metadata.ino(),
            metadata.len(),
            metadata.mtime(),
            metadata.mtime_nsec(),
        );
        let text = fs::read(path).with_context(context)?;
        let set: JwkSet = serde_json::from_slice(&text).with_context(context)?;
        let keys: Vec<_> = set.keys.iter().take(MAX_KEYS).filter_map(usable).collect();
        ensure!(
            !keys.is_empty(),
            "{}: it has no key for ES256 or RS256",
            path.display()
        );
        Ok(Self {
            stamp: Some(stamp),
            keys,
        })
    }

    /// Reads the file again if it has changed. On an error the former keys stay.
    pub fn refresh(&mut self, path: &Path) -> anyhow::Result<()> {
        let metadata = fs::metadata(path)?;
        let stamp = (
            metadata.ino(),
            metadata.len(),
            metadata.mtime(),
            metadata.mtime_nsec(),
        );
        if self.stamp != Some(stamp) {
            *self = Self::read(path)?;
        }
        Ok(())
    }

    /// Whether there is no key.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// The key of that name; without a name, the only key.
    pub fn find(&self, kid: Option<&str>) -> Option<(DecodingKey, Algorithm)> {
        let found = match kid {
            Some(_) => self.keys.iter().find(|(name, ..)| name.as_deref() == kid),
            None if self.keys.len() == 1 => self.keys.first(),
            None => None,
        };
        found.map(|(_, algorithm, key)| (key.clone(), *algorithm))
    }
}

/// A key with the one algorithm it may be used with.
fn usable(jwk: &Jwk) -> Option<(Option<String>, Algorithm, DecodingKey)> {
    let algorithm = match &jwk.algorithm {
        AlgorithmParameters::EllipticCurve(key) if key.curve == EllipticCurve::P256 => {
            Algorithm::ES256
        }
        AlgorithmParameters::RSA(_) => Algorithm::RS256,
        _ => return None,
    };
    let key = DecodingKey::from_jwk(jwk).ok()?;
    Some((jwk.common.key_id.clone(), algorithm, key))
}
