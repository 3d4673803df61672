//! `batch file FILE`: many commands, one a line, as bpftool has it.
//!
//! `#` begins a comment, `\` at the end of a line continues it, single and double quotes hold words together. It
//! stops at the first command that fails.

use std::fs::File;
use std::io::Read;

use serde_json::{Value, json};

use super::{Answer, Outcome, error, grammar, one, outcome};
use crate::args::Inspect;
use crate::failure::Failure;

/// Largest file: a thousand times what a person would write.
const MAX_BYTES: u64 = 1 << 20;

/// Most words of a command, as bpftool allows.
const MAX_WORDS: usize = 4096;

/// Runs the commands of the file that the arguments name.
pub fn run(args: &Inspect) -> Outcome {
    match commands(args) {
        Err(failure) => outcome(Err(failure), args.output),
        Ok(commands) if args.output.is_json() => as_json(args, commands),
        Ok(commands) => as_text(args, commands),
    }
}

/// The commands, and behind them an error where one could not be read.
type Commands = Vec<Result<Vec<String>, Failure>>;

fn commands(args: &Inspect) -> Result<Commands, Failure> {
    match &args.words[1..] {
        [] | [_] => Err(Failure::usage("too few parameters for batch")),
        [word, file] if grammar::is_prefix(word, "file") => Ok(parse(&read(file)?)),
        [word, _] => Err(Failure::usage(format!("expected 'file', got: {word}"))),
        _ => Err(Failure::usage("too many parameters for batch")),
    }
}

fn read(file: &str) -> Result<String, Failure> {
    let failed = |error: std::io::Error| {
        let why = match error.kind() {
            std::io::ErrorKind::NotFound => "No such file or directory".to_owned(),
            _ => error.to_string(),
        };
        Failure::failed("batch_file", format!("Can't open file ({file}): {why}"))
    };
    let source: Box<dyn Read> = match file {
        "-" => Box::new(std::io::stdin()),
        file => Box::new(File::open(file).map_err(failed)?),
    };
    let mut text = String::new();
    source
        .take(MAX_BYTES + 1)
        .read_to_string(&mut text)
        .map_err(failed)?;
    if text.len() as u64 > MAX_BYTES {
        let message = format!("batch file ({file}) is larger than {MAX_BYTES} bytes");
        return Err(Failure::failed("batch_file", message));
    }
    Ok(text)
}

fn parse(text: &str) -> Commands {
    let mut commands = Commands::new();
    let mut lines = text.lines();
    while let Some(first) = lines.next() {
        let mut line = uncommented(first).to_owned();
        while let Some(begun) = line.trim_end().strip_suffix('\\') {
            let Some(next) = lines.next() else {
                commands.push(Err(Failure::usage(format!(
                    "missing continuation line on command {}",
                    commands.len()
                ))));
                return commands;
            };
            line = format!("{begun}{}", uncommented(next));
        }
        match split(&line, commands.len()) {
            Ok(words) if words.is_empty() => {}
            Ok(words) => commands.push(Ok(words)),
            Err(failure) => {
                commands.push(Err(failure));
                return commands;
            }
        }
    }
    commands
}

/// A line without its comment.
fn uncommented(line: &str) -> &str {
    line.split('#').next().unwrap_or_default()
}

/// The words of a command.
fn split(line: &str, number: usize) -> Result<Vec<String>, Failure> {
    let mut words = Vec::new();
    let mut rest = line.trim_start();
    while let Some(first) = rest.chars().next() {
        if words.len() == MAX_WORDS {
            let message = format!("too many arguments to command {number}");
            return Err(Failure::usage(message));
        }
        let (word, more) = if matches!(first, '\'' | '"') {
            rest[1..].split_once(first).ok_or_else(|| {
                Failure::usage(format!("unterminated quoted string in command {number}"))
            })?
        } else {
            let end = rest.find(char::is_whitespace).unwrap_or(rest.len());
            rest.split_at(end)
        };
        words.push(word.to_owned());
        rest = more.trim_start();
    }
    Ok(words)
}

fn command(args: &Inspect, words: &[String]) -> Result<Answer, Failure> {
    if words.first().is_some_and(|word| word == "batch") {
        return Err(Failure::usage("a batch file cannot have another one"));
    }
    one(args, words)
}

fn as_text(args: &Inspect, commands: Commands) -> Outcome {
    let mut all = Outcome::default();
    let count = commands.len();
    for words in commands {
        let answer = words.and_then(|words| command(args, &words));
        let one = outcome(answer, args.output);
        all.out += &one.out;
        all.err += &one.err;
        if one.code != 0 {
            all.code = one.code;
            return all;
        }
    }
    all.out += &format!("processed {count} commands\n");
    all
}

fn as_json(args: &Inspect, commands: Commands) -> Outcome {
    let mut list = Vec::new();
    let mut code = 0;
    for words in commands {
        let words = match words {
            Ok(words) => words,
            Err(failure) => {
                code = failure.kind.exit_code();
                list.push(error(&failure));
                break;
            }
        };
        let output = match command(args, &words) {
            Ok(Answer::Json(value)) => value,
            // Answers are JSON where JSON is asked for.
            Ok(Answer::Text { text, .. }) => Value::from(text),
            Err(failure) => {
                code = failure.kind.exit_code();
                error(&failure)
            }
        };
        list.push(json!({"command": words, "output": output}));
        if code != 0 {
            break;
        }
    }
    let mut all = outcome(Ok(Answer::Json(Value::Array(list))), args.output);
    all.code = code;
    all
}

#[cfg(test)]
mod tests {
    use super::parse;

    fn parsed(text: &str) -> Vec<Result<Vec<String>, String>> {
        let commands = parse(text).into_iter();
        commands
            .map(|one| one.map_err(|failure| failure.message))
            .collect()
    }

    fn words(list: &[&str]) -> Result<Vec<String>, String> {
        Ok(list.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn comments_continuations_and_quotes() {
        let text = "# all\n\nprog show  # those\nmap dump \\\n  name PODS\n  pod show \"a b\" 'c\"d' \"\"\nver\\\nsion\n";
        assert_eq!(
            parsed(text),
            [
                words(&["prog", "show"]),
                words(&["map", "dump", "name", "PODS"]),
                words(&["pod", "show", "a b", "c\"d", ""]),
                words(&["version"]),
            ]
        );
    }

    #[test]
    fn what_cannot_be_read_ends_the_list() {
        let unterminated = "unterminated quoted string in command 1";
        assert_eq!(
            parsed("version\nprog show \"a\nmap"),
            [words(&["version"]), Err(unterminated.to_owned())]
        );
        let missing = "missing continuation line on command 0";
        assert_eq!(parsed("prog \\"), [Err(missing.to_owned())]);
    }
}
