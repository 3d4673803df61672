//! The mesh's configuration file (`--mesh-config`): Istio's form, of which external authorizers are read.
//!
//! The file is read before anything is served, and again when it changes. One that cannot be read as a whole leaves what
//! the last one said in force; without one there are no providers, and policies that ask one refuse.

use std::{
    io::Read as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use karst_core::{ExtensionProviders, MAX_MESH_CONFIG_BYTES, MeshConfigFindings};
use tracing::{error, info};

use crate::store::Store;

/// Time between two looks at the file. A mounted ConfigMap changes by a link, which leaves nothing to watch that stays.
const PERIOD: Duration = Duration::from_secs(2);

/// Follows the file.
pub struct MeshConfigFile {
    path: PathBuf,
    store: Arc<Store>,
    /// What the last look has found, good or not.
    seen: Option<Result<Vec<u8>, String>>,
}

impl MeshConfigFile {
    /// Reads the file for the first time.
    pub fn open(path: &Path, store: Arc<Store>) -> Self {
        let mut file = Self {
            path: path.to_owned(),
            store,
            seen: None,
        };
        file.look(&read(path));
        file
    }

    /// Reads it again whenever it has changed.
    pub async fn follow(mut self) {
        let mut ticks = tokio::time::interval(PERIOD);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let path = self.path.clone();
            // Only a panic of it would be an error here, and the next look comes soon.
            if let Ok(content) = tokio::task::spawn_blocking(move || read(&path)).await {
                self.look(&content);
            }
        }
    }

    fn look(&mut self, content: &Result<Vec<u8>, String>) {
        if self.seen.as_ref() == Some(content) {
            return;
        }
        self.seen = Some(content.clone());
        let parsed = content
            .as_ref()
            .map_err(Clone::clone)
            .and_then(|bytes| parse(bytes));
        match parsed {
            Ok((providers, findings)) => {
                for problem in &findings.faults {
                    error!(
                        reason = "mesh_config_invalid",
                        file = %self.path.display(),
                        problem,
                        "an extension provider cannot be used"
                    );
                }
                if !findings.ignored.is_empty() {
                    let settings = findings.ignored.join(", ");
                    info!(file = %self.path.display(), settings, "settings of the mesh's configuration without effect");
                }
                let providers_usable = providers.usable();
                info!(file = %self.path.display(), providers = providers_usable, "mesh configuration read");
                self.store.set_extension_providers(providers);
            }
            Err(problem) => error!(
                reason = "mesh_config_invalid",
                file = %self.path.display(),
                problem,
                "the mesh's configuration cannot be read; what the last one said stays in force"
            ),
        }
    }
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    let file = std::fs::File::open(path).map_err(|error| error.to_string())?;
    let mut bytes = Vec::new();
    let mut limited = file.take(MAX_MESH_CONFIG_BYTES + 1);
    limited
        .read_to_end(&mut bytes)
        .map_err(|error| error.to_string())?;
    if bytes.len() as u64 > MAX_MESH_CONFIG_BYTES {
        return Err(format!("it has more than {MAX_MESH_CONFIG_BYTES} bytes"));
    }
    Ok(bytes)
}

fn parse(bytes: &[u8]) -> Result<(ExtensionProviders, MeshConfigFindings), String> {
    let text = std::str::from_utf8(bytes).map_err(|error| error.to_string())?;
    ExtensionProviders::parse(text)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use karst_core::{Index, MeshConfig};

    use super::{MeshConfigFile, parse, read};
    use crate::store::Store;

    const GOOD: &str = "extensionProviders:\n- name: a\n  envoyExtAuthzGrpc:\n    service: a.b.svc.cluster.local\n    port: 9000\n";

    #[test]
    fn the_last_good_one_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mesh");
        let store = Arc::new(Store::new(Index::new(MeshConfig::default())));
        let usable = || store.index().extension_providers().usable();
        let mut file = MeshConfigFile::open(&path, store.clone());
        assert_eq!(usable(), 0);
        for (text, expected) in [
            (GOOD, 1),
            ("extensionProviders: {", 1),
            ("[1, 2]", 1),
            ("accessLogFile: /dev/stdout", 0),
            (GOOD, 1),
            ("", 0),
        ] {
            std::fs::write(&path, text).unwrap();
            file.look(&read(&path));
            assert_eq!(usable(), expected, "{text:?}");
        }
        std::fs::write(&path, GOOD).unwrap();
        file.look(&read(&path));
        std::fs::remove_file(&path).unwrap();
        file.look(&read(&path));
        assert_eq!(usable(), 1);
    }

    #[test]
    fn faults_name_the_field() {
        let (providers, findings) = parse(GOOD.replace("port", "prt").as_bytes()).unwrap();
        assert_eq!(providers.usable(), 0);
        assert!(
            findings.faults[0].contains("envoyExtAuthzGrpc.prt is not supported"),
            "{findings:?}"
        );
        assert!(parse(b"a: [").is_err());
        assert!(parse(b"\xff").is_err());
    }
}
