//! Splits a file into documents, and documents into objects.

use std::path::Path;

use karst_core::{Kind, Object, ObjectError, ObjectKey, documents};
use serde_json::Value;

/// Documents of one file that are read; a file with more is not a manifest.
const MAX_DOCUMENTS: usize = 100_000;

/// A file's content, document by document.
#[derive(Debug, Default, PartialEq)]
pub struct Documents {
    /// Good objects, with the number of the document each came from (from 1).
    pub objects: Vec<(usize, Object)>,
    /// What is wrong with the others.
    pub faults: Vec<Fault>,
}

/// What is wrong with a document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Number of the document in its file, from 1.
    pub document: usize,
    /// The error.
    pub error: ObjectError,
    /// Which object it is, as far as can be told.
    pub subject: Subject,
}

/// What a faulty document was meant to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subject {
    /// This object. Its last good version is to stay.
    Known(ObjectKey),
    /// Some object. None that the file held before is to go.
    Unknown,
    /// The object is good; the fault is in one of its fields, which is left out of account.
    Finding,
}

impl Documents {
    /// Reads a file's text.
    pub fn parse(path: &Path, text: &str) -> Self {
        let mut found = Self::default();
        let is_json = path
            .extension()
            .is_some_and(|extension| extension == "json");
        for (index, value) in documents::documents(text, is_json)
            .take(MAX_DOCUMENTS)
            .enumerate()
        {
            match value {
                Ok(value) => documents::objects(value)
                    .into_iter()
                    .for_each(|object| found.value(index + 1, object)),
                Err(problem) => found.unreadable(index + 1, &problem),
            }
        }
        found
    }

    fn value(&mut self, document: usize, value: Value) {
        let subject = subject(&value);
        match Object::from_value(value) {
            Ok(Some(object)) => {
                let findings = object.findings.iter().cloned();
                self.faults.extend(findings.map(|error| Fault {
                    document,
                    error,
                    subject: Subject::Finding,
                }));
                self.objects.push((document, object));
            }
            Ok(None) => tracing::debug!(document, ?subject, "kind ignored"),
            Err(error) => self.faults.push(Fault {
                document,
                error,
                subject,
            }),
        }
    }

    fn unreadable(&mut self, document: usize, problem: &str) {
        self.faults.push(Fault {
            document,
            error: ObjectError {
                object: "document".to_owned(),
                field: "syntax".to_owned(),
                problem: format!("is not readable: {problem}"),
                hint: "correct the syntax; until then the file's former objects stay".to_owned(),
            },
            subject: Subject::Unknown,
        });
    }
}

/// As much of a faulty document's identity as can be used.
fn subject(value: &Value) -> Subject {
    let text = |pointer: &str| value.pointer(pointer).and_then(Value::as_str);
    let kind = text("/apiVersion")
        .zip(text("/kind"))
        .and_then(|(version, kind)| Kind::of(version, kind));
    let (Some(kind), Some(name)) = (kind, text("/metadata/name")) else {
        return Subject::Unknown;
    };
    let namespace = if kind.is_namespaced() {
        text("/metadata/namespace").unwrap_or("default")
    } else {
        ""
    };
    Subject::Known(ObjectKey {
        kind,
        namespace: namespace.to_owned(),
        name: name.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Documents {
        Documents::parse(Path::new("a.yaml"), text)
    }

    fn names(documents: &Documents) -> Vec<(usize, String)> {
        let objects = documents.objects.iter();
        objects
            .map(|(number, object)| (*number, object.key.to_string()))
            .collect()
    }

    #[test]
    fn several_documents_with_comments_and_empty_ones() {
        let documents = parse(
            "# head\n---\napiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n---\n# nothing\n---\n\
             apiVersion: v1\nkind: Namespace\nmetadata: {name: b}\n...\n",
        );
        assert_eq!(documents.faults, []);
        assert_eq!(
            names(&documents),
            [(1, "Namespace a".into()), (2, "Namespace b".into())]
        );
    }

    #[test]
    fn a_syntax_error_costs_one_document() {
        let documents = parse(
            "apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n---\nkind: [\n---\n\
             apiVersion: v1\nkind: Namespace\nmetadata: {name: c}\n",
        );
        assert_eq!(
            names(&documents),
            [(1, "Namespace a".into()), (3, "Namespace c".into())]
        );
        assert_eq!(documents.faults.len(), 1);
        assert_eq!(documents.faults[0].document, 2);
        assert_eq!(documents.faults[0].subject, Subject::Unknown);
        assert!(!documents.faults[0].error.problem.contains('\n'));
    }

    #[test]
    fn a_list_is_unfolded_and_unknown_kinds_are_ignored() {
        let documents = parse(
            "apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Namespace, metadata: {name: a}}\n\
             - {apiVersion: apps/v1, kind: Deployment, metadata: {name: b}}\n",
        );
        assert_eq!(names(&documents), [(1, "Namespace a".into())]);
        assert_eq!(documents.faults, []);
    }

    #[test]
    fn a_bad_field_names_object_and_field() {
        let documents = parse(
            "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop}\n\
             spec: {ports: [{port: eighty}]}\n",
        );
        let fault = &documents.faults[0];
        assert_eq!(fault.error.object, "Service shop/web");
        assert_eq!(fault.error.field, "spec.ports[0].port");
        let Subject::Known(key) = &fault.subject else {
            panic!("the object is known");
        };
        assert_eq!(key.to_string(), "Service shop/web");
    }

    #[test]
    fn scalars_keep_their_types() {
        let documents = parse(
            "apiVersion: v1\nkind: Service\nmetadata: {name: web}\n\
             spec: {clusterIP: 10.0.0.1, ports: [{port: 80, targetPort: \"8080\"}, {port: 81, targetPort: 8081}]}\n",
        );
        assert_eq!(documents.faults, []);
        assert_eq!(names(&documents), [(1, "Service default/web".into())]);
    }

    #[test]
    fn json_documents_follow_each_other() {
        let documents = Documents::parse(
            Path::new("a.json"),
            r#"{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"a"}}
               {"apiVersion":"v1","kind":"Namespace","metadata":{"name":"b"}} {"#,
        );
        assert_eq!(names(&documents).len(), 2);
        assert_eq!(documents.faults.len(), 1);
        assert_eq!(documents.faults[0].document, 3);
    }

    #[test]
    fn garbage_is_a_fault_and_not_a_panic() {
        for text in [
            "\u{0}\u{1}",
            "- a\n- b\n",
            "just words",
            "{",
            "a: &a [*a]",
            "---\n---\n",
        ] {
            let documents = parse(text);
            assert_eq!(documents.objects, [], "{text:?}");
        }
    }
}
