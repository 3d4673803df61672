//! Text to [`Node`]s.

use serde_json::Value;

use super::{Defines, Expr, ExprKind, Node};

/// Splits a file into what it renders to and what it defines for all files.
///
/// # Errors
/// The line and what is wrong there.
pub fn parse(text: &str) -> Result<(Vec<Node>, Defines), String> {
    let mut parser = Parser {
        pieces: pieces(text)?.into_iter(),
        defines: Defines::new(),
    };
    let (nodes, end) = parser.nodes(true)?;
    match end {
        Stop::Text => Ok((nodes, parser.defines)),
        Stop::End(line) | Stop::Else(line, _) => Err(format!("line {line}: nothing to end here")),
    }
}

/// Text, or the inside of an action.
#[derive(Debug)]
enum Piece {
    Text(String),
    Action(usize, String),
}

/// What a list of nodes ended with.
enum Stop {
    Text,
    End(usize),
    /// With the condition after `else if`.
    Else(usize, Option<Expr>),
}

fn pieces(text: &str) -> Result<Vec<Piece>, String> {
    let mut pieces = Vec::new();
    let mut rest = text;
    let mut line = 1;
    let mut trim_next = false;
    loop {
        let (before, action) = match rest.find("{{") {
            Some(at) => (&rest[..at], Some(&rest[at + 2..])),
            None => (rest, None),
        };
        let start = line + before.matches('\n').count();
        let mut literal = if trim_next {
            before.trim_start()
        } else {
            before
        };
        let Some(action) = action else {
            pieces.push(Piece::Text(literal.to_owned()));
            return Ok(pieces);
        };
        let inside = match action
            .strip_prefix('-')
            .filter(|a| a.starts_with(char::is_whitespace))
        {
            Some(inside) => {
                literal = literal.trim_end();
                inside
            }
            None => action,
        };
        pieces.push(Piece::Text(literal.to_owned()));
        let end = closing(inside).ok_or_else(|| format!("line {start}: {{{{ is not closed"))?;
        let body = &inside[..end];
        let trimmed = body
            .strip_suffix('-')
            .filter(|b| b.ends_with(char::is_whitespace));
        trim_next = trimmed.is_some();
        let body = trimmed.unwrap_or(body);
        line = start + body.matches('\n').count();
        rest = &inside[end + 2..];
        if !(body.trim_start().starts_with("/*") && body.trim_end().ends_with("*/")) {
            pieces.push(Piece::Action(start, body.trim().to_owned()));
        }
    }
}

/// Where the `}}` of an action is, past strings and comments.
fn closing(text: &str) -> Option<usize> {
    if text.trim_start().starts_with("/*") {
        let end = text.find("*/")?;
        return text[end..].find("}}").map(|at| end + at);
    }
    let mut quote = None;
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        match quote {
            Some('"') if escaped => escaped = false,
            Some('"') if c == '\\' => escaped = true,
            Some(open) if c == open => quote = None,
            Some(_) => {}
            None if c == '"' || c == '`' => quote = Some(c),
            None if text[at..].starts_with("}}") => return Some(at),
            None => {}
        }
    }
    None
}

struct Parser {
    pieces: std::vec::IntoIter<Piece>,
    defines: Defines,
}

impl Parser {
    fn nodes(&mut self, top: bool) -> Result<(Vec<Node>, Stop), String> {
        let mut nodes = Vec::new();
        while let Some(piece) = self.pieces.next() {
            let (line, body) = match piece {
                Piece::Text(text) => {
                    if !text.is_empty() {
                        nodes.push(Node::Text(text));
                    }
                    continue;
                }
                Piece::Action(line, body) => (line, body),
            };
            let (word, rest) = body
                .split_once(char::is_whitespace)
                .unwrap_or((body.as_str(), ""));
            match word {
                "end" => return Ok((nodes, Stop::End(line))),
                "else" => {
                    let rest = rest.trim();
                    let condition = match rest.strip_prefix("if ") {
                        Some(condition) => Some(expression(line, condition)?),
                        None if rest.is_empty() => None,
                        None => return Err(format!("line {line}: else {rest:?}")),
                    };
                    return Ok((nodes, Stop::Else(line, condition)));
                }
                "if" => nodes.push(self.condition(line, rest)?),
                "range" | "with" => {
                    let subject = expression(line, rest)?;
                    let (body, otherwise) = self.body(line)?;
                    nodes.push(match word {
                        "range" => Node::Range(subject, body, otherwise),
                        _ => Node::With(subject, body, otherwise),
                    });
                }
                "define" if top => self.define(line, rest)?,
                "define" | "block" | "template" | "break" | "continue" => {
                    return Err(format!("line {line}: {word} is not supported here"));
                }
                _ => nodes.push(Node::Output(expression(line, &body)?)),
            }
        }
        Ok((nodes, Stop::Text))
    }

