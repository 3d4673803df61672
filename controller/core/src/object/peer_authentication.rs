//! What the mesh needs of a PeerAuthentication (security.istio.io).
//!
//! One with a mistake counts as STRICT without exceptions, unless there was one without a mistake before
//! it: what cannot be understood must not open anything.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{
    Body,
    policy::{PolicyDocument, Reader, listed},
};
use crate::{
    error::{Faults, ObjectError},
    labels::Labels,
};

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PeerAuthentication {
    /// Labels of the pods that it is for; none for all.
    pub(crate) selector: Labels,
    /// `None`: as what is above it says.
    pub(crate) mode: Option<Mode>,
    pub(crate) ports: BTreeMap<u16, Mode>,
    /// What is not done as written.
    pub(crate) narrowed: Option<String>,
    /// The author's mistakes.
    pub(crate) faults: Vec<String>,
}

/// Which connections are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Those in plain text too.
    Permissive,
    /// Those with an identity only.
    Strict,
}

impl PeerAuthentication {
    pub(crate) fn body(
        document: &PolicyDocument,
        faults: &Faults,
        findings: &mut Vec<ObjectError>,
    ) -> Body {
        let mut reader = Reader::new(faults, findings);
        Body::PeerAuthentication(Box::new(Self::read(document, &mut reader)))
    }

    fn read(document: &PolicyDocument, reader: &mut Reader<'_>) -> Self {
        reader.metadata(document);
        let (mut selector, mut mode, mut ports) = (Labels::new(), None, BTreeMap::new());
        let fields = reader.fields(&document.spec, "spec").unwrap_or_default();
        for (name, value) in fields {
            let field = format!("spec.{name}");
            match name {
                "selector" => selector = reader.selector(value).0,
                "mtls" => mode = mutual_tls(value, &field, reader),
                "portLevelMtls" => ports = port_modes(value, &field, reader),
                _ => reader.unknown(&field),
            }
        }
        if !ports.is_empty() && selector.is_empty() {
            let hint = "say which pods' ports are meant by spec.selector.matchLabels";
            reader.fault("spec.portLevelMtls", "is there without a selector", hint);
        }
        let faults = std::mem::take(&mut reader.problems);
        if !faults.is_empty() {
            mode = Some(Mode::Strict);
            ports.clear();
        }
        let disabled = &reader.unsupported;
        let narrowed = (!disabled.is_empty()).then(|| {
            format!(
                "DISABLE counts as PERMISSIVE ({}): clients of the mesh always use mutual TLS",
                listed(disabled, ", ")
            )
        });
        Self {
            selector,
            mode,
            ports,
            narrowed,
            faults,
        }
    }
}

/// `mtls` of the policy or of a port.
fn mutual_tls(value: &Value, field: &str, reader: &mut Reader<'_>) -> Option<Mode> {
    let mut mode = None;
    for (name, value) in reader.fields(value, field).unwrap_or_default() {
        let field = format!("{field}.{name}");
        match (name, value.as_str()) {
            ("mode", Some("UNSET")) => {}
            ("mode", Some("PERMISSIVE")) => mode = Some(Mode::Permissive),
            ("mode", Some("STRICT")) => mode = Some(Mode::Strict),
            ("mode", Some("DISABLE")) => {
                let hint = "write PERMISSIVE, which it counts as";
                reader.unsupported(&field, "is DISABLE, which is not supported", hint);
                mode = Some(Mode::Permissive);
            }
            ("mode", _) => {
                let hint = "use UNSET, PERMISSIVE or STRICT";
                reader.fault(&field, format!("is {value}"), hint);
            }
            _ => reader.unknown(&field),
        }
    }
    mode
}

fn port_modes(value: &Value, field: &str, reader: &mut Reader<'_>) -> BTreeMap<u16, Mode> {
    let mut ports = BTreeMap::new();
    for (number, value) in reader.fields(value, field).unwrap_or_default() {
        let field = format!("{field}[{number}]");
        let mode = mutual_tls(value, &field, reader);
        match number.parse::<u16>() {
            Ok(port) if port != 0 && !number.starts_with('+') => {
                ports.extend(mode.map(|mode| (port, mode)));
            }
            _ => {
                let hint = "use a number from 1 to 65535";
                reader.fault(&field, "is for no port", hint);
            }
        }
    }
    ports
}
