//! What the container runtime hands over: the network configuration on standard input and the
//! `CNI_*` variables.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;

use crate::error::CniError;
use crate::{DEFAULT_SOCKET, VERSIONS, json_text};

/// Largest configuration read, in bytes: real ones, with the earlier plugin's result, have a few
/// thousand.
pub const MAX_INPUT: u64 = 1 << 20;

/// Namespaces whose pods never ask the agent: the mesh's own must start before there is one, and
/// so must what the mesh stands on.
pub const EXCLUDED: [&str; 2] = ["karst-system", "kube-system"];

/// Version named in results when the configuration names none that can be used.
pub const FALLBACK_VERSION: &str = "1.0.0";

/// The plugin's own part of the configuration; the rest is not ours.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Fields {
    cni_version: Option<String>,
    socket: Option<PathBuf>,
    log_file: Option<PathBuf>,
    exclude_namespaces: Option<Vec<String>>,
    prev_result: Option<PrevResult>,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct PrevResult {
    #[serde(default)]
    interfaces: Vec<Interface>,
    #[serde(default)]
    ips: Vec<Ip>,
}

#[derive(Clone, Debug, Deserialize)]
struct Interface {
    #[serde(default)]
    sandbox: String,
}

#[derive(Clone, Debug, Deserialize)]
struct Ip {
    address: String,
    #[serde(default)]
    interface: Option<i64>,
}

/// A checked configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// Version of the specification.
    pub version: String,
    /// The agent's socket.
    pub socket: PathBuf,
    /// Where to log, if anywhere.
    pub log_file: Option<PathBuf>,
    /// Namespaces that never ask the agent.
    pub excluded: Vec<String>,
    prev: Option<(String, PrevResult)>,
}

impl Config {
    /// Reads a configuration.
    ///
    /// # Errors
    /// It is no JSON object, or one of our fields is unusable.
    pub fn parse(input: &[u8]) -> Result<Self, CniError> {
        let text = std::str::from_utf8(input).map_err(|e| CniError::Undecodable(e.to_string()))?;
        let value: Value =
            serde_json::from_str(text).map_err(|e| CniError::Undecodable(e.to_string()))?;
        if !value.is_object() {
            return Err(CniError::Undecodable("it is another JSON value".to_owned()));
        }
        // Serde would take a list for a structure.
        if value
            .get("prevResult")
            .is_some_and(|v| !v.is_object() && !v.is_null())
        {
            return Err(CniError::Config {
                field: "prevResult",
                problem: "is no object".to_owned(),
            });
        }
        let fields: Fields = serde_json::from_value(value).map_err(|e| CniError::Config {
            field: "configuration",
            problem: e.to_string(),
        })?;
        let version = fields.cni_version.unwrap_or_default();
        if !VERSIONS.contains(&version.as_str()) {
            return Err(CniError::Version(version));
        }
        let socket = fields
            .socket
            .filter(|path| !path.as_os_str().is_empty())
            .unwrap_or_else(|| PathBuf::from(DEFAULT_SOCKET));
        if !socket.is_absolute() {
            return Err(CniError::Config {
                field: "socket",
                problem: format!("{} is not an absolute path", socket.display()),
            });
        }
        let prev = match fields.prev_result {
            Some(prev) => Some((prev_text(text)?, prev)),
            None => None,
        };
        Ok(Self {
            version,
            socket,
            log_file: fields.log_file.filter(|path| path.is_absolute()),
            excluded: fields
                .exclude_namespaces
                .unwrap_or_else(|| EXCLUDED.map(str::to_owned).to_vec()),
            prev,
        })
    }

    /// The earlier plugin's result, byte by byte.
    ///
    /// # Errors
    /// There is none: we are not chained after a plugin that makes a network.
    pub fn prev_result(&self) -> Result<&str, CniError> {
        match &self.prev {
            Some((text, _)) => Ok(text),
            None => Err(CniError::Config {
                field: "prevResult",
                problem: "is missing: karst-cni must stand after the plugin that makes the network"
                    .to_owned(),
            }),
        }
    }

