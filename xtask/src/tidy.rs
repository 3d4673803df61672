//! `cargo xtask tidy`: rules of the house that no compiler checks.
//!
//! Each rule is a function from plain data (dependency graph, source text, document) to a list of
//! problems, so that its tests can feed it a small input that must fail. Start with [`problems`].
//! [`dependencies`] says who may depend on whom, [`sources`] what a source file may hold, and
//! [`names`] and [`tables`] hold the code to its documents: a map, program, port or metric is in
//! its table, and nothing else is.

mod dependencies;
mod names;
mod sources;
mod tables;

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};

use crate::workspace::{Workspace, say};

/// Arguments of `tidy`.
#[derive(clap::Args, Default)]
pub struct Args {}

/// A text file of the workspace; its path is relative to the root, with `/` between folders.
#[derive(Debug)]
pub struct File {
    /// Where it is.
    pub path: String,
    /// What it holds.
    pub text: String,
}

/// Checks every rule; fails when any is broken.
pub fn run(_args: &Args) -> Result<()> {
    say("tidy");
    let problems = problems(&Workspace::locate()?)?;
    for problem in &problems {
        println!("tidy: {problem}");
    }
    if problems.is_empty() {
        return Ok(());
    }
    bail!("tidy found {} problems", problems.len())
}

/// Everything that is wrong with the workspace.
fn problems(workspace: &Workspace) -> Result<Vec<String>> {
    let files = files(workspace.root())?;
    let mut problems = dependencies::problems(&dependencies::Graph::read(workspace)?);
    problems.extend(sources::problems(&files));
    problems.extend(sources::folder_problems(&folders(workspace.root())?));
    problems.extend(names::problems(&files));
    Ok(problems)
}

/// The text files of the workspace, without what cargo and git keep there.
fn files(root: &Path) -> Result<Vec<File>> {
    let mut files = Vec::new();
    let mut open: Vec<PathBuf> = vec![root.to_path_buf()];
    while let Some(folder) = open.pop() {
        for entry in
            fs::read_dir(&folder).with_context(|| format!("reading {}", folder.display()))?
        {
            let entry = entry.with_context(|| format!("reading {}", folder.display()))?;
            let (path, name) = (entry.path(), entry.file_name());
            let kind = entry
                .file_type()
                .with_context(|| format!("reading {}", path.display()))?;
            if kind.is_dir() {
                if name != "target" && name != ".git" {
                    open.push(path);
                }
            } else if let Ok(text) = fs::read_to_string(&path) {
                // What is not UTF-8 is no text and has no rule.
                let path = path
                    .strip_prefix(root)
                    .unwrap_or(&path)
                    .display()
                    .to_string();
                files.push(File { path, text });
            }
        }
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(files)
}

/// The names of the top-level folders.
fn folders(root: &Path) -> Result<Vec<String>> {
    let mut folders = Vec::new();
    for entry in fs::read_dir(root).with_context(|| format!("reading {}", root.display()))? {
        let entry = entry.with_context(|| format!("reading {}", root.display()))?;
        if entry.path().is_dir() {
            folders.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    folders.sort();
    Ok(folders)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_workspace_is_tidy() {
        let workspace = Workspace::locate().unwrap();
        let problems = problems(&workspace).unwrap();
        assert!(problems.is_empty(), "{}", problems.join("\n"));
    }

    #[test]
    fn build_outputs_are_not_read() {
        let folder = tempfile::tempdir().unwrap();
        for path in ["target/x.rs", ".git/y.rs", "a/b.rs"] {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "x").unwrap();
        }
        let read: Vec<_> = files(folder.path())
            .unwrap()
            .into_iter()
            .map(|file| file.path)
            .collect();
        assert_eq!(read, ["a/b.rs"]);
    }
}
