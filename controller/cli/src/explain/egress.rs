//! What a client's agent makes of an address outside the cluster, by its own code.

use std::net::SocketAddr;
use std::sync::Arc;

use karst_node_agent::egress::Egress;
use karst_node_agent::proxy::connection::Refused;
use karst_node_agent::proxy::target::{Destination, Source, Way};
use karst_node_agent::state::Address;
use karst_node_agent::state::service::Service;
use karst_node_agent::state::workload::Via;

use super::Walk;
use crate::failure::Failure;

impl Walk<'_> {
    /// To an address that is none of the cluster's.
    pub(super) fn leave(&mut self, asked: SocketAddr) -> Result<(), Failure> {
        let workload = self.source.workload.clone();
        let enrolled = match &workload {
            Some(workload) => self.world.enrolled(workload)?,
            None => None,
        };
        let Some((workload, enrolled)) = workload.zip(enrolled) else {
            let way = format!("{asked} is outside the mesh, and no agent holds the client back");
            self.say(way);
            return Ok(());
        };
        let source = Source {
            state: &self.world.state,
            workload_uid: &workload.uid,
            namespace: &workload.namespace,
            addresses: &workload.addresses,
            egress: enrolled.egress,
        };
        let mode = match enrolled.egress {
            Egress::AllowAny => "ALLOW_ANY",
            Egress::RegistryOnly => "REGISTRY_ONLY",
        };
        match source.destination(asked) {
            Err(refused) => {
                let because = format!("egress mode {mode}: {}", words(&refused));
                self.refuse(asked.to_string(), refused.reason.as_str(), because);
                Ok(())
            }
            Ok(Destination::Outside(service)) => {
                self.let_out(asked, opened(&service, asked, mode));
                self.say(format!("in plain text to {asked}, as it was asked for"));
                Ok(())
            }
            Ok(Destination::Service(service)) => {
                self.let_out(asked, opened(&service, asked, mode));
                self.each_endpoint(source, &service, asked)
            }
            // What the cluster has was found before.
            Ok(Destination::Workload(workload)) => self.reach(&workload, asked),
            Ok(Destination::External) => {
                let because = format!(
                    "egress mode {mode}: the agent lets it out, though no Service or ServiceEntry has {asked}"
                );
                self.let_out(asked, because);
                self.say(format!("in plain text to {asked}, past every policy"));
                Ok(())
            }
        }
    }

    fn let_out(&mut self, asked: SocketAddr, because: String) {
        self.decide(asked.to_string(), None, because);
    }

    /// To each endpoint of a ServiceEntry, or to the waypoint that chooses one.
    fn each_endpoint(
        &mut self,
        source: Source<'_>,
        service: &Arc<Service>,
        asked: SocketAddr,
    ) -> Result<(), Failure> {
        if service.spec.via != Via::Direct {
            return self.via(&service.spec.via, asked);
        }
        let destination = Destination::Service(Arc::clone(service));
        let endpoints = service.ports.get(&asked.port());
        let uids: Vec<Arc<str>> = endpoints
            .into_iter()
            .flat_map(|set| set.iter())
            .map(|one| Arc::clone(&one.workload.uid))
            .collect();
        // Without endpoints it is asked once, for the reason.
        for at in 0..uids.len().max(1) {
            // Only this one is left to choose.
            let others = uids.iter().enumerate().filter(|(other, _)| *other != at);
            let others: Vec<Arc<str>> = others.map(|(_, uid)| Arc::clone(uid)).collect();
            match source.target(&destination, asked, &others) {
                Err(refused) => {
                    self.refuse(asked.to_string(), refused.reason.as_str(), words(&refused))
                }
                Ok(target) => match self.world.state.lookup(target.address.ip()) {
                    Some(Address::Workload(inside)) => self.reach(&inside, target.address)?,
                    _ => self.say(match target.way {
                        Way::Plain => format!("in plain text to endpoint {}", target.address),
                        Way::Tunnel(_) => format!("by mutual TLS to endpoint {}", target.address),
                        Way::Waypoint(to) => format!("by mutual TLS through waypoint {to}"),
                    }),
                },
            }
        }
        Ok(())
    }
}

fn opened(service: &Service, asked: SocketAddr, mode: &str) -> String {
    let outside = service.spec.outside.as_ref();
    let entry = outside
        .map(|outside| &*outside.entry)
        .filter(|entry| !entry.is_empty());
    format!(
        "ServiceEntry {}/{} has {asked} for the client's namespace (egress mode {mode})",
        service.spec.namespace,
        entry.unwrap_or(&service.spec.name)
    )
}

fn words(refused: &Refused) -> String {
    let reason = refused.reason.as_str();
    refused.error.clone().unwrap_or_else(|| reason.to_owned())
}
