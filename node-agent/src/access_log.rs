//! What the access log says of a connection.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use karst_identity::SpiffeId;
use karst_process::access_log::{self, Line};
use karst_tunnel::TlsInfo;

use crate::metrics::traffic::Security;
use crate::observe::Observed;
use crate::proxy::Direction;
use crate::reason::Reason;
use crate::state::policy::Denial;
use crate::state::service::Service;
use crate::state::workload::Workload;

pub use karst_process::access_log::AccessLog;

/// One ended or refused connection.
#[derive(Debug)]
pub struct Record {
    /// Which proxy handled it.
    pub direction: Direction,
    /// The client.
    pub source: Party,
    /// The server.
    pub destination: Party,
    /// The tunnel's listener, when there is a tunnel.
    pub hbone_addr: Option<SocketAddr>,
    /// Service that was dialled.
    pub service: Option<Arc<Service>>,
    /// Port of that service.
    pub service_port: Option<u16>,
    /// Bytes of responses.
    pub bytes_sent: u64,
    /// Bytes of requests.
    pub bytes_recv: u64,
    /// From accept to end.
    pub duration: Duration,
    /// Protection of the way between the agents.
    pub security: Security,
    /// What was negotiated, with a tunnel.
    pub tls: Option<Arc<TlsInfo>>,
    /// Why it ended or was refused; `None` for an ordinary end.
    pub reason: Option<Reason>,
    /// Details of the reason.
    pub error: Option<String>,
    /// The policy that refused or cut it.
    pub denial: Option<Box<Denial>>,
    /// The policy that would have, were it no dry run.
    pub dry_run: Option<Box<Denial>>,
    /// What else is reported; `None` for the default.
    pub observed: Option<Box<Observed>>,
}

/// One end of a connection.
#[derive(Clone, Debug, Default)]
pub struct Party {
    /// Address and port.
    pub addr: Option<SocketAddr>,
    /// The workload, if it is known.
    pub workload: Option<Arc<Workload>>,
    /// Its identity, if it was verified.
    pub identity: Option<SpiffeId>,
}

impl access_log::Record for Record {
    fn message(&self) -> &'static str {
        "connection complete"
    }

    fn reason(&self) -> Option<&str> {
        self.reason.map(Reason::as_str)
    }

    fn error(&self) -> Option<&str> {
        self.error.as_deref()
    }

    fn fields(&self, line: &mut Line<'_>) {
        let (source, destination) = (&self.source, &self.destination);
        line.address("src.addr", source.addr);
        if let Some(workload) = &source.workload {
            line.text("src.workload", &workload.name);
            line.text("src.namespace", &workload.namespace);
        }
        line.known(
            "src.identity",
            source.identity.as_ref().map(SpiffeId::as_str),
        );
        line.address("dst.addr", self.hbone_addr.or(destination.addr));
        let inside = self.hbone_addr.and(destination.addr);
        line.address("dst.hbone_addr", inside);
        let service = self.service.as_ref();
        line.known("dst.service", service.map(|s| &s.spec.hostname));
        if let Some(port) = self.service_port {
            line.number("dst.service_port", port.into());
        }
        if let Some(workload) = &destination.workload {
            line.text("dst.workload", &workload.name);
            line.text("dst.namespace", &workload.namespace);
        }
        let identity = destination.identity.as_ref();
        line.known("dst.identity", identity.map(SpiffeId::as_str));
        line.text("direction", self.direction.as_str());
        line.number("bytes_sent", self.bytes_sent);
        line.number("bytes_recv", self.bytes_recv);
        line.duration("duration_ms", self.duration);
        line.text("connection_security_policy", self.security.as_str());
        if let Some(denial) = &self.denial {
            line.text("policy.name", denial.policy_name());
            if let Some(rule) = denial.rule {
                line.number("policy.rule", rule.into());
            }
        }
        if let Some(denial) = &self.dry_run {
            line.text("dry_run.policy.name", denial.policy_name());
            if let Some(rule) = denial.rule {
                line.number("dry_run.policy.rule", rule.into());
            }
        }
        if let Some(tls) = &self.tls {
            line.text("tls_version", &tls.version);
            line.text("cipher", &tls.cipher);
            line.text("key_exchange", &tls.key_exchange);
        }
        let observed = self.observed.as_ref();
        if let Some(trace) = observed.and_then(|observed| observed.context()) {
            line.text("trace_id", format!("{:032x}", trace.trace_id()));
            line.text("span_id", format!("{:016x}", trace.span_id()));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use karst_process::access_log::append;

    use super::{Party, Record};
    use crate::config::AccessLogFormat;
    use crate::metrics::traffic::Security;
    use crate::proxy::Direction;
    use crate::reason::Reason;

    fn record() -> Record {
        Record {
            direction: Direction::Outbound,
            source: Party {
                addr: "10.0.0.1:5".parse().ok(),
                ..Party::default()
            },
            destination: Party {
                addr: "10.0.0.2:80".parse().ok(),
                ..Party::default()
            },
            hbone_addr: "10.0.0.2:15008".parse().ok(),
            service: None,
            service_port: None,
            bytes_sent: 7,
            bytes_recv: 9,
            duration: Duration::from_millis(3),
            security: Security::MutualTls,
            tls: None,
            reason: None,
            error: None,
            denial: None,
            dry_run: None,
            observed: None,
        }
    }

    fn logged(format: AccessLogFormat, record: &Record) -> String {
        let mut text = Vec::new();
        append(&mut text, UNIX_EPOCH, record, format);
        String::from_utf8(text).expect("text")
    }

    #[test]
    fn text_line_has_the_fields_in_order() {
        let line = logged(AccessLogFormat::Text, &record());
        assert_eq!(
            line,
            "1970-01-01T00:00:00.000Z info access connection complete src.addr=10.0.0.1:5 \
             dst.addr=10.0.0.2:15008 dst.hbone_addr=10.0.0.2:80 direction=outbound bytes_sent=7 \
             bytes_recv=9 duration_ms=3 connection_security_policy=mutual_tls\n"
        );
    }

    #[test]
    fn json_line_parses_and_carries_the_reason() {
        let refused = Record {
            reason: Some(Reason::SelfCall),
            error: Some("a \"quoted\" text".to_owned()),
            ..record()
        };
        let line = logged(AccessLogFormat::Json, &refused);
        let value: serde_json::Value = serde_json::from_str(line.trim_end()).expect("JSON");
        assert_eq!(value["reason"], "self_call");
        assert_eq!(value["level"], "error");
        assert_eq!(value["bytes_sent"], 7);
        assert_eq!(value["error"], "a \"quoted\" text");
    }

    #[test]
    fn text_with_spaces_is_quoted() {
        let refused = Record {
            error: Some("no route".to_owned()),
            ..record()
        };
        assert!(logged(AccessLogFormat::Text, &refused).ends_with("error=\"no route\"\n"));
    }
}
