//! What a source file may hold, how long it may be, and which folders there are.

use super::File;

/// The longest production file, in lines: past this, a file has more than one subject.
const MAX_LINES: usize = 800;

/// Where `unsafe` is fenced in.
const UNSAFE_FENCE: &[&str] = &["ebpf/", "node-agent/datapath/"];

/// The top-level folders: the parts of the system, its tests, and the developer commands.
const FOLDERS: &[&str] = &[
    "controller",
    "ebpf",
    "node-agent",
    "tests",
    "waypoint",
    "xtask",
];

/// Words that no finished code holds, and why. Looked for outside comments and strings.
const FORBIDDEN: &[(&str, &str)] = &[
    ("todo!(", "unfinished code is not committed"),
    ("unimplemented!(", "unfinished code is not committed"),
    ("#[ignore", "a test that does not run is no test"),
    ("#[allow(", "use #[expect(.., reason = \"..\")]"),
];

/// Beginnings of paths that exist on one machine only. Written in halves so that this file does
/// not hold them itself.
const MACHINE_PATHS: &[&str] = &[
    concat!("/wo", "rk/"),
    concat!("/ho", "me/"),
    concat!("/ro", "ot/"),
    concat!("/tmp/", "karst"),
];

/// Every broken rule in `files`.
pub fn problems(files: &[File]) -> Vec<String> {
    files.iter().flat_map(file_problems).collect()
}

/// The folders of `found` that should not be there, and those that are missing.
pub fn folder_problems(found: &[String]) -> Vec<String> {
    let visible = |name: &&String| !name.starts_with('.') && *name != "target";
    let extra = found
        .iter()
        .filter(visible)
        .filter(|name| !FOLDERS.contains(&name.as_str()));
    let missing = FOLDERS
        .iter()
        .filter(|name| !found.iter().any(|there| there == *name));
    extra
        .map(|name| {
            format!(
                "{name}/: a new top-level folder; put it into {}",
                FOLDERS.join(", ")
            )
        })
        .chain(missing.map(|name| format!("{name}/ is missing")))
        .collect()
}

fn file_problems(file: &File) -> Vec<String> {
    let path = &file.path;
    let mut problems = Vec::new();
    for (number, line) in file.text.lines().enumerate() {
        if let Some(start) = MACHINE_PATHS.iter().find(|start| line.contains(*start)) {
            problems.push(format!(
                "{path}:{}: a path of one machine, {start}",
                number + 1
            ));
        }
    }
    if !path.ends_with(".rs") {
        return problems;
    }
    if path.ends_with("/mod.rs") {
        problems.push(format!("{path}: use foo.rs beside foo/"));
    }
    if is_crate_root(path) && !opens_with_doc(&file.text) {
        problems.push(format!(
            "{path}: a crate opens with //!: what it does, what it does not, where to start"
        ));
    }
    let lines = file.text.lines().count();
    if is_production(path) && lines > MAX_LINES {
        problems.push(format!("{path}: {lines} lines; at most {MAX_LINES}"));
    }
    for (number, line) in code_only(&file.text).lines().enumerate() {
        let mut problem =
            |what: &str, why: &str| problems.push(format!("{path}:{}: {what}: {why}", number + 1));
        for (word, why) in FORBIDDEN
            .iter()
            .filter(|(word, _)| line.contains(word) && !is_generated(path))
        {
            problem(word, why);
        }
        if has_word(line, "unsafe") && !UNSAFE_FENCE.iter().any(|fence| path.starts_with(fence)) {
            problem("unsafe", "only the eBPF crates and the datapath may");
        }
    }
    problems
}

fn is_crate_root(path: &str) -> bool {
    path.ends_with("src/lib.rs") || path.ends_with("src/main.rs") || path.contains("/src/bin/")
}

/// Generated code keeps the style of its generator.
fn is_generated(path: &str) -> bool {
    path.contains("/gen/")
}

