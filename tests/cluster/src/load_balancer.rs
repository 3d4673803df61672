//! Addresses for Services of type LoadBalancer, given as a cloud's controller gives them. kube-proxy does the
//! rest: the nodes take what comes for such an address to the Service's pods.

use std::collections::BTreeMap;
use std::io::Read;
use std::net::Ipv4Addr;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde_json::{Deserializer, Value, json};

use crate::cluster::Cluster;

/// The last numbers of the addresses given, of the range that every host has a route for.
const NUMBERS: std::ops::RangeInclusive<u8> = 1..=199;

/// The wait before Services are watched again after the watch ended, which the API server does at times.
const AGAIN: Duration = Duration::from_secs(1);

/// Gives Services of type LoadBalancer their addresses until it is dropped.
#[derive(Debug)]
pub struct LoadBalancer {
    watch: Arc<Mutex<Watch>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
enum Watch {
    Between,
    Runs(Child),
    Over,
}

impl LoadBalancer {
    /// Begins. A Service that asks for an address (`loadBalancerIP`) gets that one or none.
    ///
    /// # Errors
    /// There is no such cluster.
    pub fn start(cluster: &Cluster) -> Result<Self> {
        let cluster = Cluster::attach(&cluster.name())?;
        let watch = Arc::new(Mutex::new(Watch::Between));
        let shared = Arc::clone(&watch);
        let thread = thread::spawn(move || {
            let mut given = BTreeMap::new();
            while !matches!(*lock(&shared), Watch::Over) {
                if let Err(error) = follow(&cluster, &shared, &mut given) {
                    eprintln!("load balancer: {error:#}");
                }
                thread::sleep(AGAIN);
            }
        });
        Ok(Self {
            watch,
            thread: Some(thread),
        })
    }

    /// An address that some Service may ask for.
    pub fn usable() -> Ipv4Addr {
        address(*NUMBERS.end())
    }

    /// An address that none can have, though it looks like any other.
    pub fn unusable() -> Ipv4Addr {
        address(NUMBERS.end() + 1)
    }
}

impl Drop for LoadBalancer {
    fn drop(&mut self) {
        let watch = std::mem::replace(&mut *lock(&self.watch), Watch::Over);
        if let Watch::Runs(child) = watch {
            end(child);
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn lock(watch: &Mutex<Watch>) -> std::sync::MutexGuard<'_, Watch> {
    watch.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Ends kubectl, which a helper started that is in the same group.
fn end(mut child: Child) {
    if let Ok(group) = i32::try_from(child.id()) {
        // It may have ended by itself.
        let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
    }
    let _ = child.wait();
}

fn address(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 251, 0, number)
}

/// Watches all Services until the watch ends.
fn follow(
    cluster: &Cluster,
    watch: &Mutex<Watch>,
    given: &mut BTreeMap<String, Ipv4Addr>,
) -> Result<()> {
    let mut command = cluster.kubectl_command()?;
    command
        .args(["get", "services", "-A", "-o", "json"])
        .args(["--watch", "--output-watch-events"])
        .stdout(Stdio::piped())
        .process_group(0);
    let events = {
        let mut watch = lock(watch);
        if matches!(*watch, Watch::Over) {
            return Ok(());
        }
        let mut child = command.spawn().context("watching Services")?;
        let events = child.stdout.take().context("kubectl has no output")?;
        *watch = Watch::Runs(child);
        events
    };
    let ended = serve(cluster, events, given);
    let mut watch = lock(watch);
    if let Watch::Runs(child) = std::mem::replace(&mut *watch, Watch::Over) {
        *watch = Watch::Between;
        end(child);
    }
    ended
}

fn serve(
    cluster: &Cluster,
    events: impl Read,
    given: &mut BTreeMap<String, Ipv4Addr>,
) -> Result<()> {
    for event in Deserializer::from_reader(events).into_iter::<Value>() {
        let event = event.context("reading what kubectl says of Services")?;
        let service = &event["object"];
        let text = |path: &str| service.pointer(path).and_then(Value::as_str);
        let (Some(namespace), Some(name)) = (text("/metadata/namespace"), text("/metadata/name"))
        else {
            continue;
        };
        let key = format!("{namespace}/{name}");
        if event["type"] == "DELETED" || text("/spec/type") != Some("LoadBalancer") {
            given.remove(&key);
            continue;
        }
        let chosen = choose(given, &key, text("/spec/loadBalancerIP"));
        let ingress = chosen.map_or(json!([]), |ip| json!([{"ip": ip, "ipMode": "VIP"}]));
        let former = &service["status"]["loadBalancer"]["ingress"];
        if *former == ingress || former.is_null() && chosen.is_none() {
            continue;
        }
        let patch = json!({"status": {"loadBalancer": {"ingress": ingress}}}).to_string();
        let target = ["patch", "service", name, "-n", namespace];
        let how = ["--subresource=status", "--type=merge", "-p", &patch];
        if let Err(error) = cluster.kubectl(&[&target[..], &how].concat())
            // It is gone again, which the next event says.
            && !format!("{error:#}").contains("NotFound")
        {
            eprintln!("load balancer: {key}: {error:#}");
        }
    }
    Ok(())
}

/// The address of the Service called `key`: what it asks for, else what it has, else the first free one.
fn choose(
    given: &mut BTreeMap<String, Ipv4Addr>,
    key: &str,
    asked: Option<&str>,
) -> Option<Ipv4Addr> {
    let has = given.remove(key);
    let mut pool = NUMBERS.map(address);
    let is_free = |ip: &Ipv4Addr| given.values().all(|other| other != ip);
    let chosen = match asked {
        Some(asked) => pool.find(|ip| ip.to_string() == asked).filter(is_free),
        None => has.or_else(|| pool.find(is_free)),
    };
    given.extend(chosen.map(|ip| (key.to_owned(), ip)));
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::paths::BALANCED;

    #[test]
    fn addresses_are_of_the_range_that_has_routes() {
        assert_eq!(BALANCED, format!("{}/24", address(0)));
    }

    #[test]
    fn services_get_what_they_ask_for_or_what_is_free() {
        let mut given = BTreeMap::new();
        let first = choose(&mut given, "a/a", None).unwrap();
        let second = choose(&mut given, "a/b", None).unwrap();
        assert_ne!(first, second);
        // Another event of the same Service changes nothing.
        assert_eq!(choose(&mut given, "a/a", None), Some(first));
        // What another one has, and what nobody can have, is not given.
        assert_eq!(choose(&mut given, "a/c", Some(&first.to_string())), None);
        let unusable = LoadBalancer::unusable().to_string();
        assert_eq!(choose(&mut given, "a/c", Some(&unusable)), None);
        let usable = LoadBalancer::usable();
        let asked = usable.to_string();
        assert_eq!(choose(&mut given, "a/c", Some(&asked)), Some(usable));
        // It is free again when its Service asks for another.
        assert_eq!(choose(&mut given, "a/c", Some(&unusable)), None);
        assert_eq!(choose(&mut given, "a/d", Some(&asked)), Some(usable));
    }
}
