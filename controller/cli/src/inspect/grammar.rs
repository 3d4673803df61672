//! Keywords that may be cut to a unique prefix.
//!
//! bpftool takes the first object or command of its list that begins with the word, and refuses an
//! ambiguous one among keywords only. Here every ambiguous word is refused, in bpftool's words: a script
//! must not mean another object when one is added.

use crate::failure::Failure;

/// What can be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// List.
    Show,
    /// Everything inside.
    Dump,
    /// Explain.
    Help,
}

const COMMANDS: [(&str, Command); 4] = [
    ("show", Command::Show),
    ("list", Command::Show),
    ("dump", Command::Dump),
    ("help", Command::Help),
];

/// The command a word stands for.
///
/// # Errors
/// The word is no prefix, or one of several.
pub fn command(word: &str) -> Result<Command, Failure> {
    let names = COMMANDS.iter().map(|(name, _)| *name);
    let place = find(word, names, "command")?;
    Ok(COMMANDS[place].1)
}

/// Whether a word is the beginning of a keyword, or all of it.
pub fn is_prefix(word: &str, keyword: &str) -> bool {
    !word.is_empty() && keyword.starts_with(word)
}

/// The place of the keyword that a word stands for; `None` if it is the beginning of none.
///
/// # Errors
/// It is the beginning of several.
pub fn lookup<'a>(
    word: &str,
    keywords: impl Iterator<Item = &'a str>,
) -> Result<Option<usize>, Failure> {
    let mut matches = Vec::new();
    for (place, keyword) in keywords.enumerate() {
        if keyword == word {
            return Ok(Some(place));
        }
        if is_prefix(word, keyword) {
            matches.push((place, keyword));
        }
    }
    match matches.as_slice() {
        [] => Ok(None),
        [(place, _)] => Ok(Some(*place)),
        several => {
            let names: Vec<_> = several
                .iter()
                .map(|(_, name)| format!("'{name}'"))
                .collect();
            Err(Failure::usage(format!(
                "ambiguous prefix: '{word}' could be {}",
                names.join(" or ")
            )))
        }
    }
}

/// The place of the keyword that a word stands for.
///
/// # Errors
/// It is the beginning of none or of several.
pub fn find<'a>(
    word: &str,
    keywords: impl Iterator<Item = &'a str> + Clone,
    what: &str,
) -> Result<usize, Failure> {
    lookup(word, keywords.clone())?.ok_or_else(|| {
        let names: Vec<_> = keywords.collect();
        Failure::usage(format!(
            "unknown {what} '{word}': not one of {}",
            names.join(", ")
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::{Command, command, lookup};

    #[test]
    fn unique_prefixes_are_enough() {
        for (word, expected) in [
            ("l", Command::Show),
            ("s", Command::Show),
            ("d", Command::Dump),
            ("help", Command::Help),
        ] {
            assert_eq!(command(word), Ok(expected), "{word}");
        }
        for word in ["", "x", "shows", "Show"] {
            let message = command(word).expect_err("refused").message;
            assert!(message.starts_with(&format!("unknown command '{word}'")));
        }
    }

    #[test]
    fn a_whole_word_is_never_ambiguous() {
        let words = || ["in", "inner", "index"].into_iter();
        assert_eq!(lookup("in", words()), Ok(Some(0)));
        assert_eq!(lookup("inn", words()), Ok(Some(1)));
        assert_eq!(lookup("x", words()), Ok(None));
        let message = lookup("i", words()).expect_err("refused").message;
        assert_eq!(
            message,
            "ambiguous prefix: 'i' could be 'in' or 'inner' or 'index'"
        );
    }
}
