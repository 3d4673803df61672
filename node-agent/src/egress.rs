//! Where a pod may connect to.

use karst_api::node::EgressMode;
use serde::Serialize;

/// Whether a pod's connections may leave what the mesh knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Egress {
    /// They may.
    #[default]
    AllowAny,
    /// Only workloads and services that the mesh knows are connected to.
    RegistryOnly,
}

impl Egress {
    /// From the wire. A mode that is not known is one of a later controller: the narrow one is
    /// taken for it.
    pub fn from_wire(mode: i32) -> Self {
        match EgressMode::try_from(mode) {
            Ok(EgressMode::Unspecified | EgressMode::AllowAny) => Self::AllowAny,
            Ok(EgressMode::RegistryOnly) | Err(_) => Self::RegistryOnly,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Egress;

    #[test]
    fn an_unknown_mode_is_the_narrow_one() {
        assert_eq!(Egress::from_wire(0), Egress::AllowAny);
        assert_eq!(Egress::from_wire(1), Egress::AllowAny);
        for narrow in [2, 3, -1] {
            assert_eq!(Egress::from_wire(narrow), Egress::RegistryOnly);
        }
    }
}
