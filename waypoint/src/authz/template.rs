//! Templates of paths: `{*}` stands for one segment that is not empty, `{**}` for any number of characters over
//! any number of segments, none included. `/a/{**}` therefore matches `/a/`, and not `/a`.

use crate::http::path;

/// Segments of one template.
const MAX_SEGMENTS: usize = 256;

/// A template, with its operators.
#[derive(Debug)]
pub(super) struct Template {
    /// In front of `{**}`, or all.
    head: Vec<Segment>,
    /// Behind `{**}`; `None` if there is no such operator.
    tail: Option<Vec<Box<str>>>,
}

#[derive(Debug)]
enum Segment {
    One,
    Literal(Box<str>),
}

impl Template {
    /// Reads a template.
    ///
    /// # Errors
    /// What is wrong, as the rest of a sentence about it.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let Some(rest) = text.strip_prefix('/') else {
            return Err(format!(
                "is {text:?}, a template of paths begins with a slash"
            ));
        };
        if rest.split('/').count() > MAX_SEGMENTS {
            return Err(format!("has more than {MAX_SEGMENTS} segments"));
        }
        let mut template = Self {
            head: Vec::new(),
            tail: None,
        };
        for segment in rest.split('/') {
            match (segment, &mut template.tail) {
                ("{*}" | "{**}", Some(_)) => {
                    return Err(format!(
                        "is {text:?}, where an operator comes behind {{**}}"
                    ));
                }
                ("{**}", None) => template.tail = Some(Vec::new()),
                ("{*}", None) => template.head.push(Segment::One),
                (literal, _) if literal.contains(['*', '{', '}']) => {
                    return Err(format!(
                        "is {text:?}, where {literal:?} is neither an operator nor free of \
                         asterisks and braces"
                    ));
                }
                (literal, tail) => {
                    let octets = path::octets(literal);
                    let literal: Box<str> = octets.map_or_else(|_| literal.into(), Into::into);
                    match tail {
                        Some(tail) => tail.push(literal),
                        None => template.head.push(Segment::Literal(literal)),
                    }
                }
            }
        }
        Ok(template)
    }

    /// Whether a path, in its normal form, is of this shape.
    pub(super) fn matches(&self, path: &str) -> bool {
        let Some(rest) = path.strip_prefix('/') else {
            return false;
        };
        let mut segments = rest.split('/');
        let head = self.head.iter().all(|expected| {
            segments.next().is_some_and(|segment| match expected {
                Segment::One => !segment.is_empty(),
                Segment::Literal(literal) => **literal == *segment,
            })
        });
        let Some(tail) = &self.tail else {
            return head && segments.next().is_none();
        };
        let tail = tail.iter().rev().all(|literal| {
            let segment = segments.next_back();
            segment.is_some_and(|segment| **literal == *segment)
        });
        // The operator has its slash in front, and with it a segment, which may be empty.
        head && tail && segments.next().is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::Template;

    #[test]
    fn templates_match_segments() {
        let check = |template: &str, yes: &[&str], no: &[&str]| {
            let parsed = Template::parse(template).unwrap();
            for path in yes {
                assert!(parsed.matches(path), "{template} {path}");
            }
            for path in no {
                assert!(!parsed.matches(path), "{template} {path}");
            }
        };
        let none: &[&str] = &[
            "/foo",
            "/foo/",
            "/foo/bar/baz",
            "/foo//",
            "/fo/bar",
            "*",
            "",
        ];
        check("/foo/{*}", &["/foo/bar", "/foo/a%2Fb"], none);
        check(
            "/foo/{*}/bar",
            &["/foo/x/bar"],
            &["/foo//bar", "/foo/bar", "/foo/x/y/bar", "/foo/x/bar/"],
        );
        check("/{*}", &["/a"], &["/", "/a/b"]);
        check(
            "/foo/{**}",
            &["/foo/", "/foo/a", "/foo/a/b/", "/foo//"],
            &["/foo", "/foobar/a", "/"],
        );
        check("/{**}", &["/", "/a/b"], &[]);
        check(
            "/foo/{**}/",
            &["/foo/bar/", "/foo//", "/foo/a/b/"],
            &["/foo/bar", "/foo/", "/foo/a/b"],
        );
        check(
            "/foo/{**}/one",
            &["/foo/a/one", "/foo/a/b/one", "/foo//one"],
            &["/foo/one", "/foo/a/one/", "/foo/a/xone"],
        );
        check(
            "/foo/{*}/bar/{**}",
            &["/foo/buzz/bar/", "/foo/buzz/bar/baz"],
            &["/foo/buzz/bar", "/foo//bar/x", "/foo/a/b/bar/x"],
        );
        check("/%61/{*}", &["/a/x"], &["/%61/x"]);
    }

    #[test]
    fn what_is_no_template_is_refused() {
        for text in [
            "foo/{*}",
            "/*/baz/{*}",
            "/**/baz/{*}",
            "/{**}/foo/{*}",
            "/foo/{*}.txt",
            "/{***}",
            "/{a}",
            "/{**}/{**}",
        ] {
            assert!(Template::parse(text).is_err(), "{text}");
        }
        let long = "/a".repeat(300);
        assert!(Template::parse(&format!("{long}/{{*}}")).is_err());
    }
}
