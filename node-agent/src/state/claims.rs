//! Who claims an address. Nearly always it is one; more while an address goes over to another.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

/// Addresses, each with the names that claim it, the newest last.
#[derive(Debug, Default)]
pub struct Claims(HashMap<IpAddr, Claim>);

/// One name takes no allocation of its own: there is one such entry for each pod of the mesh.
#[derive(Debug)]
enum Claim {
    One(Arc<str>),
    Several(Vec<Arc<str>>),
}

impl Claims {
    /// A name claims an address; it is the newest.
    pub fn add(&mut self, ip: IpAddr, name: &Arc<str>) {
        let name = Arc::clone(name);
        let claim = match self.0.remove(&ip) {
            None => Claim::One(name),
            Some(Claim::One(first)) => Claim::Several(vec![first, name]),
            Some(Claim::Several(mut names)) => {
                names.push(name);
                Claim::Several(names)
            }
        };
        self.0.insert(ip, claim);
    }

    /// A name claims an address no more.
    pub fn remove(&mut self, ip: IpAddr, name: &Arc<str>) {
        let Some(claim) = self.0.get_mut(&ip) else {
            return;
        };
        let is_free = match claim {
            Claim::One(only) => only == name,
            Claim::Several(names) => {
                names.retain(|one| one != name);
                names.is_empty()
            }
        };
        if is_free {
            self.0.remove(&ip);
        } else if let Claim::Several(names) = claim
            && let [only] = names.as_slice()
        {
            *claim = Claim::One(Arc::clone(only));
        }
    }

    /// The newest name that claims an address.
    pub fn newest(&self, ip: IpAddr) -> Option<&Arc<str>> {
        match self.0.get(&ip)? {
            Claim::One(name) => Some(name),
            Claim::Several(names) => names.last(),
        }
    }

    /// Whether anybody claims an address.
    pub fn contains(&self, ip: IpAddr) -> bool {
        self.0.contains_key(&ip)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_counts_and_the_others_wait() {
        let ip = IpAddr::from([10, 0, 0, 1]);
        let names: Vec<Arc<str>> = ["a", "b", "c"].map(Arc::from).to_vec();
        let mut claims = Claims::default();
        assert!(!claims.contains(ip) && claims.newest(ip).is_none());
        for name in &names {
            claims.add(ip, name);
            assert_eq!(claims.newest(ip), Some(name));
        }
        claims.remove(ip, &names[1]);
        assert_eq!(claims.newest(ip), Some(&names[2]));
        claims.remove(ip, &names[2]);
        assert_eq!(claims.newest(ip), Some(&names[0]));
        claims.remove(ip, &names[2]);
        assert!(claims.contains(ip), "another's claim stays");
        claims.remove(ip, &names[0]);
        assert!(!claims.contains(ip));
    }
}
