//! The functions that templates may call: `default`, `eq`, `fail`, `gt`, `indent`, `int`, `join`,
//! `ne`, `nindent`, `not`, `printf` (with `%s` and `%d`), `quote`, `required`, `toJson`, `toString`,
//! `toYaml`, `trimSuffix`, and the method `Has` of a list. `and`, `or` and `include` need more than values and are with the evaluation.

use serde_json::Value;

use crate::yaml;

/// Whether a value counts as true: anything that is not empty, zero or absent.
pub fn truth(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(value) => *value,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(fields) => !fields.is_empty(),
    }
}

/// A value as it appears in the output.
pub fn print(value: &Value) -> Result<String, String> {
    match value {
        Value::String(text) => Ok(text.clone()),
        Value::Bool(_) | Value::Number(_) => Ok(value.to_string()),
        Value::Null => Err("there is no such value".to_owned()),
        Value::Array(_) | Value::Object(_) => {
            Err("a list or map cannot be printed; use toYaml or toJson".to_owned())
        }
    }
}

/// Calls the function `name`.
pub fn call(name: &str, arguments: &[Value]) -> Result<Value, String> {
    match (name, arguments) {
        ("default", [otherwise, value]) => Ok(if truth(value) { value } else { otherwise }.clone()),
        ("eq", [a, rest @ ..]) if !rest.is_empty() => Ok(Value::from(rest.contains(a))),
        ("ne", [a, b]) => Ok(Value::from(a != b)),
        ("not", [value]) => Ok(Value::from(!truth(value))),
        ("gt", [a, b]) => Ok(Value::from(integer(a)? > integer(b)?)),
        ("int", [value]) => integer(value).map(Value::from),
        ("toString", [value]) => print(value).map(Value::from),
        ("quote", [value]) => Ok(Value::from(Value::from(print(value)?).to_string())),
        ("toYaml", [value]) => Ok(Value::from(yaml::write(value))),
        ("toJson", [value]) => Ok(Value::from(value.to_string())),
        ("indent", [width, text]) => indent(width, text).map(Value::from),
        ("nindent", [width, text]) => Ok(Value::from(format!("\n{}", indent(width, text)?))),
        ("trimSuffix", [Value::String(suffix), Value::String(text)]) => Ok(Value::from(
            text.strip_suffix(suffix.as_str()).unwrap_or(text),
        )),
        ("join", [Value::String(separator), Value::Array(items)]) => {
            let items: Vec<_> = items.iter().map(print).collect::<Result<_, _>>()?;
            Ok(Value::from(items.join(separator)))
        }
        ("Has", [Value::Array(items), wanted @ Value::String(_)]) => {
            Ok(Value::from(items.contains(wanted)))
        }
        ("printf", [Value::String(format), values @ ..]) => printf(format, values),
        ("fail", [Value::String(message)]) => Err(message.clone()),
        ("required", [Value::String(message), value]) => match value {
            Value::Null => Err(message.clone()),
            Value::String(text) if text.is_empty() => Err(message.clone()),
            value => Ok(value.clone()),
        },
        _ => Err(format!(
            "there is no function {name:?} for {} such argument(s)",
            arguments.len()
        )),
    }
}

fn integer(value: &Value) -> Result<i64, String> {
    value
        .as_i64()
        .ok_or_else(|| format!("{value} is not a whole number"))
}

fn indent(width: &Value, text: &Value) -> Result<String, String> {
    let width = usize::try_from(integer(width)?).map_err(|_| "a negative width".to_owned())?;
    let pad = " ".repeat(width);
    let lines: Vec<_> = print(text)?.lines().map(|l| format!("{pad}{l}")).collect();
    Ok(lines.join("\n"))
}

fn printf(format: &str, values: &[Value]) -> Result<Value, String> {
    let mut out = String::new();
    let mut values = values.iter();
    let mut rest = format.chars();
    while let Some(c) = rest.next() {
        match (c, if c == '%' { rest.next() } else { None }) {
            ('%', Some('%')) => out.push('%'),
            ('%', Some('s' | 'd')) => {
                let value = values.next().ok_or("printf: too few values")?;
                out.push_str(&print(value)?);
            }
            ('%', other) => return Err(format!("printf: no verb {other:?}")),
            (c, _) => out.push(c),
        }
    }
    if values.next().is_some() {
        return Err("printf: too many values".to_owned());
    }
    Ok(Value::from(out))
}
