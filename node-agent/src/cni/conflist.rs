//! Editing a CNI network configuration: our entry goes in and comes out, and every byte that is
//! not ours stays what it was.

use std::ops::Range;

use karst_cni::json_text::{elements, members, whole};
use karst_cni::{PLUGIN_TYPE, VERSIONS};
use serde_json::Value;

/// Member of a wrapped configuration that names the file it was made from.
pub const WRAPS: &str = "karst.dev/wraps";

/// Why a configuration is left as it is.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConflistError {
    /// It is no JSON object, or not one of a network.
    #[error("{0}")]
    Unusable(String),
    /// A chained plugin of this version gets no earlier result.
    #[error("cniVersion {0:?} is not one that karst-cni can be chained with")]
    Version(String),
}

impl ConflistError {
    /// The stable label.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Unusable(_) => "cni_conf_unusable",
            Self::Version(_) => "cni_conf_version",
        }
    }
}

fn unusable(problem: impl Into<String>) -> ConflistError {
    ConflistError::Unusable(problem.into())
}

/// A parsed text with the places that matter.
struct Conflist {
    value: Value,
    plugins: Range<usize>,
    elements: Vec<Range<usize>>,
}

impl Conflist {
    fn read(text: &str) -> Result<Self, ConflistError> {
        let value: Value =
            serde_json::from_str(text).map_err(|e| unusable(format!("it is no JSON: {e}")))?;
        let found = members(text, whole(text)).ok_or_else(|| unusable("it is no JSON object"))?;
        let mut lists = found.into_iter().filter(|m| m.key == "plugins");
        let (Some(list), None) = (lists.next(), lists.next()) else {
            return Err(unusable("it has not one list of plugins"));
        };
        let elements = elements(text, list.value.clone())
            .filter(|_| value["plugins"].is_array())
            .ok_or_else(|| unusable("plugins is no list"))?;
        Ok(Self {
            value,
            plugins: list.value,
            elements,
        })
    }

    fn is_ours(&self, index: usize) -> bool {
        self.value["plugins"][index]["type"] == PLUGIN_TYPE
    }

    fn ours(&self) -> Vec<usize> {
        (0..self.elements.len())
            .filter(|index| self.is_ours(*index))
            .collect()
    }
}

/// The text with `entry` as the last of its plugins, whatever of ours was in it.
///
/// # Errors
/// The text is no list of plugins that ours can be added to.
pub fn chain(text: &str, entry: &Value) -> Result<String, ConflistError> {
    let list = Conflist::read(text)?;
    check_version(&list.value)?;
    let last = list.elements.len().checked_sub(1);
    if let ([only], Some(last)) = (list.ours().as_slice(), last)
        && *only == last
        && last > 0
        && list.value["plugins"][last] == *entry
    {
        return Ok(text.to_owned());
    }
    let clean = unchain(text)?;
    let list = Conflist::read(&clean)?;
    let Some(last) = list.elements.last() else {
        return Err(unusable("it has no plugin to be chained after"));
    };
    // As far from its neighbour as that is from its own.
    let before = match list.elements.len().checked_sub(2) {
        Some(index) => &clean[list.elements[index].end..last.start],
        None => &clean[list.plugins.start + 1..last.start],
    };
    let space = before.trim_start_matches(|c: char| c != ',');
    let space = space.strip_prefix(',').unwrap_or(before);
    Ok(format!(
        "{},{space}{entry}{}",
        &clean[..last.end],
        &clean[last.end..]
    ))
}

/// The text without anything of ours; the same text when there is nothing.
///
/// # Errors
/// The text is no list of plugins.
pub fn unchain(text: &str) -> Result<String, ConflistError> {
    let mut text = text.to_owned();
    loop {
        let list = Conflist::read(&text)?;
        let Some(index) = list.ours().pop() else {
            return Ok(text);
        };
        let own = list.elements[index].clone();
        let cut = match (index.checked_sub(1), list.elements.get(index + 1)) {
            (Some(before), _) => list.elements[before].end..own.end,
            (None, Some(after)) => own.start..after.start,
            (None, None) => own,
        };
        text.replace_range(cut, "");
    }
}

/// A list made of a configuration that is no list, and our entry.
///
/// # Errors
/// The text is no configuration of one plugin.
pub fn wrap(text: &str, file: &str, entry: &Value) -> Result<String, ConflistError> {
    let value: Value =
        serde_json::from_str(text).map_err(|e| unusable(format!("it is no JSON: {e}")))?;
    let field = |name: &'static str| {
        let text = value.get(name).and_then(Value::as_str);
        text.filter(|text| !text.is_empty())
            .ok_or_else(|| unusable(format!("it has no {name}")))
    };
    field("type")?;
    let name = Value::from(field("name")?);
    check_version(&value)?;
    let version = &value["cniVersion"];
    Ok(format!(
        "{{\n  \"cniVersion\": {version},\n  \"name\": {name},\n  \"plugins\": [\n    {},\n    {entry}\n  ],\n  \"{WRAPS}\": {}\n}}\n",
        &text[whole(text)],
        Value::from(file)
    ))
}

/// Whether a text is one that [`wrap`] made.
pub fn is_wrapped(text: &str) -> bool {
    serde_json::from_str::<Value>(text).is_ok_and(|value| value.get(WRAPS).is_some())
}

