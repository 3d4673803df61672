//! What a token that counts says.

use std::fmt;

use hashbrown::HashSet;
use serde_json::{Map, Value};

/// Claims that are lists written as one text with spaces, whatever a rule says (as at Istio's proxies).
const SPACE_DELIMITED: [&str; 2] = ["scope", "permission"];

/// How deep claims are looked into.
pub const MAX_DEPTH: usize = 16;

/// Longest principal, bytes: it is compared, and written into each line of the access log.
const MAX_PRINCIPAL_BYTES: usize = 1024;

/// A token that counts.
#[derive(Default)]
pub struct Verified {
    principal: Option<Box<str>>,
    claims: Map<String, Value>,
    space_delimited: HashSet<String>,
    /// The payload as base64url.
    pub(super) payload: Box<str>,
}

impl Verified {
    pub(super) fn new(
        claims: Map<String, Value>,
        payload: &str,
        space_delimited: &[String],
    ) -> Self {
        let text = |name: &str| claims.get(name).and_then(Value::as_str);
        let principal = match (text("iss"), text("sub")) {
            (Some(issuer), Some(subject)) if !issuer.is_empty() && !subject.is_empty() => {
                Some(format!("{issuer}/{subject}"))
            }
            _ => None,
        };
        let principal = principal.filter(|text| text.len() <= MAX_PRINCIPAL_BYTES);
        let own = SPACE_DELIMITED.into_iter().map(str::to_owned);
        Self {
            principal: principal.map(String::into_boxed_str),
            space_delimited: own.chain(space_delimited.iter().cloned()).collect(),
            claims,
            payload: payload.into(),
        }
    }

    /// `ISSUER/SUBJECT`; `None` where one of them is missing.
    #[must_use]
    pub fn principal(&self) -> Option<&str> {
        self.principal.as_deref()
    }

    /// When it ends, seconds since 1970; `None` for never.
    pub(super) fn expires(&self) -> Option<u64> {
        let claim = self.claims.get("exp")?;
        // As it was checked: a fraction is rounded.
        claim.as_u64().or_else(|| {
            let seconds = claim.as_f64()?.round();
            (seconds >= 0.0).then_some(seconds as u64)
        })
    }

    /// Whether a claim, by its names from the outermost, has a text for which `holds`: itself, one of a list, or one of
    /// those that it is made of. `None` if it has no text at all.
    pub(crate) fn claim(
        &self,
        path: &[String],
        mut holds: impl FnMut(&str) -> bool,
    ) -> Option<bool> {
        let (name, inner) = path.split_first()?;
        let claim = self.claims.get(name.as_str())?;
        let claim = inner
            .iter()
            .try_fold(claim, |claim, name| claim.get(name.as_str()))?;
        match claim {
            Value::String(text)
                if inner.is_empty() && self.space_delimited.contains(name.as_str()) =>
            {
                Some(text.split_whitespace().any(holds))
            }
            Value::String(text) => Some(holds(text)),
            Value::Array(list) => {
                let mut texts = list.iter().filter_map(Value::as_str).peekable();
                texts.peek()?;
                Some(texts.any(holds))
            }
            _ => None,
        }
    }

    /// A text, number or truth value, by its names; one name may have dots in it.
    pub(super) fn scalar(&self, path: &[String]) -> Option<String> {
        let whole = || self.claims.get(path.join(".").as_str());
        let nested = || {
            let (name, inner) = path.split_first()?;
            let claim = self.claims.get(name.as_str())?;
            inner
                .iter()
                .try_fold(claim, |claim, name| claim.get(name.as_str()))
        };
        match whole().or_else(nested)? {
            Value::String(text) => Some(text.clone()),
            value @ (Value::Number(_) | Value::Bool(_)) => Some(value.to_string()),
            Value::Null | Value::Array(_) | Value::Object(_) => None,
        }
    }
}

impl fmt::Debug for Verified {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // What else it says is nobody's business.
        f.debug_struct("Verified")
            .field("principal", &self.principal)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::Verified;

    fn verified(claims: Value) -> Verified {
        let Value::Object(claims) = claims else {
            panic!("no object");
        };
        Verified::new(claims, "", &["roles".to_owned()])
    }

    #[test]
    fn a_principal_needs_issuer_and_subject() {
        let principal = |claims| verified(claims).principal().map(str::to_owned);
        let both = json!({"iss": "https://i", "sub": "s"});
        assert_eq!(principal(both).as_deref(), Some("https://i/s"));
        assert_eq!(principal(json!({"iss": "https://i"})), None);
        assert_eq!(principal(json!({"iss": "https://i", "sub": ""})), None);
        assert_eq!(principal(json!({"iss": "https://i", "sub": 5})), None);
        let long = "x".repeat(2000);
        assert_eq!(principal(json!({"iss": "https://i", "sub": long})), None);
    }

    #[test]
    fn claims_have_texts() {
        let token = verified(json!({
            "plain": "a b", "scope": "read write", "roles": "x y", "list": ["one", 2, "two"],
            "number": 5, "empty": [], "deep": {"er": {"list": ["in"]}, "scope": "r w"},
        }));
        let texts = |path: &[&str]| {
            let path: Vec<String> = path.iter().map(|&name| name.to_owned()).collect();
            let mut all = Vec::new();
            let found = token.claim(&path, |text| {
                all.push(text.to_owned());
                false
            });
            found.map(|_| all.join("|"))
        };
        let is = |path: &[&str], expected: Option<&str>| {
            assert_eq!(texts(path).as_deref(), expected, "{path:?}");
        };
        is(&["plain"], Some("a b"));
        is(&["scope"], Some("read|write"));
        is(&["roles"], Some("x|y"));
        is(&["list"], Some("one|two"));
        is(&["deep", "er", "list"], Some("in"));
        is(&["deep", "scope"], Some("r w"));
        for nothing in [
            &["number"][..],
            &["empty"],
            &["deep"],
            &["gone"],
            &["plain", "x"],
            &[],
        ] {
            is(nothing, None);
        }
    }

    #[test]
    fn scalars_become_headers() {
        let token =
            verified(json!({"s": "t", "n": 1.5, "b": true, "l": [], "a": {"b": 7}, "x.y": "dot"}));
        let is = |path: &str, expected: Option<&str>| {
            let path: Vec<String> = path.split('.').map(str::to_owned).collect();
            assert_eq!(token.scalar(&path).as_deref(), expected, "{path:?}");
        };
        is("s", Some("t"));
        is("n", Some("1.5"));
        is("b", Some("true"));
        is("a.b", Some("7"));
        is("x.y", Some("dot"));
        is("l", None);
        is("a", None);
        is("gone", None);
    }
}
