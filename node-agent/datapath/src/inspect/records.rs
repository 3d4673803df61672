//! Log records of the programs, read from the ring as the programs write them: the length of all,
//! itself included, then fields of a kind, a length and as many bytes, then what was reserved in vain. Records are the kernel side's alone, but a ring that another version
//! wrote may hold anything, so nothing is taken for granted.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::describe::{Fields, MapEntry};
use super::dump::fields;
use crate::sys::ring::Record;

/// Kinds of the fields before the message (`aya_log_common::RecordFieldKind`).
const LEVEL: u8 = 1;
const MODULE: u8 = 2;
const ARGUMENTS: u8 = 5;

/// Kinds of its parts (`aya_log_common::ArgumentKind`), as far as our programs write them.
const HINT: u8 = 0;
const U8: u8 = 6;
const U16: u8 = 7;
const U32: u8 = 8;
const U64: u8 = 9;
const IPV4: u8 = 13;
const IPV6: u8 = 14;
const FOUR_BYTES: u8 = 15;
const SIXTEEN_BYTES: u8 = 17;
const TEXT: u8 = 20;

/// A record, decoded as far as it can be.
pub(super) fn entry(record: &Record) -> MapEntry {
    let value = match &record.bytes {
        None => fields([("state", "not finished, or given up".to_owned())]),
        Some(bytes) => match decode(bytes) {
            Some(decoded) => decoded,
            None => fields([("bytes", hex(bytes))]),
        },
    };
    MapEntry {
        key: fields([("position", record.position.to_string())]),
        value,
    }
}

fn hex(bytes: &[u8]) -> String {
    let hex: Vec<_> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    hex.join(" ")
}

fn decode(bytes: &[u8]) -> Option<Fields> {
    let length = bytes.first_chunk()?;
    let mut bytes = bytes.get(2..u16::from_ne_bytes(*length).into())?;
    let (mut level, mut module, mut message) = (String::new(), String::new(), String::new());
    let mut in_message = false;
    while !bytes.is_empty() {
        let (kind, value, rest) = field(bytes)?;
        bytes = rest;
        if in_message {
            message.push_str(&part(kind, value)?);
            continue;
        }
        match kind {
            LEVEL => level = name_of(*value.first()?).to_owned(),
            MODULE => module = String::from_utf8_lossy(value).into_owned(),
            ARGUMENTS => in_message = true,
            _ => {}
        }
    }
    in_message.then(|| fields([("level", level), ("module", module), ("message", message)]))
}

/// The first field and what follows it.
fn field(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (kind, rest) = bytes.split_first()?;
    let (length, rest) = rest.split_first_chunk()?;
    let (value, rest) = rest.split_at_checked(u16::from_ne_bytes(*length).into())?;
    Some((*kind, value, rest))
}

fn name_of(level: u8) -> &'static str {
    match level {
        1 => "error",
        2 => "warn",
        3 => "info",
        4 => "debug",
        5 => "trace",
        _ => "unknown",
    }
}

fn part(kind: u8, value: &[u8]) -> Option<String> {
    Some(match kind {
        HINT => String::new(),
        TEXT => String::from_utf8_lossy(value).into_owned(),
        U8 => value.first()?.to_string(),
        U16 => u16::from_ne_bytes(value.try_into().ok()?).to_string(),
        U32 => u32::from_ne_bytes(value.try_into().ok()?).to_string(),
        U64 => u64::from_ne_bytes(value.try_into().ok()?).to_string(),
        IPV4 | FOUR_BYTES => Ipv4Addr::from(<[u8; 4]>::try_from(value).ok()?).to_string(),
        IPV6 | SIXTEEN_BYTES => {
            let address = Ipv6Addr::from(<[u8; 16]>::try_from(value).ok()?);
            address.to_canonical().to_string()
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::entry;
    use crate::sys::ring::Record;

    fn field(kind: u8, value: &[u8]) -> Vec<u8> {
        let length = u16::try_from(value.len()).unwrap().to_ne_bytes();
        [&[kind], &length[..], value].concat()
    }

    fn value(bytes: Option<Vec<u8>>) -> Vec<(&'static str, String)> {
        let record = Record { position: 7, bytes };
        entry(&record).value.0
    }

    fn record() -> Vec<u8> {
        let parts = [
            field(0, b"karst"),
            field(1, &[2]),
            field(2, b"karst::connect"),
            field(5, &4_usize.to_ne_bytes()),
            field(20, b"connect to "),
            field(0, &[4]),
            field(
                17,
                &std::net::Ipv4Addr::new(10, 0, 0, 9)
                    .to_ipv6_mapped()
                    .octets(),
            ),
            field(20, b" port "),
            field(7, &80_u16.to_ne_bytes()),
        ];
        framed(&parts.concat())
    }

    fn framed(fields: &[u8]) -> Vec<u8> {
        let length = u16::try_from(fields.len() + 2).unwrap().to_ne_bytes();
        [&length[..], fields, &[0; 40]].concat()
    }

    #[test]
    fn a_record_reads_as_the_program_meant_it() {
        let shown = value(Some(record()));
        let expected = [
            ("level", "warn"),
            ("module", "karst::connect"),
            ("message", "connect to 10.0.0.9 port 80"),
        ];
        assert_eq!(shown, expected.map(|(name, text)| (name, text.to_owned())));
    }

    #[test]
    fn what_is_not_understood_is_shown_as_bytes() {
        assert_eq!(value(Some(vec![1, 2])), [("bytes", "01 02".to_owned())]);
        let strange = framed(&[field(5, &[0; 8]), field(11, &[0; 8])].concat());
        assert_eq!(value(Some(strange))[0].0, "bytes");
        assert_eq!(value(None)[0].0, "state");
        for length in 0..record().len() {
            value(Some(record()[..length].to_vec()));
        }
    }
}
