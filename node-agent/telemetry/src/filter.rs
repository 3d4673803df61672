//! Filters of access logs: CEL expressions over Istio's attributes.
//!
//! An expression is compiled once. Its attributes, functions and size are checked then, so that evaluating it is short
//! whatever is compared: there are no loops, and patterns are literals.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, LazyLock};

use cel::common::ast::{EntryExpr, Expr, IdedExpr, LiteralValue};
use cel::{Context, Env, Program, Value};

/// Longest expression, bytes. Reading it takes time and stack.
pub const MAX_BYTES: usize = 1024;

/// Brackets that may be open at once, for the same reason.
const MAX_DEPTH: usize = 32;

/// Headers that one expression may ask for.
const MAX_HEADERS: usize = 16;

/// What a filter can ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Attribute {
    /// `connection.mtls`: the client has shown an identity.
    ConnectionMtls,
    /// `connection.requested_server_name`: name in the client's TLS.
    ConnectionServerName,
    /// `connection.termination_details`: why it was refused or broke off, as the access log's `reason`.
    ConnectionTermination,
    /// `connection.tls_version`: of the client's tunnel.
    ConnectionTlsVersion,
    /// `connection.uri_san_peer_certificate`: the client's identity.
    ConnectionPeer,
    /// `destination.address`: address and port asked for.
    DestinationAddress,
    /// `destination.port`.
    DestinationPort,
    /// `request.host`.
    RequestHost,
    /// `request.id`: `x-request-id`.
    RequestId,
    /// `request.method`.
    RequestMethod,
    /// `request.path`: with its query.
    RequestPath,
    /// `request.protocol`: `HTTP/1.1` or `HTTP/2`.
    RequestProtocol,
    /// `request.scheme`.
    RequestScheme,
    /// `request.size`: bytes of the body.
    RequestSize,
    /// `request.url_path`: without its query.
    RequestUrlPath,
    /// `response.code`: 0 without a response.
    ResponseCode,
    /// `response.code_details`: why the answer is ours, as the access log's `reason`.
    ResponseDetails,
    /// `response.grpc_status`.
    ResponseGrpcStatus,
    /// `response.size`: bytes of the body.
    ResponseSize,
    /// `source.address`: address and port of the client.
    SourceAddress,
    /// `source.port`.
    SourcePort,
    /// `upstream.address`: address and port of the endpoint.
    UpstreamAddress,
    /// `upstream.port`.
    UpstreamPort,
}

const ATTRIBUTES: [(&str, &str, Attribute); 23] = [
    ("connection", "mtls", Attribute::ConnectionMtls),
    (
        "connection",
        "requested_server_name",
        Attribute::ConnectionServerName,
    ),
    (
        "connection",
        "termination_details",
        Attribute::ConnectionTermination,
    ),
    ("connection", "tls_version", Attribute::ConnectionTlsVersion),
    (
        "connection",
        "uri_san_peer_certificate",
        Attribute::ConnectionPeer,
    ),
    ("destination", "address", Attribute::DestinationAddress),
    ("destination", "port", Attribute::DestinationPort),
    ("request", "host", Attribute::RequestHost),
    ("request", "id", Attribute::RequestId),
    ("request", "method", Attribute::RequestMethod),
    ("request", "path", Attribute::RequestPath),
    ("request", "protocol", Attribute::RequestProtocol),
    ("request", "scheme", Attribute::RequestScheme),
    ("request", "size", Attribute::RequestSize),
    ("request", "url_path", Attribute::RequestUrlPath),
    ("response", "code", Attribute::ResponseCode),
    ("response", "code_details", Attribute::ResponseDetails),
    ("response", "grpc_status", Attribute::ResponseGrpcStatus),
    ("response", "size", Attribute::ResponseSize),
    ("source", "address", Attribute::SourceAddress),
    ("source", "port", Attribute::SourcePort),
    ("upstream", "address", Attribute::UpstreamAddress),
    ("upstream", "port", Attribute::UpstreamPort),
];

/// Functions besides operators.
const FUNCTIONS: [&str; 9] = [
    "contains",
    "double",
    "endsWith",
    "int",
    "matches",
    "size",
    "startsWith",
    "string",
    "uint",
];

/// Operators, as the parser names them.
const OPERATORS: [&str; 19] = [
    "!_",
    "-_",
    "@in",
    "_!=_",
    "_%_",
    "_&&_",
    "_*_",
    "_+_",
    "_-_",
    "_/_",
    "_<=_",
    "_<_",
    "_==_",
    "_>=_",
    "_>_",
    "_?_:_",
    "_[_]",
    "_||_",
    "@not_strictly_false",
];

