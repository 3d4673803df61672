//! `karst relay`: one connection to this node's agent, over standard input and output.
//!
//! Through the API server a command can be run in the agent's container, and its admin socket cannot be connected
//! to. This is that command: bytes in both directions, which nobody looks at. It ends with its standard input, so
//! that nothing stays in the container when the other end is gone, however that went.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use crate::admin;
use crate::args::NodeArgs;
use crate::failure::Failure;
use crate::inspect::place::Local;

/// Bytes that are passed on at once.
const CHUNK: usize = 32 << 10;

/// Passes on until one side ends.
///
/// # Errors
/// There is no agent here.
pub fn run(args: &NodeArgs) -> Result<String, Failure> {
    let socket = Local::new(args, args.node.clone()).socket()?;
    let agent = UnixStream::connect(&socket);
    let agent = agent.map_err(|error| admin::Source::Agent(socket.clone()).unreachable(error))?;
    let broken = |error: io::Error| Failure::failed("stream_broken", error.to_string());
    let mut to = agent.try_clone().map_err(broken)?;
    std::thread::Builder::new()
        .name("karst-relay".to_owned())
        .spawn(move || {
            // An error is an end too.
            let _ = pass(&mut io::stdin().lock(), &mut to);
            let _ = to.shutdown(Shutdown::Both);
            // The other thread may wait for somebody to read what it writes, who is not there any more.
            std::process::exit(0);
        })
        .map_err(broken)?;
    let mut from = agent;
    // An error is an end too: whoever listened is gone.
    let _ = pass(&mut from, &mut io::stdout().lock());
    Ok(String::new())
}

/// Copies until the end, and keeps nothing back.
fn pass(from: &mut impl Read, to: &mut impl Write) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK];
    loop {
        match from.read(&mut chunk) {
            Ok(0) => return Ok(()),
            Ok(read) => {
                to.write_all(chunk.get(..read).unwrap_or_default())?;
                to.flush()?;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
