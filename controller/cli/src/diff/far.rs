//! The layers of a node elsewhere, as this command reads them in its agent's container.

use super::layers::Reading;
use crate::failure::{Failure, Kind};
use crate::inspect::remote::{Node, Output};

/// Reads.
///
/// # Errors
/// There is no agent, the API server does not let us, it takes too long, or the command there is another version.
pub fn read(node: &Node, proxies: &[String]) -> Result<Reading, Failure> {
    let mut command = ["inspect", "diff", "--layers"].map(str::to_owned).to_vec();
    command.extend(proxies.iter().map(|pod| format!("--proxy={pod}")));
    understood(node.name(), node.output(&command)?)
}

fn understood(node: &str, output: Output) -> Result<Reading, Failure> {
    let other = |what: &str| {
        let text = format!(
            "the karst in the agent's container on {node} {what}, and this is {}: compare with one of its version",
            env!("CARGO_PKG_VERSION")
        );
        Failure::failed("version_differs", text)
    };
    let kind = Kind::of_exit_code(output.code);
    if kind == Kind::Usage {
        return Err(other("does not know what was asked of it"));
    }
    if output.code != 0 {
        let said = output.err.trim();
        let said = said.strip_prefix("Error: ").unwrap_or(said);
        return Err(Failure {
            kind,
            reason: "node".to_owned(),
            message: format!("{node}: {said}"),
        });
    }
    let version: Version =
        serde_json::from_str(&output.out).map_err(|_| other("answers with something else"))?;
    if version.version != env!("CARGO_PKG_VERSION") {
        return Err(other(&format!("is {}", version.version)));
    }
    serde_json::from_str(&output.out).map_err(|_| other("answers with something else"))
}

/// What every version says.
#[derive(serde::Deserialize)]
struct Version {
    version: String,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::understood;
    use crate::failure::Kind;
    use crate::inspect::remote::Output;

    #[test]
    fn another_version_is_said_and_failures_are_passed_on() {
        let read = |out: &str, err: &str, code: u8| {
            let (out, err) = (out.to_owned(), err.to_owned());
            understood("n1", Output { out, err, code }).map(|_| ())
        };
        let none = json!({
            "version": env!("CARGO_PKG_VERSION"), "agent": {"Err": "no agent"}, "kernel": {"Err": "nothing"},
            "sockets": {}, "proxies": [],
        });
        assert_eq!(read(&none.to_string(), "", 0), Ok(()));
        let mut other = none.clone();
        other["version"] = json!("0.0.1");
        for (out, err, code) in [
            (other.to_string(), "", 0),
            ("no JSON".to_owned(), "", 0),
            (String::new(), "error: unexpected argument '--layers'", 2),
        ] {
            let failure = read(&out, err, code).expect_err("refused");
            assert_eq!(failure.reason, "version_differs", "{failure:?}");
        }
        let failure = read("", "Error: no node here\n", 3).expect_err("refused");
        assert_eq!(failure.kind, Kind::NotFound);
        assert_eq!(failure.message, "n1: no node here");
    }
}
