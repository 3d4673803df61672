//! Every code there is. A code keeps its meaning for ever; the README of this crate has the same table, which a test holds to this.

use serde::Serialize;

pub use crate::args::Threshold as Level;

/// A kind of finding.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Code {
    /// `KARST` and four digits.
    pub code: &'static str,
    /// Its name.
    pub name: &'static str,
    /// How much it matters.
    #[serde(serialize_with = "word")]
    pub level: Level,
    /// What it says.
    pub summary: &'static str,
}

fn word<S: serde::Serializer>(level: &Level, s: S) -> Result<S::Ok, S::Error> {
    s.serialize_str(level_word(*level))
}

/// A level as it is shown.
pub fn level_word(level: Level) -> &'static str {
    match level {
        Level::Info => "Info",
        Level::Warning => "Warning",
        Level::Error => "Error",
    }
}

macro_rules! codes {
    ($($constant:ident = $code:literal, $name:literal, $level:ident, $summary:literal;)*) => {
        $(#[doc = $summary]
        pub static $constant: Code = Code {
            code: $code,
            name: $name,
            level: Level::$level,
            summary: $summary,
        };)*

        /// All codes, ascending.
        pub static ALL: &[&Code] = &[$(&$constant),*];
    };
}

codes! {
    OBJECT_INVALID = "KARST0101", "ObjectInvalid", Error, "the controller does not take an object, or reads it so that it allows less than written";
    UNKNOWN_FIELD = "KARST0102", "UnknownField", Error, "a field that its kind does not have; the API server drops it";
    NO_SCHEMA = "KARST0103", "NoSchema", Info, "fields of a kind were not checked, as its definition is not at hand";
    FIELD_LEFT_OUT = "KARST0104", "FieldLeftOut", Warning, "a field that cannot be used is left out of account";
    LABEL_UNKNOWN = "KARST0105", "LabelUnknown", Warning, "a label of Karst that there is not, or a value that it cannot have";
    RULE_SHADOWED = "KARST0201", "RuleShadowed", Warning, "a rule that can never decide, as a broader one of the same action covers it";
    RULE_DUPLICATE = "KARST0202", "RuleDuplicate", Warning, "a rule that says the same as another";
    ALLOW_MOOT = "KARST0203", "AllowMoot", Warning, "an ALLOW rule for what a DENY rule refuses altogether";
    ALLOW_NOTHING = "KARST0204", "AllowNothing", Info, "an ALLOW policy without rules: what it is for is refused, unless another allows it";
    SELECTOR_MATCHES_NOTHING = "KARST0205", "SelectorMatchesNothing", Warning, "a selector that no pod has the labels for";
    TARGET_NOT_FOUND = "KARST0206", "TargetNotFound", Error, "a policy is for something that is not there";
    L7_WITHOUT_WAYPOINT = "KARST0207", "L7WithoutWaypoint", Warning, "a condition on HTTP where nothing reads HTTP: an ALLOW rule never matches, a DENY rule refuses more";
    NOT_FULLY_ENFORCED = "KARST0208", "NotFullyEnforced", Warning, "what is written is not supported, so that less is allowed";
    DRY_RUN = "KARST0209", "DryRun", Info, "a policy on trial: logged and counted, not enforced";
    POLICY_UNSUPPORTED = "KARST0210", "PolicyUnsupported", Error, "a policy that is not enforced as it is meant";
    UNKNOWN_PEER = "KARST0211", "UnknownPeer", Warning, "a rule names a namespace or service account that does not exist";
    NOT_COMPARED = "KARST0212", "RulesNotCompared", Info, "a namespace has too many rules for those that never decide to be looked for";
    TELEMETRY_CONFLICT = "KARST0213", "TelemetryConflict", Warning, "several Telemetries for the same pods or target; an older one counts";
    PEER_AUTHENTICATION_CONFLICT = "KARST0301", "PeerAuthenticationConflict", Warning, "several PeerAuthentications of one level; an older one counts";
    STRICT_PLAINTEXT = "KARST0302", "StrictPlaintextClients", Warning, "clients in plain text were seen at a workload whose mode is STRICT";
    PERMISSIVE_PLAINTEXT = "KARST0303", "PermissivePlaintextClients", Info, "clients in plain text were seen, which STRICT would refuse";
    METRICS_UNREAD = "KARST0304", "MetricsUnread", Warning, "the metrics of a node agent could not be read, so that clients in plain text are not known";
    WAYPOINT_MISSING = "KARST0401", "WaypointMissing", Error, "a Service asks for a waypoint that is not there or not for it; connections are refused";
    WAYPOINT_NOT_READY = "KARST0402", "WaypointNotReady", Warning, "a Service's waypoint cannot take traffic now; connections are refused";
    NOT_IN_FORCE = "KARST0403", "NotInForce", Error, "a route or policy for a Service that has no waypoint";
    ROUTE_CONFLICT = "KARST0501", "Conflict", Error, "an object loses against another for the same, and is not in force";
    ROUTE_DUPLICATE = "KARST0502", "MatchDuplicate", Warning, "a match that never decides, as another route or rule has the same for the same host";
    BACKEND_NOT_FOUND = "KARST0503", "BackendNotFound", Error, "a route refers to a Service or port that is not there";
    REFERENCE_NOT_PERMITTED = "KARST0504", "ReferenceNotPermitted", Error, "a reference into another namespace without a ReferenceGrant";
    REFERENCE_UNUSABLE = "KARST0505", "ReferenceUnusable", Error, "a reference that cannot be followed";
    PARENT_NOT_FOUND = "KARST0506", "ParentNotFound", Error, "a route is for something that is not there, or does not want it";
    NOT_ACCEPTED = "KARST0507", "NotAccepted", Error, "an object is not accepted";
}

#[cfg(test)]
mod tests {
    use super::{ALL, level_word};

    #[test]
    fn codes_are_unique_and_ascending() {
        for pair in ALL.windows(2) {
            assert!(
                pair[0].code < pair[1].code,
                "{} and {}",
                pair[0].code,
                pair[1].code
            );
            assert_ne!(pair[0].name, pair[1].name);
        }
        for code in ALL {
            let digits = code.code.strip_prefix("KARST").expect("prefix");
            assert!(
                digits.len() == 4 && digits.bytes().all(|b| b.is_ascii_digit()),
                "{}",
                code.code
            );
        }
    }

    #[test]
    fn the_readme_has_the_same_table() {
        let readme = include_str!("../../README.md");
        let rows: Vec<&str> = readme
            .lines()
            .filter(|line| line.starts_with("| `KARST"))
            .collect();
        let wanted: Vec<String> = ALL
            .iter()
            .map(|one| {
                format!(
                    "| `{}` | {} | {} | {} |",
                    one.code,
                    one.name,
                    level_word(one.level),
                    one.summary
                )
            })
            .collect();
        assert_eq!(
            rows,
            wanted,
            "write this into controller/cli/README.md:\n{}",
            wanted.join("\n")
        );
    }
}