/// Value of an attribute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fact<'a> {
    /// Text.
    Text(Cow<'a, str>),
    /// A number.
    Number(i64),
    /// Whether it is so.
    Bool(bool),
}

impl From<Fact<'_>> for Value {
    fn from(fact: Fact<'_>) -> Self {
        match fact {
            Fact::Text(text) => Value::String(Arc::new(text.into_owned())),
            Fact::Number(number) => Value::Int(number),
            Fact::Bool(bool) => Value::Bool(bool),
        }
    }
}

/// What is known of a connection or request that has ended.
pub trait Facts {
    /// An attribute; `None` where there is none, which an expression that asks for it cannot be evaluated with.
    fn fact(&self, attribute: Attribute) -> Option<Fact<'_>>;

    /// Value of a header of the request, by its name in lower case.
    fn header(&self, _name: &str) -> Option<Cow<'_, str>> {
        None
    }
}

/// A compiled filter.
pub struct Filter {
    program: Program,
    attributes: Vec<(&'static str, &'static str, Attribute)>,
    headers: Vec<String>,
}

impl fmt::Debug for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Filter")
            .field("attributes", &self.attributes)
            .field("headers", &self.headers)
            .finish_non_exhaustive()
    }
}

static ENVIRONMENT: LazyLock<Arc<Env>> = LazyLock::new(|| Arc::new(Env::stdlib()));

impl Filter {
    /// Compiles an expression.
    ///
    /// # Errors
    /// It is none, or asks for what is not there; for its author.
    pub fn compile(text: &str) -> Result<Self, String> {
        if text.len() > MAX_BYTES {
            return Err(format!("is longer than {MAX_BYTES} bytes; make it simpler"));
        }
        if depth(text) > MAX_DEPTH {
            return Err(format!(
                "has more than {MAX_DEPTH} brackets or signs in one another; make it simpler"
            ));
        }
        let program = ENVIRONMENT.compile(text).map_err(|error| {
            let text: String = error.to_string().chars().take(200).collect();
            format!("is no CEL expression: {}", text.replace('\n', " "))
        })?;
        let mut uses = Uses::default();
        uses.visit(program.expression())?;
        if uses.headers.len() > MAX_HEADERS {
            return Err(format!("asks for more than {MAX_HEADERS} headers"));
        }
        Ok(Self {
            program,
            attributes: uses.attributes,
            headers: uses.headers,
        })
    }

    /// Headers of the request, in lower case, that must be kept until it has ended.
    #[must_use]
    pub fn headers(&self) -> &[String] {
        &self.headers
    }

    /// Whether the expression is true.
    ///
    /// # Errors
    /// It cannot be said: an attribute is not there, or has another type than the expression expects.
    pub fn matches(&self, facts: &dyn Facts) -> Result<bool, String> {
        let mut roots: HashMap<&'static str, HashMap<String, Value>> = HashMap::new();
        for (root, member, attribute) in &self.attributes {
            let members = roots.entry(root).or_default();
            if let Some(fact) = facts.fact(*attribute) {
                members.insert((*member).to_owned(), fact.into());
            }
        }
        if !self.headers.is_empty() {
            let known = |name: &String| Some((name.clone(), facts.header(name)?.into_owned()));
            let headers: HashMap<String, String> = self.headers.iter().filter_map(known).collect();
            let request = roots.entry("request").or_default();
            request.insert("headers".to_owned(), headers.into());
        }
        let mut context = Context::with_env(Arc::clone(&ENVIRONMENT));
        for (root, members) in roots {
            context.add_variable_from_value(root, members);
        }
        match self.program.execute(&context) {
            Ok(Value::Bool(is_true)) => Ok(is_true),
            Ok(_) => Err("the expression is neither true nor false".to_owned()),
            Err(error) => Err(error.to_string()),
        }
    }
}

/// How deep brackets and signs are in one another, at most.
fn depth(text: &str) -> usize {
    let (mut open, mut signs, mut deepest) = (0_usize, 0_usize, 0);
    for byte in text.bytes() {
        match byte {
            b'(' | b'[' | b'{' => open += 1,
            b')' | b']' | b'}' => open = open.saturating_sub(1),
            // Each opens an expression that goes on to the end.
            b'!' | b'-' | b'?' => signs += 1,
            _ => {}
        }
        deepest = deepest.max(open + signs);
    }
    deepest
}

