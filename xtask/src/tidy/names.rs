//! Holds the documents' tables to the code: each map, program, port and metric that one names, the
//! other names too.

use std::collections::BTreeMap;

use super::{File, sources::code_only, tables};

/// What a table must hold, and where.
struct Rule {
    what: &'static str,
    document: &'static str,
    /// Head of the table's first column.
    heading: &'static str,
    /// The names in a production source file.
    names: fn(&File) -> Vec<String>,
}

const RULES: &[Rule] = &[
    Rule {
        what: "map",
        document: "ebpf/README.md",
        heading: "Map",
        names: maps,
    },
    Rule {
        what: "program",
        document: "ebpf/README.md",
        heading: "Program",
        names: programs,
    },
    Rule {
        what: "port",
        document: "ARCHITECTURE.md",
        heading: "Port",
        names: ports,
    },
    Rule {
        what: "reason",
        document: "ARCHITECTURE.md",
        heading: "Reason",
        names: reasons,
    },
    Rule {
        what: "metric",
        document: "ARCHITECTURE.md",
        heading: "Metric",
        names: metrics,
    },
];

/// The macros that make a function an eBPF program.
const PROGRAM_MACROS: &[&str] = &[
    "cgroup_skb",
    "cgroup_sock",
    "cgroup_sock_addr",
    "cgroup_sockopt",
    "classifier",
    "sk_lookup",
    "sk_msg",
    "sock_ops",
    "stream_parser",
    "stream_verdict",
    "xdp",
];

/// What all our metrics start with: the names that Istio's dashboards know, and our own.
const METRIC_PREFIXES: &[&str] = &["istio_", "karst_", "process_", "workload_manager_"];

/// Every name that is in the code or in the table, but not in both.
pub fn problems(files: &[File]) -> Vec<String> {
    RULES
        .iter()
        .flat_map(|rule| rule_problems(rule, files))
        .collect()
}

fn rule_problems(rule: &Rule, files: &[File]) -> Vec<String> {
    let Rule {
        what,
        document,
        heading,
        ..
    } = rule;
    let mut in_code: BTreeMap<String, &str> = BTreeMap::new();
    for file in files.iter().filter(|file| is_shipped_source(&file.path)) {
        in_code.extend(
            (rule.names)(file)
                .into_iter()
                .map(|name| (name, file.path.as_str())),
        );
    }
    let Some(text) = files
        .iter()
        .find(|file| file.path == *document)
        .map(|file| &file.text)
    else {
        return vec![format!("{document} is missing")];
    };
    // What is registered as a counter is scraped with this ending, and documented as scraped.
    let registered = |name: String| {
        name.strip_suffix("_total")
            .map_or(name.clone(), str::to_owned)
    };
    let in_table: Vec<String> = tables::first_column(text, heading)
        .into_iter()
        .map(registered)
        .collect();
    let mut problems = Vec::new();
    if in_code.is_empty() {
        // Nothing to compare means that this check reads the code wrongly.
        problems.push(format!("found no {what} in the code"));
    }
    for (name, path) in in_code.iter().filter(|(name, _)| !in_table.contains(name)) {
        problems.push(format!(
            "{path}: {what} {name} is not in the {heading} table of {document}"
        ));
    }
    for name in in_table.iter().filter(|name| !in_code.contains_key(*name)) {
        problems.push(format!(
            "{document}: {what} {name} is in the table but not in the code"
        ));
    }
    problems
}

/// Rust source of a crate that ships, and no test of it.
fn is_shipped_source(path: &str) -> bool {
    let shipped = ["controller/", "ebpf/", "node-agent/", "waypoint/"]
        .iter()
        .any(|folder| path.starts_with(folder));
    shipped
        && path.ends_with(".rs")
        && !path.ends_with("tests.rs")
        && !path.contains("/tests/")
        && !path.contains("/gen/")
}

