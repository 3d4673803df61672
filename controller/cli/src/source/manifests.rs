//! Manifests: files and folders with YAML or JSON.

use std::fs;
use std::path::{Path, PathBuf};

use karst_core::documents;
use serde_json::Value;

use super::{Document, Place};
use crate::failure::{Failure, Kind};
use crate::input;

/// Largest file in bytes: as the controller's own.
const MAX_FILE_BYTES: u64 = 64 * 1024 * 1024;

/// Documents in one file.
const MAX_DOCUMENTS: usize = 100_000;

/// Folders deeper than this are not looked into.
const MAX_DEPTH: usize = 16;

/// Files in a folder; one with more is not one of manifests.
const MAX_FILES: usize = 200_000;

fn unreadable(what: &Path, why: impl std::fmt::Display) -> Failure {
    Failure {
        kind: Kind::Input,
        reason: "input_unreadable".to_owned(),
        message: format!("{} {why}", what.display()),
    }
}

/// All manifests below a folder, by path; what begins with a dot is left out, and so is a file that goes while
/// the folder is read.
pub fn folder(folder: &Path) -> Result<Vec<Document>, Failure> {
    let mut found = Vec::new();
    walk(folder, 0, &mut found)?;
    found.sort();
    let mut documents = Vec::new();
    for file in found {
        match text(&file) {
            Ok(text) => parse(&file, &text, &mut documents)?,
            Err(_) if is_gone(&file) => {}
            Err(failure) => return Err(failure),
        }
    }
    Ok(documents)
}

/// A link that leads nowhere is not gone.
fn is_gone(file: &Path) -> bool {
    let found = fs::symlink_metadata(file);
    found.is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound)
}

fn walk(folder: &Path, depth: usize, found: &mut Vec<PathBuf>) -> Result<(), Failure> {
    let cannot =
        |error: std::io::Error| unreadable(folder, format_args!("cannot be read: {error}"));
    for entry in fs::read_dir(folder).map_err(cannot)? {
        let entry = entry.map_err(cannot)?;
        if entry.file_name().as_encoded_bytes().starts_with(b".") {
            continue;
        }
        let path = entry.path();
        let kind = entry.file_type().map_err(cannot)?;
        if kind.is_dir() {
            if depth >= MAX_DEPTH {
                return Err(unreadable(
                    &path,
                    format_args!("is more than {MAX_DEPTH} folders deep"),
                ));
            }
            walk(&path, depth + 1, found)?;
        } else if matches!(
            path.extension().and_then(|e| e.to_str()),
            Some("yaml" | "yml" | "json")
        ) {
            if found.len() >= MAX_FILES {
                return Err(unreadable(
                    folder,
                    format_args!("has more than {MAX_FILES} manifests"),
                ));
            }
            found.push(path);
        }
    }
    Ok(())
}

/// The documents of files, in their order. A folder among them stands for what is in it.
pub fn files(files: &[PathBuf]) -> Result<Vec<Document>, Failure> {
    let mut documents = Vec::new();
    for file in files {
        if file.as_os_str() != "-" && file.is_dir() {
            documents.extend(folder(file)?);
            continue;
        }
        let text = text(file)?;
        parse(file, &text, &mut documents)?;
    }
    Ok(documents)
}

/// A file's text, or for `-` what comes on standard input.
pub fn text(file: &Path) -> Result<String, Failure> {
    input::text(file, MAX_FILE_BYTES).map_err(|why| unreadable(file, why))
}

fn parse(file: &Path, text: &str, found: &mut Vec<Document>) -> Result<(), Failure> {
    let is_json = file
        .extension()
        .is_some_and(|extension| extension == "json");
    let values: Vec<_> = documents::documents(text, is_json)
        .take(MAX_DOCUMENTS + 1)
        .collect();
    if values.len() > MAX_DOCUMENTS {
        return Err(unreadable(
            file,
            format_args!("has more than {MAX_DOCUMENTS} documents"),
        ));
    }
    for (index, value) in values.into_iter().enumerate() {
        let place = Place {
            file: file.to_owned(),
            document: index + 1,
        };
        let wrong = |why: &str| unreadable(file, format_args!("(document {}) {why}", index + 1));
        let value = value.map_err(|error| wrong(&format!("is not readable: {error}")))?;
        for value in documents::objects(value) {
            let text = |field: &str| value.get(field).and_then(Value::as_str);
            if text("apiVersion").is_none() || text("kind").is_none() {
                return Err(wrong(
                    "is no Kubernetes object: it has no apiVersion or no kind",
                ));
            }
            found.push(Document {
                value,
                place: Some(place.clone()),
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{files, folder, parse};
    use crate::failure::Kind;

    #[test]
    fn documents_and_lists_are_unfolded_with_their_place() {
        let mut documents = Vec::new();
        let text = "# head\n---\napiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n---\n# nothing\n---\n\
            apiVersion: v1\nkind: ServiceList\nitems: [{apiVersion: v1, kind: Service, metadata: {name: b}}]\n";
        parse(Path::new("a.yaml"), text, &mut documents).expect("parses");
        let found: Vec<_> = documents
            .iter()
            .map(|one| {
                (
                    one.value["metadata"]["name"].as_str(),
                    one.place.as_ref().map(|at| at.document),
                )
            })
            .collect();
        assert_eq!(found, [(Some("a"), Some(1)), (Some("b"), Some(2))]);
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        for (text, name) in [
            ("kind: [\n", "a.yaml"),
            ("a: b\n", "a.yaml"),
            ("{\"kind\":", "a.json"),
            ("just words", "a.yaml"),
        ] {
            let failure = parse(Path::new(name), text, &mut Vec::new()).expect_err(text);
            assert_eq!(failure.kind, Kind::Input, "{text}");
            assert!(
                failure.message.starts_with(&format!("{name} (document 1)")),
                "{}",
                failure.message
            );
        }
        let missing = files(&["/nowhere/x.yaml".into()]).expect_err("missing");
        assert_eq!(missing.kind, Kind::Input);
        assert_eq!(
            folder(Path::new("/nowhere")).expect_err("missing").kind,
            Kind::Input
        );
    }

    #[test]
    fn folders_are_read_by_path() {
        let folder = tempfile::tempdir().expect("folder");
        let object =
            |name: &str| format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}}}\n");
        std::fs::create_dir(folder.path().join("b")).expect("folder");
        for (file, name) in [
            ("b/x.yml", "two"),
            ("a.yaml", "one"),
            (".c.yaml", "no"),
            ("d.txt", "no"),
        ] {
            std::fs::write(folder.path().join(file), object(name)).expect("write");
        }
        let documents = super::folder(folder.path()).expect("reads");
        let names: Vec<_> = documents
            .iter()
            .map(|one| one.value["metadata"]["name"].as_str())
            .collect();
        assert_eq!(names, [Some("one"), Some("two")]);
    }
}
