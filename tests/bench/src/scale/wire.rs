//! As much of discovery's messages as counting needs: names, type and nonce, without reading the resources.

use anyhow::{Result, bail};

/// What a response says.
#[derive(Default)]
pub struct Response<'a> {
    pub type_url: &'a [u8],
    pub nonce: &'a [u8],
    /// Whether another part of the same push follows.
    pub is_partial: bool,
    pub resources: u32,
}

/// Reads a response and calls `seen` with the name of each resource, and whether it is gone.
pub fn read<'a>(message: &'a [u8], mut seen: impl FnMut(&'a [u8], bool)) -> Result<Response<'a>> {
    let mut response = Response::default();
    let mut rest = message;
    while let Some((field, value)) = next(&mut rest)? {
        match field {
            1 => response.is_partial = value.last() == Some(&b'+'),
            2 => {
                response.resources += 1;
                let mut resource = value;
                while let Some((field, value)) = next(&mut resource)? {
                    if field == 3 {
                        seen(value, false);
                        break;
                    }
                }
            }
            4 => response.type_url = value,
            5 => response.nonce = value,
            6 => seen(value, true),
            _ => {}
        }
    }
    Ok(response)
}

/// The next field; all of discovery's responses are text or messages.
fn next<'a>(rest: &mut &'a [u8]) -> Result<Option<(u64, &'a [u8])>> {
    if rest.is_empty() {
        return Ok(None);
    }
    let tag = varint(rest)?;
    if tag & 7 != 2 {
        bail!("a field of wire type {} in a response", tag & 7);
    }
    let length = usize::try_from(varint(rest)?)?;
    if length > rest.len() {
        bail!("a response ends within a field");
    }
    let (value, after) = rest.split_at(length);
    *rest = after;
    Ok(Some((tag >> 3, value)))
}

fn varint(rest: &mut &[u8]) -> Result<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let Some((byte, after)) = rest.split_first() else {
            bail!("a response ends within a number");
        };
        *rest = after;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    bail!("a number in a response is too long")
}

#[cfg(test)]
mod tests {
    use karst_api::discovery::{DeltaDiscoveryResponse, Resource};
    use prost::Message as _;

    use super::*;

    #[test]
    fn names_type_and_nonce_are_found() {
        let resource = |name: &str| {
            let (name, version) = (name.to_owned(), "v".repeat(300));
            Resource::pack(name, vec!["alias".to_owned()], version, "t", vec![7; 500])
        };
        let message = DeltaDiscoveryResponse {
            system_version_info: "9+".to_owned(),
            resources: vec![resource("a"), resource("b")],
            type_url: "type".to_owned(),
            nonce: "9".to_owned(),
            removed_resources: vec!["c".to_owned()],
        }
        .encode_to_vec();
        let mut seen = Vec::new();
        let response = read(&message, |name, gone| seen.push((name, gone))).unwrap();
        assert_eq!(seen, [(&b"a"[..], false), (b"b", false), (b"c", true)]);
        assert_eq!(
            (response.type_url, response.nonce),
            (&b"type"[..], &b"9"[..])
        );
        assert!(response.is_partial && response.resources == 2);
        assert!(read(&message[..message.len() - 1], |_, _| {}).is_err());
    }
}