/// The part of a source file before its tests.
fn production_part(text: &str) -> &str {
    text.find("\n#[cfg(test)]").map_or(text, |at| &text[..at])
}

/// `#[map] static NAME`, and the map that the logging library brings.
fn maps(file: &File) -> Vec<String> {
    let code = code_only(production_part(&file.text));
    let mut names = Vec::new();
    if code.contains("use aya_log_ebpf") {
        names.push("AYA_LOGS".to_owned());
    }
    let mut lines = code.lines();
    while let Some(line) = lines.next() {
        if line.contains("#[map") || line.contains("#[btf_map") {
            let declaration = [line]
                .into_iter()
                .chain(lines.by_ref())
                .find_map(|line| word_after(line, "static "));
            names.extend(declaration.map(|name| name.trim_start_matches("mut ").to_owned()));
        }
    }
    names
}

/// `#[sock_ops] pub fn name`.
fn programs(file: &File) -> Vec<String> {
    let code = code_only(production_part(&file.text));
    let mut names = Vec::new();
    let mut lines = code.lines();
    while let Some(line) = lines.next() {
        let attribute = line
            .trim()
            .strip_prefix("#[")
            .and_then(|rest| rest.split(['(', ']']).next());
        if attribute.is_some_and(|name| PROGRAM_MACROS.contains(&name)) {
            names.extend(
                lines
                    .by_ref()
                    .find_map(|line| word_after(line, "fn "))
                    .map(str::to_owned),
            );
        }
    }
    names
}

/// `const SOME_PORT: u16 = 15001`, and addresses like `"127.0.0.1:15020"`.
fn ports(file: &File) -> Vec<String> {
    let production = production_part(&file.text);
    let mut ports: Vec<String> = Vec::new();
    for line in code_only(production).lines() {
        if let Some(name) = word_after(line, "const ")
            && name.contains("PORT")
            && let Some((_, value)) = line.split_once(": u16 = ")
        {
            ports.extend(number(value.trim_end_matches(';')));
        }
    }
    let addresses = literals(production).into_iter().filter_map(|text| {
        let (host, port) = text.rsplit_once(':')?;
        let is_host = !host.is_empty()
            && host
                .chars()
                .all(|c| c.is_ascii_hexdigit() || ".:[]".contains(c));
        if is_host { number(port) } else { None }
    });
    ports.extend(addresses.filter(|port| port != "0"));
    ports
}

fn number(text: &str) -> Option<String> {
    text.trim()
        .replace('_', "")
        .parse::<u16>()
        .ok()
        .map(|port| port.to_string())
}

/// String literals that are a metric's whole name, in modules about metrics. A registry with a
/// prefix puts it before each name that is registered in it.
fn metrics(file: &File) -> Vec<String> {
    if !file.path.contains("metrics") {
        return Vec::new();
    }
    let text = production_part(&file.text);
    if let Some(prefix) = first_arguments(text, "with_prefix(").first() {
        let registered = first_arguments(text, ".register(");
        return registered
            .iter()
            .map(|name| format!("{prefix}_{name}"))
            .collect();
    }
    let is_name = |text: &String| {
        METRIC_PREFIXES
            .iter()
            .any(|prefix| text.starts_with(prefix) && text.len() > prefix.len())
            && is_label(text)
    };
    literals(text).into_iter().filter(is_name).collect()
}

fn is_label(text: &str) -> bool {
    text.len() > 2
        && text
            .chars()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
}

/// The first literal after each `call`.
fn first_arguments(text: &str, call: &str) -> Vec<String> {
    let code = code_only(text);
    let mut arguments = Vec::new();
    let mut waiting = false;
    for (line, code) in text.lines().zip(code.lines()) {
        waiting |= code.contains(call);
        if waiting && let Some(literal) = literals(line).into_iter().next() {
            arguments.push(literal);
            waiting = false;
        }
    }
    arguments
}

