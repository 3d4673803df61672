//! The part of Helm's template language that Karst's charts keep to.
//!
//! Actions: values, `if`/`else if`/`else`, `range` over a list, `with`, `define`, `include`,
//! comments, and trimming with `{{-` and `-}}`. Functions: see [`functions`]. There are no variables but
//! `$`. What is outside the subset is an error that names the line, never passed over; and where Helm
//! would print nothing for a value that is not there, this is an error too.

mod functions;
mod parse;

use std::collections::BTreeMap;

use serde_json::Value;

pub use parse::parse;

/// Templates that include each other without end are stopped at this depth.
const MAX_DEPTH: usize = 32;

/// A piece of a template.
#[derive(Debug, Clone, PartialEq)]
pub enum Node {
    /// Text as it stands.
    Text(String),
    /// The value of an expression.
    Output(Expr),
    /// The first branch whose condition holds, else the last part.
    If(Vec<(Expr, Vec<Node>)>, Vec<Node>),
    /// The body once for each item, else the last part.
    Range(Expr, Vec<Node>, Vec<Node>),
    /// The body with another dot, when it is not empty, else the last part.
    With(Expr, Vec<Node>, Vec<Node>),
}

/// An expression, with the line it stands on.
#[derive(Debug, Clone, PartialEq)]
pub struct Expr {
    line: usize,
    kind: ExprKind,
}

#[derive(Debug, Clone, PartialEq)]
enum ExprKind {
    /// `.a.b`
    Dot(Vec<String>),
    /// `$.a.b`
    Root(Vec<String>),
    Literal(Value),
    Call(String, Vec<Expr>),
}

/// Named parts (`define`) of all files of a chart.
pub type Defines = BTreeMap<String, Vec<Node>>;

/// Renders `nodes` with `data` as `.` and `$`.
///
/// # Errors
/// The line and what is wrong there.
pub fn render(nodes: &[Node], defines: &Defines, data: &Value) -> Result<String, String> {
    render_at(nodes, defines, data, 0)
}

fn render_at(
    nodes: &[Node],
    defines: &Defines,
    data: &Value,
    depth: usize,
) -> Result<String, String> {
    if depth > MAX_DEPTH {
        return Err(format!("templates include each other {MAX_DEPTH} deep"));
    }
    let scope = Scope {
        defines,
        root: data,
        depth,
    };
    let mut out = String::new();
    scope.nodes(nodes, data, &mut out)?;
    Ok(out)
}

/// What an expression may see besides its dot.
struct Scope<'a> {
    defines: &'a Defines,
    root: &'a Value,
    depth: usize,
}

impl Scope<'_> {
    fn nodes(&self, nodes: &[Node], dot: &Value, out: &mut String) -> Result<(), String> {
        for node in nodes {
            match node {
                Node::Text(text) => out.push_str(text),
                Node::Output(expr) => {
                    let value = self.eval(expr, dot)?;
                    out.push_str(&functions::print(&value).map_err(|e| at(expr, &e))?);
                }
                Node::If(branches, otherwise) => self.branch(branches, otherwise, dot, out)?,
                Node::Range(list, body, otherwise) => {
                    match self.eval(list, dot)? {
                        Value::Array(items) if !items.is_empty() => {
                            for item in &items {
                                self.nodes(body, item, out)?;
                            }
                        }
                        Value::Array(_) | Value::Null => self.nodes(otherwise, dot, out)?,
                        _ => return Err(at(list, "range is over lists only")),
                    };
                }
                Node::With(value, body, otherwise) => {
                    let value = self.eval(value, dot)?;
                    if functions::truth(&value) {
                        self.nodes(body, &value, out)?;
                    } else {
                        self.nodes(otherwise, dot, out)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn branch(
        &self,
        branches: &[(Expr, Vec<Node>)],
        otherwise: &[Node],
        dot: &Value,
        out: &mut String,
    ) -> Result<(), String> {
        for (condition, body) in branches {
            if functions::truth(&self.eval(condition, dot)?) {
                return self.nodes(body, dot, out);
            }
        }
        self.nodes(otherwise, dot, out)
    }

    fn eval(&self, expr: &Expr, dot: &Value) -> Result<Value, String> {
        match &expr.kind {
            ExprKind::Literal(value) => Ok(value.clone()),
            ExprKind::Dot(path) => field(dot, path).map_err(|e| at(expr, &e)),
            ExprKind::Root(path) => field(self.root, path).map_err(|e| at(expr, &e)),
            ExprKind::Call(name, arguments) => {
                // These two look at no more than they must.
                if name == "and" || name == "or" {
                    return self.lazy(name == "or", arguments, dot, expr);
                }
                let values: Vec<Value> = arguments
                    .iter()
                    .map(|argument| self.eval(argument, dot))
                    .collect::<Result<_, _>>()?;
                if name == "include" {
                    return self.include(&values).map_err(|e| at(expr, &e));
                }
                functions::call(name, &values).map_err(|e| at(expr, &e))
            }
        }
    }

    fn lazy(
        &self,
        stop_at: bool,
        arguments: &[Expr],
        dot: &Value,
        expr: &Expr,
    ) -> Result<Value, String> {
        let mut last = Err(at(expr, "needs arguments"));
        for argument in arguments {
            let value = self.eval(argument, dot)?;
            if functions::truth(&value) == stop_at {
                return Ok(value);
            }
            last = Ok(value);
        }
        last
    }

    fn include(&self, arguments: &[Value]) -> Result<Value, String> {
        let [Value::String(name), data] = arguments else {
            return Err("include takes a name and a value".to_owned());
        };
        let nodes = self
            .defines
            .get(name)
            .ok_or_else(|| format!("nothing is defined as {name:?}"))?;
        render_at(nodes, self.defines, data, self.depth + 1)
            .map(Value::String)
            .map_err(|problem| format!("in {name:?}: {problem}"))
    }
}

fn field(value: &Value, path: &[String]) -> Result<Value, String> {
    let mut value = value;
    for name in path {
        value = match value {
            Value::Object(fields) => fields.get(name).unwrap_or(&Value::Null),
            _ => return Err(format!("{name:?} is asked of what has no fields")),
        };
    }
    Ok(value.clone())
}

fn at(expr: &Expr, problem: &str) -> String {
    format!("line {}: {problem}", expr.line)
}

#[cfg(test)]
mod tests;
