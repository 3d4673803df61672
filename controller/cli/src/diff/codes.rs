//! What `karst inspect diff` can find. A code keeps its meaning for ever; one that is gone is not used again.

/// A kind of difference.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Code {
    /// `KARST` and four digits: 10 intent and agent, 11 agent and kernel, 12 kernel and sockets.
    pub id: &'static str,
    /// Name.
    pub name: &'static str,
    /// What it says.
    pub says: &'static str,
    /// What to do.
    pub hint: &'static str,
}

macro_rules! codes {
    ($($constant:ident $id:literal $name:literal $says:literal $hint:literal)*) => {
        $(#[doc = $says] pub const $constant: &Code =
            &Code { id: $id, name: $name, says: $says, hint: $hint };)*
        /// All of them.
        pub const CODES: &[&Code] = &[$($constant),*];
    };
}

codes! {
    AGENT_UNREACHABLE "KARST1001" "AgentUnreachable"
        "the node's agent does not answer: enrolled pods are closed until it does"
        "start the node's agent; its log says why it ended"
    AGENT_NOT_READY "KARST1002" "AgentNotReady"
        "the agent runs and is not ready"
        "see the reason; `karst explain` and the agent's log say more"
    CONTROLLER_UNREACHABLE "KARST1003" "ControllerUnreachable"
        "an agent or proxy has no stream to the controller: changes do not come"
        "see that the controller runs and is reached from here; the last error is given"
    POD_NOT_SERVED "KARST1004" "PodNotServed"
        "a pod is to be in the mesh, and its agent does not serve it"
        "see the agent's problem; without one, the pod's sandbox was not found on the node"
    POD_UNWANTED "KARST1005" "PodUnwanted"
        "the agent serves a pod that is not to be in the mesh"
        "see that the agent follows the controller; the labels of namespace and pod decide"
    POD_DIFFERS "KARST1006" "PodDiffers"
        "the agent holds a pod for another than it is: identity, addresses, waypoints, egress"
        "see that the agent follows the controller"
    WORKLOAD_DIFFERS "KARST1007" "WorkloadDiffers"
        "a workload is missing at the agent, is there without need, or says something else"
        "see that the agent follows the controller; KARST1010 names what it rejects"
    SERVICE_DIFFERS "KARST1008" "ServiceDiffers"
        "a service is missing at the agent, is there without need, or says something else"
        "see that the agent follows the controller; KARST1010 names what it rejects"
    POLICY_DIFFERS "KARST1009" "PolicyDiffers"
        "a policy is missing at the agent, is there without need, or says something else"
        "see that the agent follows the controller; KARST1010 names what it rejects"
    RESOURCE_REJECTED "KARST1010" "ResourceRejected"
        "an agent or proxy rejects (NACK) the newest version of a resource; the last good one is in force"
        "mend the object that it is made of, or bring controller and data plane to one version"
    WAYPOINT_ABSENT "KARST1011" "WaypointAbsent"
        "a service is to be reached through a waypoint that cannot take connections: they are refused"
        "make the Gateway and its pods, or take the label use-waypoint away"
    CERTIFICATE_MISSING "KARST1012" "CertificateMissing"
        "an enrolled pod's identity has no certificate: its connections are refused"
        "see the agent's last error from the certificate authority"
    CERTIFICATE_EXPIRED "KARST1013" "CertificateExpired"
        "an enrolled pod's certificate has expired: its connections are refused"
        "see the agent's last error from the certificate authority, and the node's clock"
    AUTHORITY_FAILING "KARST1014" "AuthorityFailing"
        "the certificate authority does not answer an agent, or refuses"
        "see that the controller runs, is reached from the node and takes the agent's token"
    PROXY_UNREACHABLE "KARST1015" "ProxyUnreachable"
        "a waypoint or gateway of this node does not answer on its admin port"
        "see the proxy's log; it is asked at 127.0.0.1:15000 in its pod"
    PROXY_DIFFERS "KARST1016" "ProxyDiffers"
        "a waypoint or gateway lacks a resource, has one without need, or another version of it"
        "see that the proxy follows the controller; KARST1010 names what it rejects"
    NOTHING_PINNED "KARST1101" "NothingPinned"
        "the node has none of our programs and maps in the kernel"
        "start the node's agent; without it pods are not captured"
    POD_NOT_IN_KERNEL "KARST1102" "PodNotInKernel"
        "a pod is to be captured and the kernel does not know it: its connections leave in the clear"
        "restart the node's agent, which enrols its pods again"
    POD_ONLY_IN_KERNEL "KARST1103" "PodOnlyInKernel"
        "the kernel captures a pod that nobody serves or wants: a stale entry of PODS"
        "restart the node's agent, which lets go of it; nothing but the agent should write its maps"
    POD_ENTRY_WRONG "KARST1104" "PodEntryWrong"
        "an entry of PODS names another pod, address or namespace than it should"
        "restart the node's agent; nothing but the agent should write its maps"
    ADDRESS_ENTRY_WRONG "KARST1105" "AddressEntryWrong"
        "POD_ADDRESSES lacks an address, or gives it to a pod that does not have it"
        "restart the node's agent; nothing but the agent should write its maps"
    LINK_MISSING "KARST1106" "LinkMissing"
        "a program is not attached: its pinned link is not there"
        "restart the node's agent, which attaches its programs; find out who removed the pin"
    LINK_DETACHED "KARST1107" "LinkDetached"
        "a link is pinned and attached to nothing"
        "restart the node's agent, which attaches its programs; find out who detached it"
    LINK_ELSEWHERE "KARST1108" "LinkElsewhere"
        "a link is attached to another hook, cgroup or namespace than it should"
        "restart the node's agent; see --node-cgroup"
    PROGRAM_OLD "KARST1109" "ProgramNotNewest"
        "a link runs another program than the one that the agent loaded"
        "restart the node's agent, which puts its own programs into the links"
    MAP_NEARLY_FULL "KARST1110" "MapNearlyFull"
        "a map is nearly full"
        "raise --max-pods, which takes effect after a restart of the node"
    MAP_FULL "KARST1111" "MapFull"
        "a map is full: nothing more can be enrolled on the node"
        "raise --max-pods, which takes effect after a restart of the node, or move pods away"
    CONFIG_WRONG "KARST1112" "ConfigWrong"
        "CONFIG tells the programs another cgroup or namespace than the agent's"
        "restart the node's agent; nothing but the agent should write its maps"
    LINK_UNKNOWN "KARST1113" "LinkUnknown"
        "a link is pinned for no pod that the kernel captures"
        "restart the node's agent, which removes what it does not know"
    NAMESPACE_GONE "KARST1201" "NamespaceGone"
        "the kernel captures a network namespace that no process and no file has any more"
        "restart the node's agent, which lets go of it"
    LISTENER_MISSING "KARST1202" "ListenerMissing"
        "nobody listens in an enrolled pod where its connections are sent to: they are refused"
        "start the node's agent, or restart it; an application of the pod must not use these ports"
    LISTENER_UNREGISTERED "KARST1203" "ListenerUnregistered"
        "the kernel has no listener for plaintext connections to an address of an enrolled pod: they are dropped"
        "start the node's agent, or restart it"
    APPLICATION_SILENT "KARST1204" "ApplicationSilent"
        "a Service sends connections to a port of a pod where nothing listens"
        "see targetPort of the Service and the ports of the application"
}

#[cfg(test)]
mod tests {
    use super::CODES;

    #[test]
    fn codes_are_unique_and_in_order() {
        for pair in CODES.windows(2) {
            assert!(pair[0].id < pair[1].id, "{} {}", pair[0].id, pair[1].id);
        }
    }

    #[test]
    fn codes_are_in_the_readme() {
        let readme = include_str!("../../README.md");
        for code in CODES {
            let row = format!("| {} | {} | {} |", code.id, code.name, code.says);
            assert!(readme.contains(&row), "README.md lacks: {row}");
        }
    }
}
