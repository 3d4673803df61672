//! A resource in the form in which it is sent.

use karst_api::discovery::Resource;
use sha2::{Digest, Sha256};

/// Bytes of the content hash that make a version. 64 random bits would already do; 96 leave no
/// room for argument.
const VERSION_BYTES: usize = 12;

/// One encoded resource with the names it goes by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rendered {
    /// Primary name.
    pub name: String,
    /// Other names, `network/ip`.
    pub aliases: Vec<String>,
    /// Hash of the content: equal content has equal versions, in every controller and at any time,
    /// so a client that reconnects elsewhere is sent only what really differs.
    pub version: String,
    /// Encoded message.
    pub bytes: Vec<u8>,
}

impl Rendered {
    pub(crate) fn new(name: String, aliases: Vec<String>, message: &impl prost::Message) -> Self {
        let bytes = message.encode_to_vec();
        let digest = Sha256::digest(&bytes);
        let version = digest
            .iter()
            .take(VERSION_BYTES)
            .map(|byte| format!("{byte:02x}"))
            .collect();
        Self {
            name,
            aliases,
            version,
            bytes,
        }
    }

    /// Packs it for sending.
    #[must_use]
    pub fn to_resource(&self, type_url: &str) -> Resource {
        Resource::pack(
            self.name.clone(),
            self.aliases.clone(),
            self.version.clone(),
            type_url,
            self.bytes.clone(),
        )
    }
}
