//! What a new agent can find out before it asks the running one to hand over: afterwards nobody
//! would serve the node if it failed.

use std::fs::{self, File};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use crate::app::{AppError, io_error};
use crate::config::Config;

/// Whether the agent could begin to serve with this configuration.
///
/// # Errors
/// Names what it could not.
pub fn check(config: &Config) -> Result<(), AppError> {
    let sockets = [
        Some(&*config.admin_socket),
        config.runtime.cni_socket.as_deref(),
    ];
    let dirs = sockets.into_iter().flatten().filter_map(Path::parent);
    for dir in dirs.chain([&*config.state_dir]) {
        writable(dir).map_err(io_error(format!("write into {}", dir.display())))?;
    }
    for address in config.readiness_listen.iter().chain(&config.metrics_listen) {
        usable(*address).map_err(io_error(format!("listen on {address}")))?;
    }
    Ok(())
}

fn writable(dir: &Path) -> io::Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)?;
    // Another agent that looks at the same time may take it away.
    let probe = dir.join(".writable");
    File::create(&probe)?;
    match fs::remove_file(probe) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The running agent has it now, and gives it up.
fn usable(address: SocketAddr) -> io::Result<()> {
    match TcpListener::bind(address) {
        Err(error) if error.kind() != io::ErrorKind::AddrInUse => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::net::TcpListener;

    use super::{usable, writable};

    #[test]
    fn a_directory_that_can_be_written_into_is_left_as_it_was() {
        let dir = tempfile::tempdir().expect("dir");
        let new = dir.path().join("a/b");
        writable(&new).expect("made");
        assert_eq!(fs::read_dir(&new).expect("listed").count(), 0);
        let file = dir.path().join("file");
        fs::write(&file, "").expect("written");
        assert!(writable(&file).is_err());
        assert!(writable(&file.join("below")).is_err());
        fs::create_dir(new.join(".writable")).expect("in the way");
        assert!(writable(&new).is_err());
    }

    #[test]
    fn an_address_is_usable_unless_it_is_nobodys() {
        let taken = TcpListener::bind("127.0.0.1:0").expect("port");
        usable(taken.local_addr().expect("address")).expect("somebody gives it up");
        usable("127.0.0.1:0".parse().expect("address")).expect("free");
        // Documentation's own, never this machine's.
        let nobodys = "192.0.2.1:1".parse().expect("address");
        usable(nobodys).expect_err("not here");
    }
}
