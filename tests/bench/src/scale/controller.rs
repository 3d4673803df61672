//! The controller's process.

use std::{
    fs,
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use karst_harness::Running;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

/// The first look at all objects must be done within this time.
const START_LIMIT: Duration = Duration::from_secs(300);

/// The histogram of times from change to acknowledgement.
const PROPAGATION: &str = "karst_controller_xds_propagation_seconds_bucket{";

/// A running controller.
pub struct Controller {
    running: Running,
    pid: u32,
    pub address: SocketAddr,
    pub roots: PathBuf,
    pub start_seconds: f64,
    metrics: SocketAddr,
}

/// Its own counts of how long changes took: upper bounds in seconds, each with the number of all that were not above it.
pub struct Propagation(Vec<(f64, f64)>);

impl Controller {
    /// Starts it with an API server, and waits until it serves.
    pub async fn start(folder: &Path, api: SocketAddr) -> Result<Self> {
        let kubeconfig = folder.join("kubeconfig");
        fs::write(
            &kubeconfig,
            format!(
                r#"{{"apiVersion":"v1","kind":"Config","current-context":"bench","clusters":[{{"name":"bench","cluster":{{"server":"http://{api}"}}}}],"users":[{{"name":"bench","user":{{}}}}],"contexts":[{{"name":"bench","context":{{"cluster":"bench","user":"bench"}}}}]}}"#
            ),
        )?;
        let (address, metrics) = (free_address()?, free_address()?);
        let roots = folder.join("roots.pem");
        let program = program()?;
        let log = fs::File::create(folder.join("controller.log"))?;
        let begun = Instant::now();
        let child = Command::new(&program)
            .env_clear()
            .env("KARST_LOG", "warn")
            .args(["--source", "kube", "--serving-name", "localhost"])
            .args(["--listen", &address.to_string()])
            .args(["--metrics-listen", &metrics.to_string()])
            .arg("--kubeconfig")
            .arg(&kubeconfig)
            .arg("--root-cert-out")
            .arg(&roots)
            .stdin(Stdio::null())
            .stderr(log.try_clone()?)
            .stdout(log)
            .spawn()
            .with_context(|| format!("starting {}", program.display()))?;
        let pid = child.id();
        let mut controller = Self {
            running: Running::new(child),
            pid,
            address,
            roots,
            start_seconds: 0.0,
            metrics,
        };
        while controller.get("/healthz/ready").await.is_err() {
            let said = || fs::read_to_string(folder.join("controller.log")).unwrap_or_default();
            if let Some(status) = controller.running.child()?.try_wait()? {
                anyhow::bail!("the controller ended ({status}): {}", said());
            }
            ensure!(
                begun.elapsed() < START_LIMIT,
                "the controller is not ready: {}",
                said()
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        controller.start_seconds = begun.elapsed().as_secs_f64();
        Ok(controller)
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// The most memory that it has had in RAM so far, in bytes.
    pub fn resident_max(&self) -> Result<u64> {
        let path = format!("/proc/{}/status", self.pid);
        let status = fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let number = line.and_then(|line| line.trim().strip_suffix("kB"));
        let kilobytes = number.and_then(|number| number.trim().parse::<u64>().ok());
        Ok(kilobytes.with_context(|| format!("{path} has no VmHWM"))? * 1024)
    }

    /// What it says of how long changes of addresses have taken so far.
    pub async fn propagation(&self) -> Result<Propagation> {
        Ok(Propagation(read_buckets(&self.get("/metrics").await?)))
    }

    async fn get(&self, path: &str) -> Result<String> {
        let mut tcp = TcpStream::connect(self.metrics).await?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n");
        tcp.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        tcp.read_to_string(&mut answer).await?;
        ensure!(
            answer.starts_with("HTTP/1.1 200"),
            "{path} was answered with {}",
            answer.lines().next().unwrap_or_default()
        );
        Ok(answer)
    }
}

fn read_buckets(metrics: &str) -> Vec<(f64, f64)> {
    let lines = metrics
        .lines()
        .filter(|line| line.starts_with(PROPAGATION) && line.contains("type=\"address\""));
    let bucket = |line: &str| {
        let (labels, count) = line.rsplit_once(' ')?;
        let (_, bound) = labels.split_once("le=\"")?;
        let (bound, _) = bound.split_once('"')?;
        let bound = match bound {
            "+Inf" => f64::INFINITY,
            bound => bound.parse().ok()?,
        };
        Some((bound, count.parse().ok()?))
    };
    lines.filter_map(bucket).collect()
}

impl Propagation {
    /// What has come since.
    pub fn since(self, before: &Self) -> Self {
        let former = |bound: f64| {
            let found = before.0.iter().find(|(own, _)| *own == bound);
            found.map_or(0.0, |(_, count)| *count)
        };
        let all = self.0.iter();
        Self(
            all.map(|(bound, count)| (*bound, count - former(*bound)))
                .collect(),
        )
    }

    /// The bound that so much of the samples was not above, in milliseconds; none without samples, or beyond the last.
    fn bound_ms(&self, quantile: f64) -> Option<f64> {
        let all = self
            .0
            .last()
            .map(|(_, count)| *count)
            .filter(|all| *all > 0.0)?;
        let found = self.0.iter().find(|(_, count)| *count >= all * quantile);
        found
            .map(|(bound, _)| bound * 1e3)
            .filter(|bound| bound.is_finite())
    }
}

impl From<Propagation> for super::report::Bounds {
    fn from(counts: Propagation) -> Self {
        Self {
            p50_at_most_ms: counts.bound_ms(0.5),
            p99_at_most_ms: counts.bound_ms(0.99),
            samples: counts.0.last().map_or(0.0, |(_, count)| *count),
        }
    }
}

/// An address that nobody listened on a moment ago.
fn free_address() -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").context("finding a free port")?;
    Ok(listener.local_addr()?)
}

/// The controller's program: in the folder that is said, or beside this one.
fn program() -> Result<PathBuf> {
    let folder = match std::env::var_os("KARST_BIN_DIR") {
        Some(folder) => PathBuf::from(folder),
        None => {
            let own = std::env::current_exe().context("finding this program")?;
            own.parent()
                .context("this program is in no folder")?
                .to_owned()
        }
    };
    let program = folder.join("karst-controller");
    ensure!(
        program.exists(),
        "{} is not there: build it, or set KARST_BIN_DIR",
        program.display()
    );
    Ok(program)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_those_of_addresses_since_the_last_look() {
        let text = |low: u32, all: u32| {
            format!(
                "{PROPAGATION}le=\"0.1\",type=\"address\"}} {low}\n{PROPAGATION}le=\"+Inf\",type=\"address\"}} {all}\n\
                 {PROPAGATION}le=\"0.1\",type=\"node_pod\"}} 7\nother 3\n"
            )
        };
        let before = Propagation(read_buckets(&text(1, 10)));
        let now = Propagation(read_buckets(&text(100, 110)));
        let counts = now.since(&before);
        assert_eq!(counts.0, [(0.1, 99.0), (f64::INFINITY, 100.0)]);
        assert_eq!(counts.bound_ms(0.99), Some(100.0));
        assert_eq!(counts.bound_ms(0.999), None);
        assert_eq!(Propagation(Vec::new()).bound_ms(0.5), None);
    }
}