/// Tests and generated code may be long.
fn is_production(path: &str) -> bool {
    !path.starts_with("tests/")
        && !path.contains("/tests/")
        && !path.ends_with("tests.rs")
        && !is_generated(path)
}

/// Whether crate documentation comes before any item; a licence line and attributes may come
/// before it.
fn opens_with_doc(text: &str) -> bool {
    let before = |line: &&str| {
        line.is_empty() || line.starts_with("#!") || (line.starts_with("//") && !is_doc(line))
    };
    text.lines()
        .map(str::trim)
        .find(|line| !before(line))
        .is_some_and(is_doc)
}

fn is_doc(line: &str) -> bool {
    line.strip_prefix("//!")
        .is_some_and(|doc| !doc.trim().is_empty() && !doc.contains("Placeholder"))
}

fn has_word(line: &str, word: &str) -> bool {
    let part = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
    line.match_indices(word).any(|(at, _)| {
        !part(line[..at].chars().next_back()) && !part(line[at + word.len()..].chars().next())
    })
}

/// The source with every comment and every string and character literal blanked out, character for
/// character, so that words in it are code. The quotes of plain strings stay, to find them by.
pub fn code_only(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(c) = rest.chars().next() {
        let skip = literal_or_comment(rest, out.chars().next_back());
        let (blanked, after) = rest.split_at(skip.max(c.len_utf8()));
        match skip {
            0 => out.push(c),
            _ if c == '"' && skip > 1 => {
                let inner = &blanked[1..skip - 1];
                out.push('"');
                out.extend(inner.chars().map(blank));
                out.push('"');
            }
            _ => out.extend(blanked.chars().map(blank)),
        }
        rest = after;
    }
    out
}

fn blank(c: char) -> char {
    if c == '\n' { c } else { ' ' }
}

/// How many bytes at the start of `rest` are one comment or literal; 0 if it starts with code.
fn literal_or_comment(rest: &str, before: Option<char>) -> usize {
    let in_word = before.is_some_and(|c| c.is_alphanumeric() || c == '_');
    if rest.starts_with("//") {
        return rest.find('\n').unwrap_or(rest.len());
    }
    if rest.starts_with("/*") {
        return block_comment(rest);
    }
    if rest.starts_with('"') {
        return quoted(rest, '"');
    }
    if !in_word && let Some(raw) = rest.strip_prefix('b').unwrap_or(rest).strip_prefix('r') {
        let hashes = raw.len() - raw.trim_start_matches('#').len();
        if raw[hashes..].starts_with('"') {
            let end = format!("\"{}", "#".repeat(hashes));
            let start = rest.len() - raw.len() + hashes + 1;
            return rest[start..]
                .find(&end)
                .map_or(rest.len(), |at| start + at + end.len());
        }
    }
    if rest.starts_with('\'') && is_char_literal(rest) {
        return quoted(rest, '\'');
    }
    0
}

/// A character literal has its closing quote after one character or an escape; a lifetime has not.
fn is_char_literal(rest: &str) -> bool {
    let mut chars = rest.chars().skip(1);
    match chars.next() {
        Some('\\') => true,
        Some(_) => chars.next() == Some('\''),
        None => false,
    }
}

fn quoted(rest: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in rest.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if c == quote => return at + c.len_utf8(),
            _ => {}
        }
    }
    rest.len()
}

