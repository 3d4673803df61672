//! Names and versions of the resources that are held, in little memory: there is one for each pod of the mesh.

use std::collections::HashMap;

/// Bytes of a version that is a hash, as our controllers make them: 24 hexadecimal digits.
const HASH_BYTES: usize = 12;

/// What is held of one type.
#[derive(Debug, Default)]
pub(crate) struct Held(HashMap<Box<str>, Version>);

/// A version. Other controllers may send any text.
#[derive(Debug, PartialEq, Eq)]
enum Version {
    Hash([u8; HASH_BYTES]),
    Text(Box<str>),
}

impl Held {
    pub(crate) fn insert(&mut self, name: String, version: &str) {
        let version = Version::of(version);
        match self.0.get_mut(name.as_str()) {
            // Kept as it is: the name of a response may have room that nobody needs.
            Some(held) => *held = version,
            None => {
                self.0.insert(name.into_boxed_str(), version);
            }
        }
    }

    pub(crate) fn remove(&mut self, name: &str) {
        self.0.remove(name);
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Names and versions as they came.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (String, String)> {
        let all = self.0.iter();
        all.map(|(name, version)| (name.to_string(), version.text()))
    }

    #[cfg(test)]
    pub(crate) fn version(&self, name: &str) -> Option<String> {
        self.0.get(name).map(Version::text)
    }
}

impl Version {
    fn of(text: &str) -> Self {
        Self::hash(text).unwrap_or_else(|| Self::Text(text.into()))
    }

    /// `None` for all that would not come out again as it is.
    fn hash(text: &str) -> Option<Self> {
        let is_plain = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        if text.len() != 2 * HASH_BYTES || !text.bytes().all(is_plain) {
            return None;
        }
        let mut hash = [0; HASH_BYTES];
        for (at, byte) in hash.iter_mut().enumerate() {
            *byte = u8::from_str_radix(text.get(2 * at..2 * at + 2)?, 16).ok()?;
        }
        Some(Self::Hash(hash))
    }

    fn text(&self) -> String {
        match self {
            Self::Hash(hash) => hash.iter().map(|byte| format!("{byte:02x}")).collect(),
            Self::Text(text) => text.to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_come_out_as_they_went_in() {
        let mut held = Held::default();
        let versions = [
            "0123456789abcdef01234567",
            "0123456789ABCDEF01234567",
            "0123456789abcdef0123456",
            "+123456789abcdef01234567",
            "2026-01-01T00:00:00Z/999",
            "",
            "7",
            "zwölf Bytes sind es so",
        ];
        for (name, version) in (0..).map(|number: u32| number.to_string()).zip(versions) {
            held.insert(name.clone(), "before");
            held.insert(name.clone(), version);
            assert_eq!(held.version(&name).as_deref(), Some(version));
        }
        assert_eq!(held.len(), versions.len());
        let is_hash = |text: &str| matches!(Version::of(text), Version::Hash(_));
        assert_eq!(versions.map(is_hash)[..2], [true, false]);
        held.remove("0");
        assert_eq!(held.iter().count(), versions.len() - 1);
        assert!(std::mem::size_of::<Version>() <= 24);
    }
}
