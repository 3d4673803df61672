//! What the mesh needs of a BackendTLSPolicy.

use serde::Deserialize;

use super::{Body, gateway_api::Resource, hostname::Hostname, listener::ObjectRef};
use crate::error::{Faults, ObjectError};

/// Authority references of one policy. The API's own limit.
const MAX_AUTHORITIES: usize = 8;

/// Names of one policy. The API's own limit is 5; a few more do no harm.
const MAX_NAMES: usize = 16;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BackendTlsPolicy {
    pub(crate) targets: Vec<Target>,
    pub(crate) trust: Trust,
    /// SNI, and the name to prove unless there are others.
    pub(crate) hostname: String,
    pub(crate) names: Vec<Name>,
}

/// What a policy is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) group: String,
    pub(crate) kind: String,
    pub(crate) name: String,
    /// Name of a port; `None` for all that have no policy of their own.
    pub(crate) section: Option<String>,
}

impl Target {
    /// Whether it is a Service.
    pub(crate) fn is_service(&self) -> bool {
        self.group.is_empty() && self.kind == "Service"
    }
}

/// Who may have signed a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Trust {
    /// Those of the operating system.
    System,
    /// Those in these objects.
    Objects(Vec<ObjectRef>),
    /// A set of authorities that is not known, or a contradiction. Says what is wrong.
    Invalid(String),
}

/// A name in a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Name {
    Hostname(String),
    Uri(String),
}

/// `spec` of a BackendTLSPolicy.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct BackendTlsPolicySpec {
    target_refs: Vec<TargetSpec>,
    validation: ValidationSpec,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct TargetSpec {
    group: String,
    kind: String,
    name: String,
    section_name: Option<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct ValidationSpec {
    #[serde(rename = "caCertificateRefs")]
    ca_certificate_refs: Vec<ObjectRef>,
    #[serde(rename = "wellKnownCACertificates")]
    well_known: Option<String>,
    hostname: String,
    subject_alt_names: Vec<NameSpec>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct NameSpec {
    r#type: String,
    hostname: String,
    uri: String,
}

impl BackendTlsPolicy {
    pub(crate) fn body(
        object: Resource<BackendTlsPolicySpec>,
        faults: &Faults,
        _findings: &mut Vec<ObjectError>,
    ) -> Result<Body, ObjectError> {
        let validation = &object.spec.validation;
        let hostname = match Hostname::parse(&validation.hostname) {
            Some(Hostname::Exact(name)) => name,
            _ => {
                return Err(faults.error(
                    "spec.validation.hostname",
                    "is no host name without a wildcard",
                    "write the name that the backend's certificate carries",
                ));
            }
        };
        for (field, length, most) in [
            (
                "caCertificateRefs",
                validation.ca_certificate_refs.len(),
                MAX_AUTHORITIES,
            ),
            (
                "subjectAltNames",
                validation.subject_alt_names.len(),
                MAX_NAMES,
            ),
        ] {
            if length > most {
                return Err(faults.error(
                    format!("spec.validation.{field}"),
                    format!("has {length} entries"),
                    format!("use at most {most}"),
                ));
            }
        }
        let targets = object.spec.target_refs.iter().map(|target| Target {
            group: target.group.clone(),
            kind: target.kind.clone(),
            name: target.name.clone(),
            section: target.section_name.clone().filter(|text| !text.is_empty()),
        });
        Ok(Body::BackendTlsPolicy(Box::new(Self {
            targets: targets.collect(),
            trust: trust(validation),
            hostname,
            names: names(validation, faults)?,
        })))
    }
}

fn trust(validation: &ValidationSpec) -> Trust {
    let references = &validation.ca_certificate_refs;
    let known = validation
        .well_known
        .as_deref()
        .filter(|text| !text.is_empty());
    match (references.is_empty(), known) {
        (false, None) => Trust::Objects(references.clone()),
        (true, Some("System")) => Trust::System,
        (true, Some(other)) => Trust::Invalid(format!(
            "wellKnownCACertificates is {other:?}; only \"System\" is known"
        )),
        (true, None) => Trust::Invalid(
            "one of caCertificateRefs and wellKnownCACertificates must be set".to_owned(),
        ),
        (false, Some(_)) => Trust::Invalid(
            "only one of caCertificateRefs and wellKnownCACertificates may be set".to_owned(),
        ),
    }
}

fn names(validation: &ValidationSpec, faults: &Faults) -> Result<Vec<Name>, ObjectError> {
    let mut names = Vec::new();
    for (index, entry) in validation.subject_alt_names.iter().enumerate() {
        let field = format!("spec.validation.subjectAltNames[{index}]");
        names.push(match entry.r#type.as_str() {
            "Hostname" => match Hostname::parse(&entry.hostname) {
                Some(hostname) => Name::Hostname(hostname.to_string()),
                None => {
                    return Err(faults.error(
                        format!("{field}.hostname"),
                        "is no host name",
                        "write a name such as \"example.com\"",
                    ));
                }
            },
            "URI" if entry.uri.contains(':') => Name::Uri(entry.uri.clone()),
            "URI" => {
                return Err(faults.error(
                    format!("{field}.uri"),
                    "is no URI with a scheme",
                    "write a URI such as \"spiffe://example.com/ns/a/sa/b\"",
                ));
            }
            other => {
                return Err(faults.error(
                    format!("{field}.type"),
                    format!("is {other:?}"),
                    "use \"Hostname\" or \"URI\"",
                ));
            }
        });
    }
    Ok(names)
}
