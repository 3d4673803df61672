//! Looks at what passes between the nodes: a capture on the bridge that joins them, searched for
//! secrets that the applications exchange.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use karst_harness::{Lab, Running, until};

/// A packet needs a moment from the bridge into the file.
const LIMIT: Duration = Duration::from_secs(10);

/// What a capture starts with, in the byte order of this machine: pcap with microseconds.
const MAGIC: u32 = 0xa1b2_c3d4;
const FILE_HEADER: usize = 24;
const PACKET_HEADER: usize = 16;

/// A running capture of everything on the bridge between the nodes.
pub struct Capture {
    tcpdump: Running,
    path: PathBuf,
}

/// What a capture saw.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Seen {
    /// Packets in all.
    pub packets: usize,
    /// Bytes of the secrets, over all packets.
    pub secret_bytes: usize,
}

impl Capture {
    /// Starts one, and returns when it sees packets.
    pub fn start(lab: &Lab, path: PathBuf) -> Result<Self> {
        let file = path
            .to_str()
            .context("the path of a capture must be text")?;
        let mut command = lab.wire_command(&[
            "tcpdump",
            "--interface=wire0",
            "--immediate-mode",
            "--packet-buffered",
            "--snapshot-length=0",
            "--relinquish-privileges=root",
            "-n",
            "-w",
            file,
        ])?;
        let child = command
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("starting tcpdump")?;
        let mut tcpdump = Running::new(child);
        let stderr = tcpdump
            .child()?
            .stderr
            .take()
            .context("tcpdump has no output")?;
        let mut said = String::new();
        for line in BufReader::new(stderr).lines() {
            let line = line.context("reading what tcpdump says")?;
            if line.contains("listening on") {
                return Ok(Self { tcpdump, path });
            }
            said.push_str(&line);
        }
        bail!("tcpdump did not start: {said}")
    }

    /// Waits until `last` has been on the wire, which everything captured before it then has too,
    /// and ends the capture. Returns what it saw of `secrets`.
    pub fn finish(self, last: &str, secrets: &[&str]) -> Result<Seen> {
        until("the last message to be in the capture", LIMIT, || {
            ensure!(
                seen(&packets(&self.path)?, &[last]).secret_bytes > 0,
                "not yet"
            );
            Ok(())
        })?;
        self.tcpdump.kill()?;
        Ok(seen(&packets(&self.path)?, secrets))
    }
}

/// The packets in a capture file that may still be written to: a last, incomplete one is left out.
fn packets(path: &Path) -> Result<Vec<Vec<u8>>> {
    let bytes = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
    split(&bytes)
}

fn split(bytes: &[u8]) -> Result<Vec<Vec<u8>>> {
    let Some(mut rest) = bytes.get(FILE_HEADER..) else {
        return Ok(Vec::new());
    };
    if number(bytes, 0) != Some(MAGIC) {
        bail!("not a capture file of this machine");
    }
    let mut packets = Vec::new();
    // The captured length is the third number of a packet's header.
    while let Some(length) = number(rest, 8) {
        let end = PACKET_HEADER + length as usize;
        let Some(packet) = rest.get(PACKET_HEADER..end) else {
            break;
        };
        packets.push(packet.to_vec());
        rest = &rest[end..];
    }
    Ok(packets)
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn seen(packets: &[Vec<u8>], secrets: &[&str]) -> Seen {
    let count = |secret: &&str| {
        let found = |packet: &Vec<u8>| {
            packet
                .windows(secret.len())
                .filter(|bytes| *bytes == secret.as_bytes())
                .count()
        };
        packets.iter().map(found).sum::<usize>() * secret.len()
    };
    Seen {
        packets: packets.len(),
        secret_bytes: secrets.iter().map(count).sum(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn capture(packets: &[&[u8]]) -> Vec<u8> {
        let mut bytes = MAGIC.to_ne_bytes().to_vec();
        bytes.resize(FILE_HEADER, 0);
        for packet in packets {
            bytes.extend([0; 8]);
            let length = u32::try_from(packet.len()).unwrap().to_ne_bytes();
            bytes.extend(length);
            bytes.extend(length);
            bytes.extend(*packet);
        }
        bytes
    }

    #[test]
    fn finds_secrets_in_every_packet() {
        let packets = split(&capture(&[b"xx secret yy", b"other", b"secretsecret"])).unwrap();
        assert_eq!(
            seen(&packets, &["secret"]),
            Seen {
                packets: 3,
                secret_bytes: 18
            }
        );
        assert_eq!(
            seen(&packets, &["absent"]),
            Seen {
                packets: 3,
                secret_bytes: 0
            }
        );
    }

    #[test]
    fn a_packet_that_is_still_being_written_is_left_out() {
        let bytes = capture(&[b"whole", b"secret"]);
        assert_eq!(split(&bytes[..bytes.len() - 1]).unwrap().len(), 1);
        assert_eq!(split(&bytes[..10]).unwrap().len(), 0);
    }

    #[test]
    fn another_file_is_refused() {
        assert!(split(&[0; 64]).is_err());
    }
}