/// Block comments nest in Rust.
fn block_comment(rest: &str) -> usize {
    let mut depth = 0;
    let mut at = 0;
    while at < rest.len() {
        if rest[at..].starts_with("/*") {
            depth += 1;
            at += 2;
        } else if rest[at..].starts_with("*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += rest[at..].chars().next().map_or(1, char::len_utf8);
        }
    }
    rest.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(path: &str, text: &str) -> String {
        problems(&[File {
            path: path.into(),
            text: text.into(),
        }])
        .join("\n")
    }

    #[test]
    fn a_clean_file_is_fine() {
        assert_eq!(
            of(
                "waypoint/src/main.rs",
                "//! The waypoint.\n\nfn main() {}\n"
            ),
            ""
        );
    }

    #[test]
    fn a_crate_must_say_what_it_is() {
        assert!(
            of("node-agent/src/main.rs", "fn main() {}\n//! late\n").contains("opens with //!")
        );
        assert!(of("node-agent/src/main.rs", "//! Placeholder.\n").contains("opens with //!"));
        assert!(
            of("node-agent/src/main.rs", "// A comment.\nfn main() {}\n")
                .contains("opens with //!")
        );
        assert_eq!(
            of(
                "ebpf/programs/src/main.rs",
                "#![no_std]\n\n//! The programs.\n"
            ),
            ""
        );
        assert_eq!(
            of("node-agent/src/drain.rs", "fn drain() {}\n"),
            "",
            "only crate roots"
        );
    }

    #[test]
    fn a_production_file_is_not_too_long() {
        let long = "\n".repeat(MAX_LINES + 1);
        assert!(of("node-agent/src/drain.rs", &long).contains("801 lines"));
        assert_eq!(of("node-agent/src/drain.rs", &"\n".repeat(MAX_LINES)), "");
        assert_eq!(of("tests/lab/tests/capture.rs", &long), "");
        assert_eq!(of("controller/api/src/gen/workload.rs", &long), "");
    }

    #[test]
    fn unsafe_stays_in_its_fence() {
        let text = "fn f() { unsafe { g() } }\n";
        assert!(of("node-agent/src/drain.rs", text).contains("drain.rs:1: unsafe"));
        assert_eq!(of("node-agent/datapath/src/netns.rs", text), "");
        assert_eq!(
            of(
                "node-agent/src/drain.rs",
                "// unsafe\nlet unsafe_code = \"unsafe\";\n"
            ),
            ""
        );
    }

    #[test]
    fn unfinished_and_skipped_code_is_found() {
        for word in [
            "todo!()",
            "unimplemented!()",
            "#[ignore]",
            "#[allow(dead_code)]",
        ] {
            assert_ne!(
                of("node-agent/src/drain.rs", &format!("fn f() {{ {word} }}\n")),
                "",
                "{word}"
            );
            assert_eq!(
                of("node-agent/src/drain.rs", &format!("// {word}\n")),
                "",
                "{word}"
            );
        }
    }

    #[test]
    fn machine_paths_are_found_in_any_file() {
        let text = format!("see {}x\n", MACHINE_PATHS[0]);
        assert!(of("README.md", &text).contains("README.md:1: a path of one machine"));
    }

    #[test]
    fn modules_have_no_mod_file() {
        assert!(of("node-agent/src/proxy/mod.rs", "//! x\n").contains("foo.rs beside foo/"));
    }

    #[test]
    fn top_level_folders_are_the_known_ones() {
        let mut found: Vec<String> = FOLDERS.iter().map(|name| (*name).to_owned()).collect();
        found.extend([".git".to_owned(), "target".to_owned()]);
        assert!(folder_problems(&found).is_empty());
        found.push("docs".to_owned());
        found.retain(|name| name != "ebpf");
        let problems = folder_problems(&found).join("\n");
        assert!(
            problems.contains("docs/: a new") && problems.contains("ebpf/ is missing"),
            "{problems}"
        );
    }

    #[test]
    fn literals_and_comments_are_blanked() {
        let source =
            "a(\"x\\\"y\", 'z', '\\'', r#\"q\"w\"#, b\"v\"); /* m /* n */ o */ b::<'c>(); // d\ne";
        let code = code_only(source);
        for letter in ["x", "y", "z", "q", "w", "v", "m", "n", "o", "d"] {
            assert!(!code.contains(letter), "{letter} in {code}");
        }
        for code_part in ["a(", "b::<'c>()", "\ne"] {
            assert!(code.contains(code_part), "{code_part} not in {code}");
        }
    }
}
