//! A folder of manifests as the source of objects.
//!
//! Files are read again when they change. What the files say together is compared with what was
//! applied before, and the difference is applied in one batch. A faulty document is reported once,
//! with file, document, object and field; the last good version of its object stays for as long as
//! the file is there, and everything else applies.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
    thread::JoinHandle,
};

use karst_core::{Object, ObjectError, ObjectKey};
use tracing::{error, info, warn};

use super::{
    documents::{Documents, Fault, Subject},
    files::{self, Stamp},
    watch::{Look, Stop, Watch},
};
use crate::{
    metrics::Metrics,
    store::{Store, Update},
};

/// A folder of manifests.
pub struct Directory {
    root: PathBuf,
    store: Arc<Store>,
    metrics: Metrics,
    files: BTreeMap<PathBuf, File>,
    applied: HashMap<ObjectKey, Object>,
    reported: BTreeSet<Report>,
}

/// What is known of one file.
#[derive(Default)]
struct File {
    stamp: Option<Stamp>,
    documents: Documents,
    /// Objects of former versions of the file that faulty documents stand for now.
    kept: Vec<(usize, Object)>,
    /// Why the file cannot be read.
    unreadable: Option<String>,
}

/// Where an object or a fault is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    file: PathBuf,
    /// From 1; 0 for the file as a whole.
    document: usize,
}

/// A fault that has been logged and has not gone away.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Report {
    place: Place,
    object: String,
    field: String,
    problem: String,
    hint: String,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.document {
            0 => write!(f, "{}", self.file.display()),
            number => write!(f, "{} (document {number})", self.file.display()),
        }
    }
}

/// A running source; dropping it stops and joins its thread.
pub struct Running {
    stop: Stop,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.stop();
        if let Some(thread) = self.thread.take() {
            // A panic there has been printed by the panic hook; there is no more to do about it.
            let _ = thread.join();
        }
    }
}

impl Directory {
    /// Reads the folder for the first time, then follows it on a thread of its own.
    ///
    /// # Errors
    /// When the folder cannot be read or watched.
    pub fn start(root: &Path, store: Arc<Store>, metrics: Metrics) -> anyhow::Result<Running> {
        use anyhow::Context as _;

        let context = || format!("reading the source folder {}", root.display());
        let root = root.canonicalize().with_context(context)?;
        // Watch first: what changes while we read for the first time is then read again.
        let watch = Watch::new(&root).with_context(context)?;
        let mut directory = Self {
            root,
            store,
            metrics,
            files: BTreeMap::new(),
            applied: HashMap::new(),
            reported: BTreeSet::new(),
        };
        let found = files::list(&directory.root).with_context(context)?;
        directory.reconcile(found, &Look::default());
        info!(
            folder = %directory.root.display(),
            files = directory.files.len(),
            objects = directory.applied.len(),
            "source read"
        );
        let stop = watch.stop();
        let thread = std::thread::Builder::new()
            .name("source".to_owned())
            .spawn(move || {
                while let Some(look) = watch.wait() {
                    directory.look(&look);
                }
            })
            .context("starting the source's thread")?;
        Ok(Running {
            stop,
            thread: Some(thread),
        })
    }

    fn look(&mut self, look: &Look) {
        match files::list(&self.root) {
            Ok(found) => self.reconcile(found, look),
            // Not the same as an empty folder: what was there stays.
            Err(problem) => {
                let report = Report {
                    place: Place {
                        file: self.root.clone(),
                        document: 0,
                    },
                    object: "source".to_owned(),
                    field: "folder".to_owned(),
                    problem: format!("cannot be read: {problem}"),
                    hint: "all objects stay as they were".to_owned(),
                };
                if self.reported.insert(report.clone()) {
                    log(&report);
                }
            }
        }
    }

    /// Brings the store to what the files say.
    fn reconcile(&mut self, found: BTreeMap<PathBuf, Stamp>, look: &Look) {
        self.files
            .retain(|path, _| found.contains_key(path) || look.unfinished.contains(path));
        for (path, stamp) in found {
            let file = self.files.entry(path.clone()).or_default();
            let same = file.stamp == Some(stamp) && !look.everything;
            if look.unfinished.contains(&path) || (same && !look.changed.contains(&path)) {
                continue;
            }
            file.stamp = Some(stamp);
            file.read(&path);
        }

        let mut reports = BTreeSet::new();
        let (wanted, places) = wanted(&self.files, &mut reports);
        let batch = difference(&self.applied, &wanted);
        let keys: Vec<ObjectKey> = batch.iter().map(Update::key).collect();
        let refused = self.store.update(batch);
        let refused_keys: BTreeMap<&ObjectKey, &ObjectError> = refused
            .iter()
            .filter_map(|(at, error)| Some((keys.get(*at)?, error)))
            .collect();
        for (key, error) in &refused_keys {
            if let Some(place) = places.get(*key) {
                reports.insert(Report::new(place.clone(), error));
            }
        }
        // What was refused is not applied, so the next look tries it again; what it was to replace
        // is still what it was.
        for key in keys.iter().filter(|key| !refused_keys.contains_key(*key)) {
            match wanted.get(key) {
                Some(object) => self.applied.insert(key.clone(), (*object).clone()),
                None => self.applied.remove(key),
            };
        }
        self.report(reports);
    }