    /// The pod's addresses in the earlier plugin's result: the first of each family that is not
    /// on the node's side.
    ///
    /// # Errors
    /// An address cannot be read.
    pub fn addresses(&self) -> Result<Vec<IpAddr>, CniError> {
        let Some((_, prev)) = &self.prev else {
            return Ok(Vec::new());
        };
        let mut addresses: Vec<IpAddr> = Vec::new();
        for ip in &prev.ips {
            let interface = ip
                .interface
                .and_then(|index| prev.interfaces.get(usize::try_from(index).ok()?));
            if interface.is_some_and(|interface| interface.sandbox.is_empty()) {
                continue;
            }
            let text = ip
                .address
                .split_once('/')
                .map_or(&*ip.address, |(ip, _)| ip);
            let address: IpAddr = text.parse().map_err(|_| CniError::Config {
                field: "prevResult",
                problem: format!("{:?} is no address", ip.address),
            })?;
            if !addresses.iter().any(|a| a.is_ipv4() == address.is_ipv4()) {
                addresses.push(address);
            }
        }
        Ok(addresses)
    }
}

fn prev_text(text: &str) -> Result<String, CniError> {
    let span: Option<Range<usize>> =
        json_text::members(text, json_text::whole(text)).and_then(|members| {
            let prev = members.into_iter().rev().find(|m| m.key == "prevResult");
            prev.map(|m| m.value)
        });
    // Serde found it, so the text has it.
    span.map(|span| text[span].to_owned())
        .ok_or_else(|| CniError::Undecodable("prevResult cannot be found".to_owned()))
}

/// The version to name in an error about a configuration that cannot be used.
pub fn version_of(input: &[u8]) -> String {
    let named = serde_json::from_slice::<Value>(input)
        .ok()
        .and_then(|value| Some(value.get("cniVersion")?.as_str()?.to_owned()));
    named
        .filter(|version| VERSIONS.contains(&version.as_str()))
        .unwrap_or_else(|| FALLBACK_VERSION.to_owned())
}

/// The variables of the call.
#[derive(Clone, Debug, Default)]
pub struct Environment(BTreeMap<String, String>);

impl Environment {
    /// Those of this process.
    pub fn of_process() -> Self {
        let utf8 = |(key, value): (std::ffi::OsString, std::ffi::OsString)| {
            Some((key.into_string().ok()?, value.into_string().ok()?))
        };
        Self(std::env::vars_os().filter_map(utf8).collect())
    }

    /// Those given.
    pub fn of(pairs: &[(&str, &str)]) -> Self {
        let owned = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        Self(pairs.iter().map(owned).collect())
    }

    /// A variable that is there and not empty.
    pub fn get(&self, variable: &str) -> Option<&str> {
        let value = self.0.get(variable).map(String::as_str);
        value.filter(|value| !value.is_empty())
    }

    /// A variable that must be there.
    ///
    /// # Errors
    /// It is not.
    pub fn need(&self, variable: &'static str) -> Result<&str, CniError> {
        self.get(variable).ok_or_else(|| CniError::Environment {
            variable,
            problem: "is not set".to_owned(),
        })
    }

    /// The network namespace, if there is one.
    pub fn netns(&self) -> Option<&Path> {
        self.get("CNI_NETNS").map(Path::new)
    }