    fn condition(&mut self, line: usize, rest: &str) -> Result<Node, String> {
        let mut branches = Vec::new();
        let mut condition = expression(line, rest)?;
        loop {
            let (body, end) = self.nodes(false)?;
            branches.push((condition, body));
            match end {
                Stop::Text => return Err(format!("line {line}: if has no end")),
                Stop::End(_) => return Ok(Node::If(branches, Vec::new())),
                Stop::Else(_, Some(next)) => condition = next,
                Stop::Else(_, None) => return Ok(Node::If(branches, self.last_part(line)?)),
            }
        }
    }

    fn body(&mut self, line: usize) -> Result<(Vec<Node>, Vec<Node>), String> {
        let (body, end) = self.nodes(false)?;
        match end {
            Stop::End(_) => Ok((body, Vec::new())),
            Stop::Else(_, None) => Ok((body, self.last_part(line)?)),
            Stop::Else(..) | Stop::Text => Err(format!("line {line}: this has no end")),
        }
    }

    /// What follows `else`, to its `end`.
    fn last_part(&mut self, line: usize) -> Result<Vec<Node>, String> {
        match self.nodes(false)? {
            (nodes, Stop::End(_)) => Ok(nodes),
            _ => Err(format!("line {line}: else has no end")),
        }
    }

    fn define(&mut self, line: usize, rest: &str) -> Result<(), String> {
        let name = match expression(line, rest)?.kind {
            ExprKind::Literal(Value::String(name)) => name,
            _ => return Err(format!("line {line}: define needs a name in quotes")),
        };
        let (nodes, end) = self.nodes(false)?;
        if !matches!(end, Stop::End(_)) {
            return Err(format!("line {line}: define has no end"));
        }
        if self.defines.insert(name.clone(), nodes).is_some() {
            return Err(format!("line {line}: {name:?} is defined twice"));
        }
        Ok(())
    }
}

#[derive(Debug, PartialEq)]
enum Token {
    Word(String),
    Dot(Vec<String>),
    Root(Vec<String>),
    Literal(Value),
    Open,
    Close,
    Pipe,
}

fn expression(line: usize, text: &str) -> Result<Expr, String> {
    let tokens = tokens(text).map_err(|problem| format!("line {line}: {problem}"))?;
    let mut tokens = tokens.into_iter().peekable();
    let expr = pipeline(line, &mut tokens).map_err(|problem| format!("line {line}: {problem}"))?;
    match tokens.next() {
        None => Ok(expr),
        Some(token) => Err(format!("line {line}: {token:?} is too much")),
    }
}

type Tokens = std::iter::Peekable<std::vec::IntoIter<Token>>;

fn pipeline(line: usize, tokens: &mut Tokens) -> Result<Expr, String> {
    let mut value = command(line, tokens, None)?;
    while tokens.next_if_eq(&Token::Pipe).is_some() {
        value = command(line, tokens, Some(value))?;
    }
    Ok(value)
}

/// A function with its arguments, or one value. What is piped in is the last argument.
fn command(line: usize, tokens: &mut Tokens, piped: Option<Expr>) -> Result<Expr, String> {
    if let Some(Token::Word(name)) = tokens.next_if(|token| matches!(token, Token::Word(_))) {
        let mut arguments = Vec::new();
        while tokens
            .peek()
            .is_some_and(|token| !matches!(token, Token::Pipe | Token::Close))
        {
            arguments.push(term(line, tokens)?);
        }
        arguments.extend(piped);
        let kind = ExprKind::Call(name, arguments);
        return Ok(Expr { line, kind });
    }
    if piped.is_some() {
        return Err("a value cannot be piped into a value".to_owned());
    }
    let value = term(line, tokens)?;
    method(value, tokens)
}