fn check_version(value: &Value) -> Result<(), ConflistError> {
    let known = |version: &Value| version.as_str().is_some_and(|v| VERSIONS.contains(&v));
    let listed = value.get("cniVersions").and_then(Value::as_array);
    let all = value
        .get("cniVersion")
        .into_iter()
        .chain(listed.into_iter().flatten());
    let mut any = false;
    for version in all {
        any = true;
        if !known(version) {
            return Err(ConflistError::Version(version.to_string()));
        }
    }
    if any {
        Ok(())
    } else {
        Err(ConflistError::Version(String::new()))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{ConflistError, chain, is_wrapped, unchain, wrap};

    fn entry() -> Value {
        json!({"type": "karst-cni", "socket": "/run/karst/cni.sock"})
    }

    fn types(text: &str) -> Vec<String> {
        let value: Value = serde_json::from_str(text).expect("JSON");
        let plugins = value["plugins"].as_array().expect("a list");
        plugins
            .iter()
            .map(|p| p["type"].as_str().unwrap_or_default().to_owned())
            .collect()
    }

    const PRETTY: &str = "{\n  \"name\": \"k8s\",\n  \"cniVersion\": \"1.0.0\",\n  \"plugins\": [\n    {\n      \"type\": \"bridge\",\n      \"mtu\": 1.50e3\n    },\n    {\"type\":\"portmap\"}\n  ],\n  \"z\": 1, \"a\": 2\n}\n";

    #[test]
    fn what_goes_in_comes_out_byte_by_byte() {
        let check = |text: &str| {
            let chained = chain(text, &entry()).expect("chained");
            assert_eq!(
                types(&chained).last().map(String::as_str),
                Some("karst-cni")
            );
            assert_eq!(
                chain(&chained, &entry()).expect("again"),
                chained,
                "idempotent"
            );
            assert_eq!(unchain(&chained).expect("out"), text);
        };
        check(PRETTY);
        check(r#"{"cniVersion":"0.3.1","name":"n","plugins":[{"type":"a"}]}"#);
        check(
            "{\"cniVersion\":\"1.1.0\",\"cniVersions\":[\"1.0.0\",\"1.1.0\"],\"name\":\"n\",\"plugins\":[ {\"type\":\"a\",\"x\":\"],[}\"} ,{\"type\":\"b\"} , {\"type\":\"c\"}\t]} ",
        );
        check("\r\n{\"plugins\":[\r\n\t{\"type\":\"a\"}\r\n],\"cniVersion\":\"0.4.0\"}");
    }

    #[test]
    fn the_layout_around_it_is_kept() {
        let chained = chain(PRETTY, &entry()).expect("chained");
        let line = "    {\"type\":\"portmap\"},\n    {\"socket\":\"/run/karst/cni.sock\",\"type\":\"karst-cni\"}\n  ],\n  \"z\": 1, \"a\": 2\n}\n";
        assert!(chained.ends_with(line), "{chained}");
    }

    #[test]
    fn an_old_or_misplaced_entry_is_replaced() {
        let check = |plugins: &str| {
            let text = format!("{{\"cniVersion\":\"1.0.0\",\"plugins\":{plugins}}}");
            let chained = chain(&text, &entry()).expect("chained");
            assert_eq!(types(&chained), ["a", "b", "karst-cni"], "{plugins}");
            assert!(chained.contains("/run/karst/cni.sock"));
            assert_eq!(
                types(&unchain(&text).expect("out")),
                ["a", "b"],
                "{plugins}"
            );
        };
        check(r#"[{"type":"a"},{"type":"b"},{"type":"karst-cni","socket":"/old"}]"#);
        check(r#"[{"type":"a"}, {"type":"karst-cni"}, {"type":"b"}]"#);
        check(
            r#"[{"type":"karst-cni"},{"type":"a"},{"type":"karst-cni"},{"type":"b"},{"type":"karst-cni"}]"#,
        );
    }

    #[test]
    fn what_cannot_be_edited_is_refused() {
        let check = |text: &str, reason: &str| {
            let error = chain(text, &entry()).expect_err(text);
            assert_eq!(error.reason(), reason, "{text}: {error}");
        };
        for text in [
            "",
            "{",
            "[]",
            "null",
            "{}",
            r#"{"plugins":{}}"#,
            r#"{"plugins":[],"plugins":[]}"#,
            r#"{"cniVersion":"1.0.0","plugins":[]}"#,
            r#"{"cniVersion":"1.0.0","plugins":[{"type":"karst-cni"}]}"#,
            "{\"cniVersion\":\"1.0.0\",\"plugins\":[{\"type\":\"a\"}]} trailing",
        ] {
            check(text, "cni_conf_unusable");
        }
        check(r#"{"plugins":[{"type":"a"}]}"#, "cni_conf_version");
        check(
            r#"{"cniVersion":"0.2.0","plugins":[{"type":"a"}]}"#,
            "cni_conf_version",
        );
        check(
            r#"{"cniVersion":"9.0.0","plugins":[{"type":"a"}]}"#,
            "cni_conf_version",
        );
        check(
            r#"{"cniVersion":"1.0.0","cniVersions":["2.0.0"],"plugins":[{"type":"a"}]}"#,
            "cni_conf_version",
        );
    }

    #[test]
    fn a_single_configuration_is_wrapped() {
        let text = "{\"cniVersion\": \"0.3.1\", \"name\": \"my\\\"net\", \"type\": \"bridge\", \"mtu\": 1.50}\n";
        let wrapped = wrap(text, "10-x.conf", &entry()).expect("wrapped");
        assert_eq!(types(&wrapped), ["bridge", "karst-cni"]);
        let value: Value = serde_json::from_str(&wrapped).expect("JSON");
        assert_eq!(value["name"], "my\"net");
        assert_eq!(value["cniVersion"], "0.3.1");
        assert!(wrapped.contains("1.50"), "kept byte by byte: {wrapped}");
        assert!(is_wrapped(&wrapped) && !is_wrapped(text) && !is_wrapped("x"));
        let error = wrap("{\"cniVersion\":\"0.3.1\",\"type\":\"a\"}", "f", &entry());
        assert!(matches!(error, Err(ConflistError::Unusable(_))));
    }
}
