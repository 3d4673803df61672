//! What the mesh needs of a GatewayClass and a Gateway.

use std::{collections::BTreeMap, net::IpAddr};

use serde::Deserialize;

use super::{
    Body,
    gateway_api::Resource,
    listener::{self, Listener, ListenerSpec, ObjectRef},
    pod::parse_port,
    selector::{AllowedNamespaces, NamespacesSpec},
};
use crate::{
    error::{Faults, ObjectError},
    labels::Labels,
};

/// A class of Gateways.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct GatewayClass {
    pub(crate) controller: String,
    /// `group/kind/name` of its parameters, which no class of ours takes.
    pub(crate) parameters: Option<String>,
}

/// `spec` of a GatewayClass.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct ClassSpec {
    controller_name: String,
    parameters_ref: Option<Parameters>,
}

/// Reference to an object with parameters.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Parameters {
    group: String,
    kind: String,
    name: String,
}

impl Parameters {
    /// `group/kind/name`, for messages.
    fn text(&self) -> String {
        format!("{}/{}/{}", self.group, self.kind, self.name)
    }
}

impl GatewayClass {
    pub(crate) fn body(
        object: Resource<ClassSpec>,
        faults: &Faults,
        _findings: &mut Vec<ObjectError>,
    ) -> Result<Body, ObjectError> {
        if object.spec.controller_name.is_empty() {
            return Err(faults.error(
                "spec.controllerName",
                "is missing",
                "name the controller, such as \"karst.dev/gateway-controller\"",
            ));
        }
        Ok(Body::GatewayClass(Self {
            controller: object.spec.controller_name,
            parameters: object.spec.parameters_ref.as_ref().map(Parameters::text),
        }))
    }
}

/// A Gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Gateway {
    /// Name of its GatewayClass.
    pub(crate) class: String,
    /// The Gateway's own labels.
    pub(crate) labels: Labels,
    pub(crate) listeners: Vec<Listener>,
    pub(crate) addresses: Vec<RequestedAddress>,
    /// For the objects that are made for it.
    pub(crate) infrastructure_labels: Labels,
    /// For the objects that are made for it.
    pub(crate) infrastructure_annotations: Labels,
    /// `group/kind/name` of its parameters.
    pub(crate) parameters: Option<String>,
    /// Where ListenerSets may come from.
    pub(crate) allowed_listeners: AllowedNamespaces,
    pub(crate) validation: FrontendValidation,
    /// Certificate towards backends.
    pub(crate) client_certificate: Option<ObjectRef>,
}

/// An address that the Gateway shall have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum RequestedAddress {
    /// Any.
    AnyIp,
    /// This one.
    Ip(IpAddr),
    /// A value that is none, though its type says so.
    NoIp(String),
    /// One of a type that is not supported: type and value.
    Unsupported(String, String),
}

/// Validation of client certificates.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct FrontendValidation {
    default: Option<ClientValidation>,
    per_port: BTreeMap<u16, Option<ClientValidation>>,
}

/// How client certificates are validated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ClientValidation {
    pub(crate) authorities: Vec<ObjectRef>,
    pub(crate) mode: ValidationMode,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ValidationMode {
    AllowValidOnly,
    AllowInsecureFallback,
}

impl FrontendValidation {
    /// What holds for HTTPS listeners of a port.
    pub(crate) fn of_port(&self, port: u16) -> Option<&ClientValidation> {
        match self.per_port.get(&port) {
            Some(own) => own.as_ref(),
            None => self.default.as_ref(),
        }
    }

    /// All that is said, whichever port it is for.
    pub(crate) fn all(&self) -> impl Iterator<Item = &ClientValidation> {
        self.default.iter().chain(self.per_port.values().flatten())
    }
}

