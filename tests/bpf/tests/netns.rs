//! Entering a network namespace and coming back.

use std::net::TcpListener;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use karst_bpf_tests::{Host, World};
use karst_datapath::netns::Netns;

#[test]
fn a_socket_stays_where_it_was_made() -> Result<()> {
    let world = World::new()?;
    let pod = world.netns(Host::A)?;
    let home = Netns::current()?.id();
    let listener = pod.run(|| TcpListener::bind((Host::A.v4(), 0)))??;
    ensure!(Netns::current()?.id() == home, "the thread came back");
    ensure!(
        TcpListener::bind((Host::A.v4(), 0)).is_err(),
        "that address is not here"
    );
    ensure!(listener.local_addr()?.ip() == Host::A.v4());
    ensure!(pod.run(Netns::current)??.id() == pod.id());
    Ok(())
}

#[test]
fn a_panic_inside_comes_back_too() -> Result<()> {
    let world = World::new()?;
    let pod = world.netns(Host::A)?;
    let home = Netns::current()?.id();
    let outcome = catch_unwind(AssertUnwindSafe(|| pod.run(|| panic!("inside"))));
    ensure!(outcome.is_err());
    ensure!(Netns::current()?.id() == home);
    Ok(())
}

#[test]
fn cookies_name_namespaces() -> Result<()> {
    let world = World::new()?;
    let (a, b) = (world.netns(Host::A)?, world.netns(Host::B)?);
    ensure!(a.cookie()? != b.cookie()?);
    ensure!(a.cookie()? == world.netns(Host::A)?.cookie()?);
    ensure!(a.id() != b.id());
    Ok(())
}

#[test]
fn other_files_are_refused() -> Result<()> {
    for path in ["/proc/self/ns/mnt", "/etc/hostname", "/run"] {
        let error = Netns::open(Path::new(path)).err().context(path)?;
        ensure!(
            error.kind() == std::io::ErrorKind::InvalidInput,
            "{path}: {error}"
        );
    }
    Ok(())
}