    /// One of the `K=V` pairs of `CNI_ARGS`.
    pub fn arg(&self, key: &str) -> Option<&str> {
        let pairs = self.get("CNI_ARGS").unwrap_or_default().split(';');
        let mut pairs = pairs.filter_map(|pair| pair.split_once('='));
        let value = pairs.find(|(name, _)| *name == key).map(|(_, value)| value);
        value.filter(|value| !value.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::{Config, Environment};
    use crate::error::CniError;

    fn config(text: &str) -> Result<Config, CniError> {
        Config::parse(text.as_bytes())
    }

    #[test]
    fn the_earlier_result_is_kept_byte_by_byte() {
        let text = r#"{"cniVersion":"1.0.0","name":"n","type":"karst-cni",
            "prevResult": {"z": 1.50, "ips":[ {"address":"10.0.0.5/24"} ],"dns":{} } }"#;
        let config = config(text).expect("valid");
        assert_eq!(
            config.prev_result().expect("there"),
            r#"{"z": 1.50, "ips":[ {"address":"10.0.0.5/24"} ],"dns":{} }"#
        );
        assert_eq!(config.excluded, ["karst-system", "kube-system"]);
        assert_eq!(config.socket.to_str(), Some("/run/karst/cni.sock"));
    }

    #[test]
    fn addresses_are_the_pods_one_of_each_family() {
        let check = |ips: &str, expected: &[&str]| {
            let text = format!(
                r#"{{"cniVersion":"0.4.0","prevResult":{{
                "interfaces":[{{"name":"cni0"}},{{"name":"eth0","sandbox":"/run/netns/x"}}],"ips":[{ips}]}}}}"#
            );
            let found = config(&text).expect("valid").addresses().expect("readable");
            let found: Vec<_> = found.iter().map(ToString::to_string).collect();
            assert_eq!(found, expected, "{ips}");
        };
        check("", &[]);
        check(r#"{"address":"10.0.0.5/24"}"#, &["10.0.0.5"]);
        check(r#"{"address":"10.0.0.5/24","interface":1}"#, &["10.0.0.5"]);
        check(
            r#"{"address":"10.0.0.1/24","interface":0},{"address":"10.0.0.5/24","interface":1}"#,
            &["10.0.0.5"],
        );
        check(
            r#"{"address":"10.0.0.5/24","interface":9},{"address":"10.0.0.6/24"},{"address":"fd00::5/64","interface":-1}"#,
            &["10.0.0.5", "fd00::5"],
        );
    }

    #[test]
    fn garbage_is_told_apart() {
        let check = |text: &str, code: u32| {
            let error = config(text).expect_err(text);
            assert_eq!(error.code(), code, "{text}: {error}");
        };
        check("", 6);
        check("nonsense", 6);
        check("[1]", 6);
        check("null", 6);
        check("\"x\"", 6);
        check("{}", 1);
        check(r#"{"cniVersion":"0.2.0"}"#, 1);
        check(r#"{"cniVersion":7}"#, 7);
        check(r#"{"cniVersion":"1.0.0","prevResult":[]}"#, 7);
        check(r#"{"cniVersion":"1.0.0","prevResult":{"ips":[{}]}}"#, 7);
        check(r#"{"cniVersion":"1.0.0","socket":"relative"}"#, 7);
        check(r#"{"cniVersion":"1.0.0","excludeNamespaces":"x"}"#, 7);
        let binary = Config::parse(&[0xff, 0xfe, 0]).expect_err("no text");
        assert_eq!(binary.code(), 6);
        let bad = config(r#"{"cniVersion":"1.0.0","prevResult":{"ips":[{"address":"x/24"}]}}"#);
        assert_eq!(
            bad.expect("parses")
                .addresses()
                .expect_err("no address")
                .code(),
            7
        );
        let alone = config(r#"{"cniVersion":"1.0.0"}"#).expect("parses");
        assert_eq!(alone.prev_result().expect_err("alone").code(), 7);
    }

    #[test]
    fn arguments_are_pairs() {
        let args = "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0;K8S_POD_UID=;x;=y";
        let env = Environment::of(&[("CNI_ARGS", args), ("CNI_NETNS", "")]);
        assert_eq!(env.arg("K8S_POD_NAMESPACE"), Some("shop"));
        assert_eq!(env.arg("K8S_POD_NAME"), Some("web-0"));
        assert_eq!(env.arg("K8S_POD_UID"), None);
        assert_eq!(env.arg("x"), None);
        assert_eq!(env.netns(), None);
        assert!(env.need("CNI_CONTAINERID").is_err());
    }
}