/// `LIST.Has TEXT`, the one method that there is: Helm's lists of API versions have it.
fn method(value: Expr, tokens: &mut Tokens) -> Result<Expr, String> {
    let line = value.line;
    let (path, is_root) = match &value.kind {
        ExprKind::Dot(path) => (path, false),
        ExprKind::Root(path) => (path, true),
        _ => return Ok(value),
    };
    let Some((_, list)) = path.split_last().filter(|(last, _)| *last == "Has") else {
        return Ok(value);
    };
    let kind = match is_root {
        true => ExprKind::Root(list.to_vec()),
        false => ExprKind::Dot(list.to_vec()),
    };
    let arguments = vec![Expr { line, kind }, term(line, tokens)?];
    let kind = ExprKind::Call("Has".to_owned(), arguments);
    Ok(Expr { line, kind })
}

fn term(line: usize, tokens: &mut Tokens) -> Result<Expr, String> {
    let kind = match tokens.next() {
        Some(Token::Dot(path)) => ExprKind::Dot(path),
        Some(Token::Root(path)) => ExprKind::Root(path),
        Some(Token::Literal(value)) => ExprKind::Literal(value),
        // A function without arguments, which the list of functions will not know.
        Some(Token::Word(name)) => ExprKind::Call(name, Vec::new()),
        Some(Token::Open) => {
            let inner = pipeline(line, tokens)?;
            if tokens.next() != Some(Token::Close) {
                return Err("( is not closed".to_owned());
            }
            inner.kind
        }
        other => return Err(format!("a value is missing before {other:?}")),
    };
    Ok(Expr { line, kind })
}

fn tokens(text: &str) -> Result<Vec<Token>, String> {
    let mut tokens = Vec::new();
    let mut rest = text.trim_start();
    while let Some(c) = rest.chars().next() {
        let length = match c {
            '(' | ')' | '|' => {
                tokens.push(match c {
                    '(' => Token::Open,
                    ')' => Token::Close,
                    _ => Token::Pipe,
                });
                1
            }
            '"' => string(rest, &mut tokens)?,
            '`' => {
                let end = rest[1..].find('`').ok_or("a string is not closed")?;
                tokens.push(Token::Literal(Value::from(&rest[1..=end])));
                end + 2
            }
            _ => {
                let end = rest
                    .find(|c: char| c.is_whitespace() || "()|\"`".contains(c))
                    .unwrap_or(rest.len());
                tokens.push(word(&rest[..end])?);
                end
            }
        };
        rest = rest[length..].trim_start();
    }
    Ok(tokens)
}

/// A string in double quotes; JSON's escapes are the ones that Go has too.
fn string(text: &str, tokens: &mut Vec<Token>) -> Result<usize, String> {
    let mut stream = serde_json::Deserializer::from_str(text).into_iter::<Value>();
    match stream.next() {
        Some(Ok(value)) => {
            tokens.push(Token::Literal(value));
            Ok(stream.byte_offset())
        }
        _ => Err("a string is not closed".to_owned()),
    }
}

fn word(text: &str) -> Result<Token, String> {
    let path = |path: &str| -> Result<Vec<String>, String> {
        if path.is_empty() {
            return Ok(Vec::new());
        }
        let part = |part: &str| {
            let good =
                !part.is_empty() && part.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
            if good {
                Ok(part.to_owned())
            } else {
                Err(format!("{text:?} is not a path"))
            }
        };
        path.split('.').map(part).collect()
    };
    if let Some(rest) = text.strip_prefix('$') {
        return match rest.strip_prefix('.') {
            Some(rest) => path(rest).map(Token::Root),
            None if rest.is_empty() => Ok(Token::Root(Vec::new())),
            None => Err(format!("{text:?}: variables are not supported")),
        };
    }
    if let Some(rest) = text.strip_prefix('.') {
        return path(rest).map(Token::Dot);
    }
    match text {
        "true" | "false" => Ok(Token::Literal(Value::from(text == "true"))),
        _ if text.starts_with(|c: char| c.is_ascii_digit() || c == '-') => text
            .parse::<i64>()
            .map(|number| Token::Literal(Value::from(number)))
            .map_err(|_| format!("{text:?} is not a whole number")),
        _ if text.chars().all(|c| c.is_ascii_alphanumeric()) => Ok(Token::Word(text.to_owned())),
        _ => Err(format!("{text:?} is not supported")),
    }
}