/// `spec` of a Gateway.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct GatewaySpec {
    gateway_class_name: String,
    listeners: Vec<ListenerSpec>,
    addresses: Vec<AddressSpec>,
    infrastructure: InfrastructureSpec,
    allowed_listeners: AllowedListenersSpec,
    tls: TlsSpec,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct AddressSpec {
    r#type: Option<String>,
    value: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct InfrastructureSpec {
    labels: Labels,
    annotations: Labels,
    parameters_ref: Option<Parameters>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct AllowedListenersSpec {
    namespaces: NamespacesSpec,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct TlsSpec {
    backend: BackendTlsSpec,
    frontend: FrontendTlsSpec,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct BackendTlsSpec {
    client_certificate_ref: Option<ObjectRef>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct FrontendTlsSpec {
    r#default: TlsConfigSpec,
    per_port: Vec<PortTlsSpec>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct PortTlsSpec {
    port: i32,
    tls: TlsConfigSpec,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct TlsConfigSpec {
    validation: Option<ValidationSpec>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct ValidationSpec {
    #[serde(rename = "caCertificateRefs")]
    ca_certificate_refs: Vec<ObjectRef>,
    mode: Option<String>,
}

impl Gateway {
    pub(crate) fn body(
        object: Resource<GatewaySpec>,
        faults: &Faults,
        _findings: &mut Vec<ObjectError>,
    ) -> Result<Body, ObjectError> {
        let spec = object.spec;
        if spec.gateway_class_name.is_empty() {
            return Err(faults.error(
                "spec.gatewayClassName",
                "is missing",
                "name a GatewayClass, such as \"karst\"",
            ));
        }
        let listeners = listener::read(&spec.listeners, faults)?;
        let allowed_listeners = AllowedNamespaces::read(
            &spec.allowed_listeners.namespaces,
            "spec.allowedListeners.namespaces",
            AllowedNamespaces::None,
            faults,
        )?;
        let parameters = spec.infrastructure.parameters_ref.as_ref();
        Ok(Body::Gateway(Box::new(Self {
            listeners,
            allowed_listeners,
            addresses: spec.addresses.iter().map(requested).collect(),
            parameters: parameters.map(Parameters::text),
            validation: validation(&spec.tls.frontend, faults)?,
            labels: object.metadata.labels.unwrap_or_default(),
            class: spec.gateway_class_name,
            infrastructure_labels: spec.infrastructure.labels,
            infrastructure_annotations: spec.infrastructure.annotations,
            client_certificate: spec.tls.backend.client_certificate_ref,
        })))
    }
}

fn requested(spec: &AddressSpec) -> RequestedAddress {
    let shown: String = spec.value.chars().take(80).collect();
    match spec.r#type.as_deref() {
        None | Some("" | "IPAddress") => {
            match (spec.value.as_str(), spec.value.parse::<IpAddr>()) {
                ("", _) => RequestedAddress::AnyIp,
                (_, Ok(ip)) => RequestedAddress::Ip(ip.to_canonical()),
                (_, Err(_)) => RequestedAddress::NoIp(shown),
            }
        }
        Some(other) => RequestedAddress::Unsupported(other.chars().take(80).collect(), shown),
    }
}

fn validation(
    frontend: &FrontendTlsSpec,
    faults: &Faults,
) -> Result<FrontendValidation, ObjectError> {
    let mut per_port = BTreeMap::new();
    for (index, entry) in frontend.per_port.iter().enumerate() {
        let field = format!("spec.tls.frontend.perPort[{index}]");
        let port = parse_port(&format!("{field}.port"), entry.port, faults)?;
        let own = client_validation(&entry.tls, &format!("{field}.tls.validation"), faults)?;
        if per_port.insert(port, own).is_some() {
            return Err(faults.error(
                format!("{field}.port"),
                format!("is {port}, which another entry has"),
                "write one entry for each port",
            ));
        }
    }
    Ok(FrontendValidation {
        default: client_validation(
            &frontend.r#default,
            "spec.tls.frontend.default.validation",
            faults,
        )?,
        per_port,
    })
}

fn client_validation(
    spec: &TlsConfigSpec,
    field: &str,
    faults: &Faults,
) -> Result<Option<ClientValidation>, ObjectError> {
    let Some(spec) = &spec.validation else {
        return Ok(None);
    };
    Ok(Some(ClientValidation {
        authorities: spec.ca_certificate_refs.clone(),
        mode: match spec.mode.as_deref() {
            None | Some("" | "AllowValidOnly") => ValidationMode::AllowValidOnly,
            Some("AllowInsecureFallback") => ValidationMode::AllowInsecureFallback,
            Some(other) => {
                return Err(faults.error(
                    format!("{field}.mode"),
                    format!("is {other:?}"),
                    "use \"AllowValidOnly\" or \"AllowInsecureFallback\"",
                ));
            }
        },
    }))
}
