//! Who may connect to a pod that is behind a waypoint, and whose word about the client counts.

use std::net::SocketAddr;

use karst_identity::SpiffeId;
use serde::Serialize;

use crate::reason::Reason;

/// What connections to a pod must satisfy. Empty: nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Waypoints(pub Vec<Requirement>);

/// One waypoint in front of a pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Requirement {
    /// Ports of the application; empty for all.
    pub ports: Vec<u16>,
    /// Identities of the waypoint.
    pub identities: Vec<SpiffeId>,
    /// What becomes of connections of others.
    pub others: Others,
}

/// What becomes of connections that do not come through a waypoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Others {
    /// They pass.
    Pass,
    /// They are refused.
    Refused,
}

impl Waypoints {
    /// Whether a connection of `peer` to the application's `port` may pass. A plaintext one has
    /// no peer that is known.
    ///
    /// # Errors
    /// [`Reason::WaypointRequired`].
    pub fn check(&self, port: u16, peer: Option<&SpiffeId>) -> Result<(), Reason> {
        let fails = |requirement: &Requirement| {
            requirement.others == Others::Refused
                && (requirement.ports.is_empty() || requirement.ports.contains(&port))
                && !peer.is_some_and(|peer| requirement.identities.contains(peer))
        };
        if self.0.iter().any(fails) {
            return Err(Reason::WaypointRequired);
        }
        Ok(())
    }

    /// Whether `peer` is believed when it says that it connects for `client`. It speaks for
    /// clients anywhere, but for none that only the pod itself could be: applications take
    /// what comes from loopback for their own.
    pub fn vouches(&self, peer: &SpiffeId, client: SocketAddr) -> bool {
        let ip = client.ip().to_canonical();
        let possible = !(ip.is_loopback() || ip.is_unspecified() || ip.is_multicast());
        possible && self.0.iter().any(|one| one.identities.contains(peer))
    }
}

#[cfg(test)]
mod tests {
    use karst_identity::SpiffeId;

    use super::{Others, Requirement, Waypoints};
    use crate::reason::Reason;

    fn id(account: &str) -> SpiffeId {
        SpiffeId::new("cluster.local", "ns", account).expect("id")
    }

    fn requirement(ports: &[u16], accounts: &[&str], others: Others) -> Requirement {
        Requirement {
            ports: ports.to_vec(),
            identities: accounts.iter().map(|account| id(account)).collect(),
            others,
        }
    }

    #[test]
    fn nothing_is_required_of_a_pod_without_waypoints() {
        let none = Waypoints::default();
        assert_eq!(none.check(80, None), Ok(()));
        assert_eq!(none.check(80, Some(&id("client"))), Ok(()));
    }

    #[test]
    fn only_a_waypoint_may_connect_where_it_is_required() {
        let one = Waypoints(vec![requirement(&[80], &["wp", "wp2"], Others::Refused)]);
        assert_eq!(one.check(80, Some(&id("wp2"))), Ok(()));
        for peer in [None, Some(&id("client"))] {
            assert_eq!(one.check(80, peer), Err(Reason::WaypointRequired));
            assert_eq!(one.check(81, peer), Ok(()), "another port");
        }
        let all = Waypoints(vec![requirement(&[], &["wp"], Others::Refused)]);
        assert_eq!(all.check(81, None), Err(Reason::WaypointRequired));
    }

    #[test]
    fn every_requirement_counts() {
        let both = Waypoints(vec![
            requirement(&[80], &["wp"], Others::Refused),
            requirement(&[], &["other", "wp"], Others::Refused),
        ]);
        assert_eq!(both.check(80, Some(&id("wp"))), Ok(()));
        assert_eq!(both.check(81, Some(&id("other"))), Ok(()));
        let refused = Err(Reason::WaypointRequired);
        assert_eq!(both.check(80, Some(&id("other"))), refused);
    }

    #[test]
    fn required_without_identities_refuses_all() {
        let nobody = Waypoints(vec![requirement(&[], &[], Others::Refused)]);
        let refused = Err(Reason::WaypointRequired);
        assert_eq!(nobody.check(80, Some(&id("wp"))), refused);
        assert_eq!(nobody.check(80, None), refused);
    }

    #[test]
    fn a_waypoint_is_believed_whether_required_or_not() {
        let client = "203.0.113.7:4711".parse().expect("address");
        for others in [Others::Pass, Others::Refused] {
            let one = Waypoints(vec![requirement(&[80], &["wp"], others)]);
            assert!(one.vouches(&id("wp"), client));
            assert!(!one.vouches(&id("client"), client));
            for own in [
                "127.0.0.1:1",
                "[::1]:1",
                "[::ffff:127.0.0.1]:1",
                "0.0.0.0:1",
            ] {
                assert!(
                    !one.vouches(&id("wp"), own.parse().expect("address")),
                    "{own}"
                );
            }
        }
        let open = Waypoints(vec![requirement(&[80], &["wp"], Others::Pass)]);
        assert_eq!(open.check(80, None), Ok(()));
    }
}
