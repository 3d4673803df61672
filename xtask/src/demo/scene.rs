//! The pods of the demo, and what their unmodified clients do: curl asks nginx, redis-cli asks redis.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    net::IpAddr,
    path::{Path, PathBuf},
    process::{ChildStdin, ChildStdout, Stdio},
};

use anyhow::{Context, Result, bail};
use karst_harness::{Lab, LabStatus, Running};

const MANIFESTS: &str = include_str!("mesh.yaml");
const NGINX: &str = include_str!("nginx.conf");

/// The namespace that gets the label.
pub const SHOP: &str = "shop";
/// Its pods.
pub const SHOP_PODS: &[&str] = &["shop/client", "shop/web", "shop/cache"];
/// The client that is enrolled later, and the one that never is.
pub const CLIENT: &str = "shop/client";
pub const PLAIN_CLIENT: &str = "plain/client";

/// Seconds after which a client gives up; a refusal comes at once.
const PATIENCE: &str = "5";

/// Names of what the pods talk to, by address.
pub struct Scene<'a> {
    pub lab: &'a Lab,
    pub client: IpAddr,
    pub web: IpAddr,
    pub cache: IpAddr,
    pub plain_client: IpAddr,
    pub plain_web: IpAddr,
}

/// Writes the demo's files into `folder` and returns the manifests that refer to them.
pub fn write_files(folder: &Path) -> Result<String> {
    fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
    let conf: PathBuf = folder.join("nginx.conf");
    fs::write(&conf, NGINX).with_context(|| format!("writing {}", conf.display()))?;
    let folder = folder
        .to_str()
        .context("the path of the demo's files must be text")?;
    Ok(MANIFESTS.replace("{DIR}", folder))
}

impl<'a> Scene<'a> {
    /// Looks the pods' addresses up in the running lab.
    pub fn new(lab: &'a Lab) -> Result<Self> {
        let status = lab.status()?;
        let address = |pod: &str| address(&status, pod);
        Ok(Self {
            lab,
            client: address(CLIENT)?,
            web: address("shop/web")?,
            cache: address("shop/cache")?,
            plain_client: address(PLAIN_CLIENT)?,
            plain_web: address("plain/web")?,
        })
    }

    /// Asks an nginx with curl, a secret in the request that comes back in the answer.
    pub fn http(&self, from: &str, host: &str, secret: &str) -> Result<Http> {
        let header = format!("x-secret: {secret}");
        let url = format!("http://{host}/");
        let output = self.lab.exec(
            from,
            &[
                "curl",
                "-sS",
                "--noproxy",
                "*",
                "--max-time",
                PATIENCE,
                "-H",
                &header,
                "-w",
                "%{remote_ip}",
                &url,
            ],
        )?;
        let exit = output.status.code().unwrap_or(-1);
        let out = String::from_utf8_lossy(&output.stdout).into_owned();
        let mut parts = out.split_whitespace();
        let (client, echoed, dialled) = (parts.next(), parts.next(), parts.next());
        Ok(Http {
            exit,
            complete: echoed == Some(secret),
            client_seen: client.unwrap_or_default().to_owned(),
            peer_seen: dialled.unwrap_or_default().to_owned(),
        })
    }

    /// Stores a secret in redis and reads it back with redis-cli; returns whether it came back, and
    /// the client address that redis saw.
    pub fn redis(&self, from: &str, host: &str, secret: &str) -> Result<(bool, String)> {
        let ask = |words: &[&str]| {
            let argv = [&["timeout", PATIENCE, "redis-cli", "-h", host], words].concat();
            self.lab.exec_ok(from, &argv)
        };
        let stored = ask(&["SET", "secret", secret])?;
        let read = ask(&["GET", "secret"])?;
        let info = ask(&["CLIENT", "INFO"])?;
        Ok((
            stored.trim() == "OK" && read.trim() == secret,
            client_address(&info).unwrap_or_default(),
        ))
    }