    fn report(&mut self, reports: BTreeSet<Report>) {
        for report in reports.difference(&self.reported) {
            log(report);
            self.metrics.source_faults.inc();
        }
        for report in self.reported.difference(&reports) {
            info!(place = %report.place, object = report.object, field = report.field, "manifest corrected");
        }
        self.metrics
            .source_faulty
            .set(i64::try_from(reports.len()).unwrap_or(i64::MAX));
        self.reported = reports;
    }
}

/// The objects that the files want, with the place of each. The first by path and document
/// wins where two are the same object.
fn wanted<'a>(
    files: &'a BTreeMap<PathBuf, File>,
    reports: &mut BTreeSet<Report>,
) -> (HashMap<ObjectKey, &'a Object>, HashMap<ObjectKey, Place>) {
    let mut wanted: HashMap<ObjectKey, &Object> = HashMap::new();
    let mut places: HashMap<ObjectKey, Place> = HashMap::new();
    for (path, file) in files {
        let place = |document: usize| Place {
            file: path.clone(),
            document,
        };
        if let Some(problem) = &file.unreadable {
            reports.insert(Report {
                place: place(0),
                object: "file".to_owned(),
                field: "content".to_owned(),
                problem: format!("cannot be read: {problem}"),
                hint: "its former objects stay until it can be read or is removed".to_owned(),
            });
        }
        for fault in &file.documents.faults {
            reports.insert(Report::new(place(fault.document), &fault.error));
        }
        for (document, object) in file.documents.objects.iter().chain(&file.kept) {
            if let Some(first) = places.get(&object.key) {
                reports.insert(Report {
                    place: place(*document),
                    object: object.key.to_string(),
                    field: "metadata.name".to_owned(),
                    problem: format!("is that of the same object in {first}"),
                    hint: "remove one of the two; until then the first one counts".to_owned(),
                });
                continue;
            }
            places.insert(object.key.clone(), place(*document));
            wanted.insert(object.key.clone(), object);
        }
    }
    (wanted, places)
}

/// What to change, in the order in which it must be done.
fn difference(
    applied: &HashMap<ObjectKey, Object>,
    wanted: &HashMap<ObjectKey, &Object>,
) -> Vec<Update> {
    let gone = applied.keys().filter(|key| !wanted.contains_key(*key));
    let mut gone: Vec<ObjectKey> = gone.cloned().collect();
    // Pods before their namespaces, services and nodes: the reverse of how they came.
    gone.sort_unstable_by(|a, b| b.cmp(a));
    let mut changed: Vec<&Object> = wanted
        .values()
        .filter(|object| applied.get(&object.key) != Some(object))
        .copied()
        .collect();
    changed.sort_unstable_by(|a, b| a.key.cmp(&b.key));
    let gone = gone.into_iter().map(Update::Delete);
    gone.chain(changed.into_iter().cloned().map(Update::Apply))
        .collect()
}

fn log(report: &Report) {
    // One event, with everything that is needed to find and mend the fault.
    let Report {
        place,
        object,
        field,
        problem,
        hint,
    } = report;
    if place.document == 0 {
        error!(reason = "source_unreadable", file = %place.file.display(), problem, hint, "source unreadable");
    } else {
        warn!(
            reason = "object_invalid",
            file = %place.file.display(),
            document = place.document,
            object,
            field,
            problem,
            hint,
            "manifest fault"
        );
    }
}

impl Report {
    fn new(place: Place, error: &ObjectError) -> Self {
        Self {
            place,
            object: error.object.clone(),
            field: error.field.clone(),
            problem: error.problem.clone(),
            hint: error.hint.clone(),
        }
    }
}

impl File {
    fn read(&mut self, path: &Path) {
        let text = match files::read(path) {
            Ok(text) => text,
            Err(problem) => {
                self.unreadable = Some(problem.to_string());
                return;
            }
        };
        self.unreadable = None;
        let documents = Documents::parse(path, &text);
        let former = std::mem::take(&mut self.documents).objects;
        let mut former: Vec<(usize, Object)> =
            former.into_iter().chain(self.kept.drain(..)).collect();
        former.retain(|(_, object)| {
            let replaced = documents
                .objects
                .iter()
                .any(|(_, now)| now.key == object.key);
            !replaced && documents.faults.iter().any(|fault| fault.keeps(object))
        });
        self.kept = former;
        self.documents = documents;
    }
}

impl Fault {
    /// Whether a former object stays because of this fault.
    fn keeps(&self, object: &Object) -> bool {
        match &self.subject {
            Subject::Known(key) => *key == object.key,
            Subject::Unknown => true,
            Subject::Finding => false,
        }
    }
}

impl Update {
    fn key(&self) -> ObjectKey {
        match self {
            Self::Apply(object) => object.key.clone(),
            Self::Delete(key) => key.clone(),
        }
    }
}
