//! SPIFFE IDs as the mesh uses them.

/// `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`, in its parts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Trust domain.
    pub trust_domain: String,
    /// Namespace.
    pub namespace: String,
    /// Service account.
    pub service_account: String,
}

/// Longest part in bytes.
const MAX_PART_BYTES: usize = 253;

impl Identity {
    /// Reads an ID of exactly that form; anything else is none.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.strip_prefix("spiffe://")?.split('/');
        let trust_domain = part(parts.next()?)?;
        if parts.next()? != "ns" {
            return None;
        }
        let namespace = part(parts.next()?)?;
        if parts.next()? != "sa" {
            return None;
        }
        let service_account = part(parts.next()?)?;
        parts.next().is_none().then_some(Self {
            trust_domain,
            namespace,
            service_account,
        })
    }
}

impl std::fmt::Display for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "spiffe://{}/ns/{}/sa/{}",
            self.trust_domain, self.namespace, self.service_account
        )
    }
}

/// A part of an ID: what Kubernetes allows in a name, so nothing that means something in a URI.
fn part(text: &str) -> Option<String> {
    let allowed = |byte: u8| {
        byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-' || byte == b'.'
    };
    let valid = !text.is_empty() && text.len() <= MAX_PART_BYTES && text.bytes().all(allowed);
    valid.then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_form_is_strict() {
        let text = "spiffe://cluster.local/ns/shop/sa/web";
        assert_eq!(Identity::parse(text).unwrap().to_string(), text);
        for bad in [
            "",
            "cluster.local/ns/shop/sa/web",
            "spiffe://cluster.local/ns/shop/sa/",
            "spiffe:///ns/shop/sa/web",
            "spiffe://cluster.local/ns/shop/sa/web/",
            "spiffe://cluster.local/ns/shop/sa/web/more",
            "spiffe://cluster.local/sa/web/ns/shop",
            "spiffe://cluster.local/ns/shop%2f/sa/web",
            "spiffe://cluster.local:1/ns/shop/sa/web",
            "spiffe://Cluster.local/ns/shop/sa/web",
            "SPIFFE://cluster.local/ns/shop/sa/web",
        ] {
            assert_eq!(Identity::parse(bad), None, "{bad:?}");
        }
    }
}
