//! Which namespaces somebody lets in.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use serde::Deserialize;

use super::gateway_api::selects;
use crate::{
    error::{Faults, ObjectError},
    labels::Labels,
};

/// Operators of a label selector's expressions.
const OPERATORS: [&str; 4] = ["In", "NotIn", "Exists", "DoesNotExist"];

/// Namespaces from which routes, or sets of listeners, may attach.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum AllowedNamespaces {
    None,
    /// The object's own.
    Same,
    All,
    Selected(LabelSelector),
}

impl Eq for AllowedNamespaces {}

/// `namespaces` of `allowedRoutes` and `allowedListeners`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct NamespacesSpec {
    from: Option<String>,
    selector: Option<LabelSelector>,
}

impl AllowedNamespaces {
    /// Reads the rule at `field`; `default` is what holds when it does not say.
    pub(super) fn read(
        spec: &NamespacesSpec,
        field: &str,
        default: Self,
        faults: &Faults,
    ) -> Result<Self, ObjectError> {
        Ok(match spec.from.as_deref() {
            None | Some("") => default,
            Some("None") => Self::None,
            Some("Same") => Self::Same,
            Some("All") => Self::All,
            Some("Selector") => {
                let field = format!("{field}.selector");
                let Some(selector) = &spec.selector else {
                    return Err(faults.error(
                        field,
                        "is missing",
                        "say which namespaces, or use another value than \"Selector\" in `from`",
                    ));
                };
                check_operators(selector, &field, faults)?;
                Self::Selected(selector.clone())
            }
            Some(other) => {
                return Err(faults.error(
                    format!("{field}.from"),
                    format!("is {other:?}"),
                    "use \"All\", \"Same\", \"Selector\" or \"None\"",
                ));
            }
        })
    }

    /// Whether objects of the namespace `from` may attach to an object of the namespace `own`.
    /// `labels` are those of `from`; `None` when there is no such namespace.
    pub(crate) fn allows(&self, own: &str, from: &str, labels: Option<&Labels>) -> bool {
        match self {
            Self::None => false,
            Self::Same => own == from,
            Self::All => true,
            Self::Selected(selector) => labels.is_some_and(|labels| selects(selector, labels)),
        }
    }
}

fn check_operators(
    selector: &LabelSelector,
    field: &str,
    faults: &Faults,
) -> Result<(), ObjectError> {
    let mut expressions = selector.match_expressions.iter().flatten().enumerate();
    let known = |operator: &str| OPERATORS.contains(&operator);
    match expressions.find(|(_, expression)| !known(&expression.operator)) {
        None => Ok(()),
        Some((index, expression)) => Err(faults.error(
            format!("{field}.matchExpressions[{index}].operator"),
            format!("is {:?}", expression.operator),
            "use \"In\", \"NotIn\", \"Exists\" or \"DoesNotExist\"",
        )),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{AllowedNamespaces, NamespacesSpec};
    use crate::{ObjectError, error::Faults, labels::Labels};

    fn read(value: Value) -> Result<AllowedNamespaces, ObjectError> {
        let spec: NamespacesSpec = serde_json::from_value(value).unwrap();
        AllowedNamespaces::read(
            &spec,
            "namespaces",
            AllowedNamespaces::Same,
            &Faults::of("Gateway shop/web"),
        )
    }

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        let pairs = pairs.iter();
        pairs
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect()
    }

    /// Whether the selector matches a namespace with these labels.
    fn check(selector: Value, pairs: &[(&str, &str)], expected: bool) {
        let rule = read(json!({"from": "Selector", "selector": selector})).unwrap();
        let labels = labels(pairs);
        assert_eq!(
            rule.allows("a", "b", Some(&labels)),
            expected,
            "{rule:?} {pairs:?}"
        );
    }

    #[test]
    fn namespaces_are_let_in_as_the_rule_says() {
        let none = labels(&[]);
        let allows = |value: Value, from: &str| read(value).unwrap().allows("a", from, Some(&none));
        assert!(allows(json!({}), "a") && !allows(json!({}), "b"));
        assert!(allows(json!({"from": "Same"}), "a") && !allows(json!({"from": "Same"}), "b"));
        assert!(allows(json!({"from": "All"}), "b"));
        assert!(!allows(json!({"from": "None"}), "a"));
    }

    #[test]
    fn a_selector_has_all_its_conditions() {
        check(json!({}), &[], true);
        check(json!({"matchLabels": {"x": "1"}}), &[("x", "1")], true);
        check(
            json!({"matchLabels": {"x": "1", "y": "1"}}),
            &[("x", "1")],
            false,
        );
        let expression = |operator: &str, values: Value| json!({"matchExpressions": [{"key": "x", "operator": operator, "values": values}]});
        check(expression("In", json!(["1", "2"])), &[("x", "2")], true);
        check(expression("In", json!(["1", "2"])), &[], false);
        check(expression("NotIn", json!(["1"])), &[("x", "1")], false);
        check(expression("NotIn", json!(["1"])), &[], true);
        check(expression("Exists", json!(null)), &[("x", "")], true);
        check(expression("Exists", json!(null)), &[("y", "")], false);
        check(expression("DoesNotExist", json!(null)), &[("x", "")], false);
        check(expression("DoesNotExist", json!(null)), &[], true);
    }

    #[test]
    fn a_selector_matches_no_namespace_that_is_not_there() {
        let rule = read(json!({"from": "Selector", "selector": {}})).unwrap();
        assert!(!rule.allows("a", "b", None));
    }

    #[test]
    fn a_bad_rule_is_refused_by_the_name_of_its_field() {
        let field = |value: Value| read(value).unwrap_err().field;
        assert_eq!(field(json!({"from": "Some"})), "namespaces.from");
        assert_eq!(field(json!({"from": "Selector"})), "namespaces.selector");
        let selector = json!({"matchExpressions": [{"key": "x", "operator": "Like"}]});
        assert_eq!(
            field(json!({"from": "Selector", "selector": selector})),
            "namespaces.selector.matchExpressions[0].operator"
        );
    }
}