/// The labels of errors and refusals: what every `fn reason` can return, and the agent's own list.
fn reasons(file: &File) -> Vec<String> {
    let own_list = file
        .path
        .ends_with("/reason.rs")
        .then_some("fn as_str(self)");
    let text = production_part(&file.text);
    let bodies = ["fn reason(&self)"]
        .into_iter()
        .chain(own_list)
        .flat_map(|head| bodies(text, head));
    bodies
        .flat_map(|body| literals(&body))
        .filter(|text| is_label(text))
        .collect()
}

/// The lines of each function that begins with `head`, to the brace that closes it.
fn bodies(text: &str, head: &str) -> Vec<String> {
    let code = code_only(text);
    let lines: Vec<(&str, &str)> = text.lines().zip(code.lines()).collect();
    let mut bodies = Vec::new();
    for start in (0..lines.len()).filter(|line| lines[*line].1.contains(head)) {
        let mut depth = 0;
        let mut body = String::new();
        for (line, code) in &lines[start..] {
            body.push_str(line);
            body.push('\n');
            depth += code.matches('{').count();
            depth = depth.saturating_sub(code.matches('}').count());
            if depth == 0 && code.contains(['}', ';']) {
                break;
            }
        }
        bodies.push(body);
    }
    bodies
}

/// The identifier that follows `keyword` in a line of code.
fn word_after<'a>(line: &'a str, keyword: &str) -> Option<&'a str> {
    let rest = &line[line.find(keyword)? + keyword.len()..];
    let rest = rest.strip_prefix("mut ").unwrap_or(rest);
    let end = rest
        .find(|c: char| !c.is_alphanumeric() && c != '_')
        .unwrap_or(rest.len());
    Some(&rest[..end]).filter(|word| !word.is_empty())
}

/// The plain string literals of a source that begin and end on one line.
fn literals(source: &str) -> Vec<String> {
    let mut literals = Vec::new();
    for (line, code) in source.lines().zip(code_only(source).lines()) {
        let mut open: Option<String> = None;
        for (c, kept) in line.chars().zip(code.chars()) {
            match (&mut open, kept) {
                (None, '"') => open = Some(String::new()),
                (Some(_), '"') => literals.extend(open.take()),
                (Some(text), _) => text.push(c),
                (None, _) => {}
            }
        }
    }
    literals
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str, text: &str) -> File {
        File {
            path: path.into(),
            text: text.into(),
        }
    }

    const PROGRAMS: &str = "\
#[map]
static PODS: HashMap<u64, Pod> = HashMap::pinned(1, 0);
#[btf_map]
pub static mut SKST: SkStorage<S> = SkStorage::new();

