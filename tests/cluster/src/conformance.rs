//! The Gateway API's own conformance suite, the definitions of its kinds, and the servers that it tests with.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use rcgen::generate_simple_self_signed;

use crate::Image;
use crate::binaries::{COREDNS, Program, Source, module_dir};

/// The module that asks for the suite, in this crate's folder.
const MODULE: &str = "conformance";

/// The API's module; its definitions of kinds come from its sources.
const API: &str = "sigs.k8s.io/gateway-api";

const SUITE: Program = Program {
    name: "conformance",
    module: MODULE,
    package: ".",
    source: Source::Tests,
    takes: "a few minutes, once",
};

const ECHO_BASIC: Program = Program {
    name: "echo-basic",
    module: MODULE,
    package: "sigs.k8s.io/gateway-api/conformance/echo-basic",
    source: Source::Main,
    takes: "a minute, once",
};

const ECHO_SERVER: Program = Program {
    name: "echo-server",
    module: "echo",
    package: "istio.io/istio/pkg/test/echo/cmd/server",
    source: Source::Main,
    takes: "a few minutes, once",
};

const ECHO_CLIENT: Program = Program {
    name: "echo-client",
    module: "echo",
    package: "istio.io/istio/pkg/test/echo/cmd/client",
    source: Source::Main,
    takes: "a minute, once",
};

/// Where the suite's manifests expect images.
const REGISTRY: &str = "registry.k8s.io/gateway-api";

/// Tags under which the suite's manifests ask for the server of Gateway tests.
const BASIC_TAGS: [&str; 3] = ["v1.5.1", "v1.6.0-dev.2", "v1.6.0-dev.3"];

/// The tag under which they ask for the server and client of mesh tests.
const ADVANCED_TAG: &str = "v1.5.1";

/// The name server that the suite starts for tests of UDP, and waits for with any others.
const DNS_IMAGE: &str = "registry.k8s.io/coredns/coredns:v1.12.2";

/// Which definitions of kinds are installed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Channel {
    /// What is stable.
    Standard,
    /// That, and what is not yet: fields such as retries of an HTTPRoute.
    Experimental,
}

impl Channel {
    fn folder(self) -> &'static str {
        match self {
            Self::Standard => "standard",
            Self::Experimental => "experimental",
        }
    }
}

/// The suite, ready to run.
#[derive(Debug)]
pub struct Suite {
    /// The program; its flags are upstream's.
    pub program: PathBuf,
    echo_basic: PathBuf,
    echo_server: PathBuf,
    echo_client: PathBuf,
    coredns: PathBuf,
}

impl Suite {
    /// Builds what is not there yet; `say` is told what is done.
    ///
    /// # Errors
    /// There is no Go compiler or no module proxy, or something does not build.
    pub fn ensure(say: &dyn Fn(&str)) -> Result<Self> {
        Ok(Self {
            program: SUITE.ensure(say)?,
            echo_basic: ECHO_BASIC.ensure(say)?,
            echo_server: ECHO_SERVER.ensure(say)?,
            echo_client: ECHO_CLIENT.ensure(say)?,
            coredns: COREDNS.ensure(say)?,
        })
    }

    /// The images that the suite's manifests name, made of upstream's programs.
    ///
    /// # Errors
    /// A program cannot be read.
    pub fn images(&self) -> Result<Vec<Image>> {
        let mut images = Vec::new();
        for tag in BASIC_TAGS {
            let reference = format!("{REGISTRY}/echo-basic:{tag}");
            let image = Image::new(&reference, &["/echo-basic"]);
            images.push(image.program("/echo-basic", &self.echo_basic)?);
        }
        let certificate = generate_simple_self_signed(["echo".to_owned()])?;
        let reference = format!("{REGISTRY}/echo-advanced:{ADVANCED_TAG}");
        let image = Image::new(&reference, &["/server"])
            .program("/server", &self.echo_server)?
            // The suite runs it by this name inside the pods.
            .program("/client", &self.echo_client)?
            .file("/cert.crt", 0o644, certificate.cert.pem())
            .file("/cert.key", 0o644, certificate.signing_key.serialize_pem());
        images.push(image);
        let image = Image::new(DNS_IMAGE, &["/coredns"]);
        images.push(image.program("/coredns", &self.coredns)?);
        Ok(images)
    }

    /// Files with the definitions of the API's kinds, from the module itself.
    ///
    /// # Errors
    /// The module's sources cannot be had.
    pub fn definitions(channel: Channel) -> Result<Vec<PathBuf>> {
        let folder = module_dir(MODULE, API)?
            .join("config/crd")
            .join(channel.folder());
        let entries =
            fs::read_dir(&folder).with_context(|| format!("reading {}", folder.display()))?;
        let mut files = Vec::new();
        for entry in entries {
            let path = entry?.path();
            let name = path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            if name.ends_with(".yaml") && name != "kustomization.yaml" {
                files.push(path);
            }
        }
        ensure!(
            !files.is_empty(),
            "{} holds no definitions",
            folder.display()
        );
        files.sort();
        Ok(files)
    }
}
