//! A service behind a waypoint, and what tests ask of it.

use std::process::Output;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use karst_harness::{LabOptions, Mesh, until};
use serde_json::Value;

use crate::World;

/// How long configuration may take from a manifest to the proxies.
const IN_FORCE: Duration = Duration::from_secs(20);

/// The address of the lab's controller in manifests.
const CONTROLLER: &str = "$(LAB_CONTROLLER)";

/// The pod that asks.
pub const CLIENT: &str = "shop/client";

/// The waypoint's pod.
pub const WAYPOINT: &str = "shop/waypoint";

/// The shop of `shop.yaml`, in a [`World`] of its own.
pub struct Shop {
    /// The world around it.
    pub world: World,
}

impl Shop {
    /// Opens it: everything runs and the waypoint answers for `web`.
    pub fn open(tag: &str) -> Result<Self> {
        Self::open_with(tag, Vec::new())
    }

    /// The same, with more arguments for the controller.
    pub fn open_with(tag: &str, controller_args: Vec<String>) -> Result<Self> {
        let world = World::up_with(tag, Mesh::On, |options| LabOptions {
            controller_args,
            ..options
        })?;
        Self::open_in(world, CONTROLLER)
    }

    /// The same in a world that there is, with a waypoint that has its controller at that address.
    pub fn open_in(world: World, controller: &str) -> Result<Self> {
        world
            .lab
            .apply(&include_str!("shop.yaml").replace(CONTROLLER, controller))?;
        world.lab.wait_enrolled(CLIENT)?;
        let shop = Self { world };
        until("the waypoint to answer", IN_FORCE, || {
            let answer = shop.get("web:80", &[])?;
            // It adds where the request came from; an agent alone changes nothing.
            ensure!(
                answer["page"]["headers"]["x-forwarded-for"].is_string(),
                "{answer}"
            );
            Ok(())
        })?;
        Ok(shop)
    }

    /// `karst inspect WORDS` of the waypoint, from inside of its namespace.
    pub fn inspect_waypoint(&self, words: &[&str]) -> Result<Output> {
        let lab = &self.world.lab;
        let karst = lab.inspect_command("node1", &[])?;
        let karst = karst.get_program().to_str().context("a path")?.to_owned();
        let place = ["--waypoint-address", "127.0.0.1:15000"];
        let argv = [&[karst.as_str(), "inspect"], words, &place].concat();
        lab.exec(WAYPOINT, &argv)
    }

    /// Asks from the client for a page.
    pub fn get(&self, target: &str, more: &[&str]) -> Result<Value> {
        self.world
            .app_ok(CLIENT, &[&["http", target], more].concat())
    }

    /// The same; the answer may be an error of HTTP's.
    pub fn ask(&self, target: &str, more: &[&str]) -> Result<Value> {
        self.world.app(CLIENT, &[&["http", target], more].concat())
    }

    /// Puts load on a target and gives what came back.
    pub fn load(&self, target: &str, more: &[&str]) -> Result<Value> {
        self.world.app(CLIENT, &[&["load", target], more].concat())
    }

    /// Applies routes and waits until `check` is content.
    pub fn apply(&self, routes: &str, check: impl Fn() -> Result<()>) -> Result<()> {
        self.world.lab.apply(routes)?;
        until("the routes to be in force", IN_FORCE, check)
    }

    /// Which version answers a request with these options.
    pub fn version(&self, target: &str, more: &[&str]) -> Result<String> {
        let answer = self.get(target, more)?;
        let version = answer["page"]["app_version"].as_str();
        Ok(version.context("no page of the shop's")?.to_owned())
    }
}