/// A hook. Not a #[sk_lookup] one.
#[cgroup_sock_addr(connect4)]
pub fn karst_connect4(ctx: SockAddrContext) -> i32 { 1 }
#[sock_ops]
pub fn karst_sock_ops(ctx: SockOpsContext) -> u32 { 0 }
";

    /// A workspace of one source file and the documents, as tables with one row each.
    fn workspace(source: File, map: &str, program: &str) -> Vec<File> {
        let ebpf = format!(
            "| Map | Key |\n|---|---|\n| {map} | x |\n\n| Program | At |\n|---|---|\n| {program} | x |\n"
        );
        vec![source, file("ebpf/README.md", &ebpf)]
    }

    fn check(what: &str, files: &[File]) -> String {
        let rule = RULES.iter().find(|rule| rule.what == what).unwrap();
        rule_problems(rule, files).join("\n")
    }

    #[test]
    fn tables_that_say_what_the_code_says_are_fine() {
        let files = workspace(
            file("ebpf/programs/src/main.rs", PROGRAMS),
            "`PODS`, `SKST`",
            "`karst_connect4`, `karst_sock_ops`",
        );
        assert_eq!(check("map", &files), "");
        assert_eq!(check("program", &files), "");
    }

    #[test]
    fn an_undocumented_name_is_found() {
        let files = workspace(
            file("ebpf/programs/src/main.rs", PROGRAMS),
            "`PODS`",
            "`karst_sock_ops`",
        );
        assert!(check("map", &files).contains("map SKST is not in the Map table"));
        assert!(check("program", &files).contains("program karst_connect4 is not in"));
    }

    #[test]
    fn a_documented_name_that_is_gone_is_found() {
        let files = workspace(
            file("ebpf/programs/src/main.rs", PROGRAMS),
            "`PODS`, `SKST`, `OLD`",
            "`x`",
        );
        assert!(check("map", &files).contains("map OLD is in the table but not in the code"));
    }

    #[test]
    fn finding_nothing_is_a_problem() {
        let files = workspace(file("ebpf/programs/src/main.rs", "fn main() {}\n"), "", "");
        assert!(check("map", &files).contains("found no map"));
    }

    #[test]
    fn a_missing_document_is_a_problem() {
        assert_eq!(check("port", &[]), "ARCHITECTURE.md is missing");
    }

    #[test]
    fn ports_are_constants_and_default_addresses() {
        let text = "/// Port \"1.2.3.4:9\".\npub const OUTBOUND_PORT: u16 = 15_001;\nconst OTHER: u16 = 7;\n\
                    let a = \"127.0.0.1:15020\"; let b = \"[::1]:15021\"; let c = \"ns:80\"; let d = \"0.0.0.0:0\";\n\
                    #[cfg(test)]\nconst TEST_PORT: u16 = 5;\n";
        assert_eq!(
            ports(&file("node-agent/src/a.rs", text)),
            ["15001", "15020", "15021"]
        );
    }

    #[test]
    fn metrics_are_whole_literals_in_metrics_modules() {
        let text = "register(\"istio_tcp_sent_bytes\", \"istio_ is a prefix\"); // \"karst_no\"\n";
        assert_eq!(
            metrics(&file("node-agent/src/metrics/traffic.rs", text)),
            ["istio_tcp_sent_bytes"]
        );
        assert!(metrics(&file("node-agent/src/main.rs", text)).is_empty());
    }

    #[test]
    fn counters_are_documented_as_they_are_scraped() {
        let files = [
            file(
                "node-agent/src/metrics.rs",
                "register(\"karst_refusals\")\n",
            ),
            file(
                "ARCHITECTURE.md",
                "| Metric | What |\n|---|---|\n| `karst_refusals_total` | x |\n",
            ),
        ];
        assert_eq!(check("metric", &files), "");
    }

    #[test]
    fn a_registry_with_a_prefix_gives_it_to_its_metrics() {
        let text = "let r = Registry::with_prefix(\"karst_controller\");\nr.register(\n    \"xds_pushes\",\n    \"Sent\",\n);\nr.register(\"ca_issued\", \"x\");\n";
        let names = metrics(&file("controller/src/metrics.rs", text));
        assert_eq!(
            names,
            ["karst_controller_xds_pushes", "karst_controller_ca_issued"]
        );
    }

    #[test]
    fn reasons_are_what_errors_return() {
        let text = "\
impl Error {
    fn reason(&self) -> &'static str {
        match self {
            Self::A { .. } => \"peer_gone\",
            Self::B => { \"no_certificate\" }
        }
    }
    fn other(&self) -> &'static str { \"not_a_reason\" }
}
trait T { fn reason(&self) -> &'static str; }
const X: &str = \"neither\";
";
        assert_eq!(
            reasons(&file("node-agent/src/error.rs", text)),
            ["peer_gone", "no_certificate"]
        );
    }

    #[test]
    fn tests_and_generated_code_have_no_names() {
        for path in [
            "tests/lab/src/lib.rs",
            "controller/api/src/gen/x.rs",
            "node-agent/src/metrics_tests.rs",
        ] {
            assert!(!is_shipped_source(path), "{path}");
        }
        assert!(is_shipped_source("ebpf/programs/src/main.rs"));
    }
}