#[derive(Default)]
struct Uses {
    attributes: Vec<(&'static str, &'static str, Attribute)>,
    headers: Vec<String>,
}

impl Uses {
    fn visit(&mut self, expression: &IdedExpr) -> Result<(), String> {
        match &expression.expr {
            Expr::Literal(_) => Ok(()),
            Expr::Select(select) => self.attribute(&select.operand.expr, &select.field),
            Expr::Call(call) => {
                let name = call.func_name.as_str();
                if !OPERATORS.contains(&name) && !FUNCTIONS.contains(&name) {
                    let known = FUNCTIONS.join(", ");
                    return Err(format!("uses {name}; there are operators, has, {known}"));
                }
                if let ("_[_]", [object, index]) = (name, call.args.as_slice())
                    && is_headers(&object.expr)
                {
                    return self.header(&index.expr);
                }
                if let ("@in", [index, object]) = (name, call.args.as_slice())
                    && is_headers(&object.expr)
                {
                    return self.header(&index.expr);
                }
                if name == "matches" {
                    pattern(call.args.last())?;
                }
                let target = call.target.iter().map(AsRef::as_ref);
                target
                    .chain(&call.args)
                    .try_for_each(|each| self.visit(each))
            }
            Expr::List(list) => list.elements.iter().try_for_each(|each| self.visit(each)),
            Expr::Map(map) => map.entries.iter().try_for_each(|entry| match &entry.expr {
                EntryExpr::MapEntry(entry) => {
                    self.visit(&entry.key)?;
                    self.visit(&entry.value)
                }
                EntryExpr::StructField(field) => self.visit(&field.value),
            }),
            Expr::Ident(name) => Err(format!("uses {name}; {}", known())),
            Expr::Comprehension(_) => {
                Err("loops (all, exists, exists_one, map, filter), which filters cannot".to_owned())
            }
            Expr::Struct(_) | Expr::Unspecified => Err("makes an object of its own".to_owned()),
        }
    }

    fn attribute(&mut self, operand: &Expr, field: &str) -> Result<(), String> {
        if is_headers(operand) {
            return self.add_header(field);
        }
        let Expr::Ident(root) = operand else {
            return Err(format!("uses .{field} of no attribute; {}", known()));
        };
        let found = ATTRIBUTES
            .iter()
            .find(|(of, member, _)| of == root && *member == field);
        let Some(found) = found else {
            return Err(format!("uses {root}.{field}; {}", known()));
        };
        if !self.attributes.contains(found) {
            self.attributes.push(*found);
        }
        Ok(())
    }

    fn header(&mut self, index: &Expr) -> Result<(), String> {
        match index {
            Expr::Literal(LiteralValue::String(name)) => self.add_header(name.inner()),
            _ => Err("asks for a header whose name is not written out".to_owned()),
        }
    }

    fn add_header(&mut self, name: &str) -> Result<(), String> {
        // The map has names in lower case, as Envoy's.
        if name.is_empty() || name.bytes().any(|byte| byte.is_ascii_uppercase()) {
            return Err(format!(
                "asks for header {name:?}; write names of headers in lower case"
            ));
        }
        if !self.headers.iter().any(|known| known == name) {
            self.headers.push(name.to_owned());
        }
        Ok(())
    }
}

/// `request.headers`.
fn is_headers(expression: &Expr) -> bool {
    match expression {
        Expr::Select(select) => {
            select.field == "headers"
                && matches!(&select.operand.expr, Expr::Ident(root) if root == "request")
        }
        _ => false,
    }
}

/// A pattern is written out, and right.
fn pattern(argument: Option<&IdedExpr>) -> Result<(), String> {
    let Some(Expr::Literal(LiteralValue::String(text))) = argument.map(|argument| &argument.expr)
    else {
        return Err("matches a pattern that is not written out".to_owned());
    };
    let program = format!("''.matches({:?})", text.inner());
    let checked = ENVIRONMENT
        .compile(&program)
        .map_err(|_| ())
        .and_then(|program| {
            let context = Context::with_env(Arc::clone(&ENVIRONMENT));
            program.execute(&context).map_err(|_| ())
        });
    match checked {
        Ok(_) => Ok(()),
        Err(()) => Err(format!("matches {:?}, which is no pattern", text.inner())),
    }
}

fn known() -> String {
    let names: Vec<String> = ATTRIBUTES
        .iter()
        .map(|(root, member, _)| format!("{root}.{member}"))
        .collect();
    format!("there are request.headers[\"NAME\"], {}", names.join(", "))
}

#[cfg(test)]
mod tests;
