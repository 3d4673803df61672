//! Keywords that may be cut to a unique prefix, as in bpftool.

use crate::failure::Failure;

/// What can be looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Object {
    /// Enrolled pods.
    Pod,
    /// BPF programs.
    Prog,
    /// Pinned links.
    Link,
    /// Pinned maps.
    Map,
    /// Certificates.
    Cert,
    /// Workloads.
    Workload,
    /// Services.
    Service,
    /// Authorization policies.
    Policy,
    /// Live connections.
    Connection,
    /// Tunnels to other agents.
    Tunnel,
}

/// What can be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// List.
    Show,
    /// Everything inside.
    Dump,
    /// Explain.
    Help,
}

const OBJECTS: [(&str, Object); 10] = [
    ("pod", Object::Pod),
    ("prog", Object::Prog),
    ("link", Object::Link),
    ("map", Object::Map),
    ("cert", Object::Cert),
    ("workload", Object::Workload),
    ("service", Object::Service),
    ("policy", Object::Policy),
    ("connection", Object::Connection),
    ("tunnel", Object::Tunnel),
];

const VERBS: [(&str, Verb); 4] = [
    ("show", Verb::Show),
    ("list", Verb::Show),
    ("dump", Verb::Dump),
    ("help", Verb::Help),
];

/// The object a word stands for.
///
/// # Errors
/// The word is no prefix, or one of several.
pub fn object(word: &str) -> Result<Object, Failure> {
    find(word, &OBJECTS, "object")
}

/// The command a word stands for.
///
/// # Errors
/// The word is no prefix, or one of several.
pub fn verb(word: &str) -> Result<Verb, Failure> {
    find(word, &VERBS, "command")
}

fn find<T: Copy>(word: &str, words: &[(&str, T)], what: &str) -> Result<T, Failure> {
    if let Some((_, found)) = words.iter().find(|(name, _)| *name == word) {
        return Ok(*found);
    }
    let matches: Vec<_> = words
        .iter()
        .filter(|(name, _)| !word.is_empty() && name.starts_with(word))
        .collect();
    match matches.as_slice() {
        [(_, found)] => Ok(*found),
        [] => {
            let names: Vec<_> = words.iter().map(|(name, _)| *name).collect();
            Err(Failure::usage(format!(
                "unknown {what} '{word}': not one of {}",
                names.join(", ")
            )))
        }
        several => {
            let names: Vec<_> = several
                .iter()
                .map(|(name, _)| format!("'{name}'"))
                .collect();
            Err(Failure::usage(format!(
                "ambiguous prefix: '{word}' could be {}",
                names.join(" or ")
            )))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Object, Verb, object, verb};

    #[test]
    fn unique_prefixes_are_enough() {
        assert_eq!(object("w"), Ok(Object::Workload));
        assert_eq!(object("pod"), Ok(Object::Pod));
        assert_eq!(object("pro"), Ok(Object::Prog));
        assert_eq!(object("ce"), Ok(Object::Cert));
        assert_eq!(verb("l"), Ok(Verb::Show));
        assert_eq!(verb("d"), Ok(Verb::Dump));
    }

    #[test]
    fn ambiguous_and_unknown_words_say_so() {
        let message = |word| object(word).expect_err("refused").message;
        assert_eq!(
            message("p"),
            "ambiguous prefix: 'p' could be 'pod' or 'prog' or 'policy'"
        );
        assert_eq!(
            message("c"),
            "ambiguous prefix: 'c' could be 'cert' or 'connection'"
        );
        assert!(message("podd").starts_with("unknown object 'podd'"));
        assert!(message("").starts_with("unknown object ''"));
    }
}