    /// Opens a connection to redis that stays open.
    pub fn conversation(&self, from: &str, host: &str) -> Result<Conversation> {
        let mut command = self
            .lab
            .pod_command(from, &["timeout", "60", "redis-cli", "-h", host])?;
        let child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("starting redis-cli")?;
        let mut program = Running::new(child);
        let child = program.child()?;
        let stdin = child.stdin.take().context("redis-cli has no input")?;
        let stdout = BufReader::new(child.stdout.take().context("redis-cli has no output")?);
        Ok(Conversation {
            stdin,
            stdout,
            _program: program,
        })
    }
}

/// How a request of curl's went.
pub struct Http {
    /// curl's exit status.
    exit: i32,
    /// Whether the whole answer came.
    complete: bool,
    /// The client's address as nginx saw it.
    pub client_seen: String,
    /// The server's address as curl's socket says it.
    pub peer_seen: String,
}

impl Http {
    /// In one word.
    pub fn outcome(&self) -> String {
        match self.exit {
            0 if self.complete => "ok".to_owned(),
            0 => "wrong answer".to_owned(),
            // curl(1): 7 is a failed connect, and a refusal is the only one that comes before the
            // time limit; 28 is the time limit.
            7 => "refused".to_owned(),
            28 => "timeout".to_owned(),
            52 | 56 => "reset".to_owned(),
            other => format!("curl exit {other}"),
        }
    }
}

/// A redis-cli that waits for commands on one connection.
pub struct Conversation {
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    /// Held so that it ends with the conversation.
    _program: Running,
}

impl Conversation {
    /// Says a command and returns the one line of the answer.
    pub fn ask(&mut self, command: &str) -> Result<String> {
        writeln!(self.stdin, "{command}")
            .with_context(|| format!("telling redis-cli {command}"))?;
        self.stdin.flush().context("telling redis-cli")?;
        let mut line = String::new();
        self.stdout
            .read_line(&mut line)
            .context("hearing redis-cli")?;
        Ok(line.trim().to_owned())
    }
}

/// The first address of `namespace/name`.
fn address(status: &LabStatus, name: &str) -> Result<IpAddr> {
    let found = status
        .pods
        .iter()
        .find(|pod| format!("{}/{}", pod.namespace, pod.name) == name);
    match found.and_then(|pod| pod.addresses.first()) {
        Some(address) => Ok(*address),
        None => bail!("pod {name} has no address"),
    }
}

/// The host in the `addr=` of redis's `CLIENT INFO`.
fn client_address(info: &str) -> Option<String> {
    let address = info
        .split_whitespace()
        .find_map(|word| word.strip_prefix("addr="))?;
    Some(address.rsplit_once(':')?.0.to_owned())
}

/// Sixteen bytes of the kernel's randomness, as hex: no packet has them by chance.
pub fn secret() -> Result<String> {
    let uuid = fs::read_to_string("/proc/sys/kernel/random/uuid").context("reading randomness")?;
    Ok(format!("secret-{}", uuid.trim().replace('-', "")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_client_that_redis_saw() {
        let info = "id=3 addr=10.0.1.2:4711 laddr=10.0.2.3:6379 fd=8";
        assert_eq!(client_address(info).as_deref(), Some("10.0.1.2"));
        assert_eq!(client_address("id=3"), None);
    }

    #[test]
    fn secrets_differ() {
        assert_ne!(secret().unwrap(), secret().unwrap());
    }

    #[test]
    fn an_answer_that_lacks_the_secret_is_not_ok() {
        let http = |exit, complete| Http {
            exit,
            complete,
            client_seen: String::new(),
            peer_seen: String::new(),
        };
        assert_eq!(http(0, true).outcome(), "ok");
        assert_eq!(http(0, false).outcome(), "wrong answer");
        assert_eq!(http(7, false).outcome(), "refused");
        assert_eq!(http(28, false).outcome(), "timeout");
    }

    #[test]
    fn manifests_name_the_folder_of_the_files() {
        let folder = tempfile::tempdir().unwrap();
        let manifests = write_files(folder.path()).unwrap();
        assert!(manifests.contains(&format!("{}/nginx.conf", folder.path().display())));
        assert!(!manifests.contains("{DIR}"));
        assert!(folder.path().join("nginx.conf").is_file());
    }
}
