//! Lists of values of texts.

use karst_api::waypoint as wire;
use karst_api::waypoint::attribute_value::Kind;

use super::octets::Octets;
use super::template::Template;
use crate::config::{ConfigError, at_most};
use crate::http::path;

/// Values in one list. The CRD has no limit of its own; an object's 1.5 MiB hold no more of any length.
pub(super) const MAX_VALUES: usize = 4096;

/// Length of one value in bytes: that of a long path, and above that of any identity.
const MAX_VALUE_BYTES: usize = 4096;

/// In which form values are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// As they are.
    Verbatim,
    /// In lower case: names of hosts.
    LowerCase,
    /// As the path of a request is after it was normalised.
    Path,
}

/// Values of texts, any one of which is enough.
#[derive(Debug, Default)]
pub(super) struct Strings {
    /// Anything that is not empty.
    pub(super) present: bool,
    /// Sorted, so that a long list costs little.
    exact: Box<[Box<[u8]>]>,
    prefixes: Vec<Box<[u8]>>,
    suffixes: Vec<Box<[u8]>>,
    templates: Vec<Template>,
}

impl Strings {
    pub(super) fn new(
        field: &str,
        wire: &[wire::AttributeValue],
        form: Form,
    ) -> Result<Self, ConfigError> {
        at_most(field, wire.len(), MAX_VALUES)?;
        let mut list = Self::default();
        let mut exact = Vec::new();
        for (index, value) in wire.iter().enumerate() {
            let wrong = |problem: String| ConfigError::new(format!("{field}[{index}]"), problem);
            match &value.kind {
                Some(Kind::Exact(text)) => exact.push(shaped(text, form, true).map_err(wrong)?),
                Some(Kind::Prefix(text)) => {
                    list.prefixes
                        .push(shaped(text, form, false).map_err(wrong)?);
                }
                Some(Kind::Suffix(text)) => {
                    list.suffixes
                        .push(shaped(text, form, false).map_err(wrong)?);
                }
                Some(Kind::Present(true)) => list.present = true,
                Some(Kind::PathTemplate(text)) if form == Form::Path => {
                    list.templates.push(Template::parse(text).map_err(wrong)?);
                }
                _ => {
                    let problem = "is of a kind that is not for this attribute, or not known";
                    return Err(wrong(problem.to_owned()));
                }
            }
        }
        exact.sort_unstable();
        exact.dedup();
        list.exact = exact.into();
        Ok(list)
    }

    pub(super) fn is_empty(&self) -> bool {
        !self.present
            && self.exact.is_empty()
            && self.prefixes.is_empty()
            && self.suffixes.is_empty()
            && self.templates.is_empty()
    }

    pub(super) fn matches<T: Octets + ?Sized>(&self, text: &T) -> bool {
        (self.present && !text.is_empty())
            || self
                .exact
                // It orders the text against the value, and what is asked for is the reverse.
                .binary_search_by(|value| text.cmp(value).reverse())
                .is_ok()
            || self.prefixes.iter().any(|value| text.starts_with(value))
            || self.suffixes.iter().any(|value| text.ends_with(value))
    }

    /// Likewise for a path, for which there are templates too.
    pub(super) fn matches_path(&self, path: &str) -> bool {
        self.matches(path.as_bytes()) || self.templates.iter().any(|each| each.matches(path))
    }
}

/// Brings a value into the form of what it is compared with: written otherwise, a value that refuses would never
/// match. A path that has no normal form never comes, so it stays as it is.
fn shaped(text: &str, form: Form, is_whole: bool) -> Result<Box<[u8]>, String> {
    if text.is_empty() {
        return Err("is empty".to_owned());
    }
    if text.len() > MAX_VALUE_BYTES {
        let length = text.len();
        return Err(format!(
            "is {length} bytes long, at most {MAX_VALUE_BYTES} are allowed"
        ));
    }
    let shaped = match form {
        Form::Verbatim => None,
        Form::LowerCase => Some(text.to_ascii_lowercase()),
        Form::Path if is_whole && text.starts_with('/') => path::normalise(text).unwrap_or(None),
        Form::Path => path::octets(text).ok(),
    };
    let shaped = shaped.unwrap_or_else(|| text.to_owned());
    Ok(shaped.into_bytes().into())
}
