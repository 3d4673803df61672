use proptest::prelude::*;

use super::{Framing, Malformed, Scanned};

fn scan(text: &str) -> Scanned {
    Framing::default().scan(text.as_bytes())
}

fn refused(text: &str, why: Malformed) {
    match scan(text) {
        Scanned::Refused(_, found) => assert_eq!(found, why, "{text:?}"),
        other => panic!("{text:?}: {other:?}"),
    }
    // However it is cut, the same is found.
    for cut in 1..text.len() {
        let mut framing = Framing::default();
        let (first, second) = text.as_bytes().split_at(cut);
        let found = match framing.scan(first) {
            Scanned::All => framing.scan(second),
            other => other,
        };
        assert!(
            matches!(found, Scanned::Refused(_, found) if found == why),
            "{text:?} cut at {cut}: {found:?}"
        );
    }
}

fn passes(text: &str) {
    assert_eq!(scan(text), Scanned::All, "{text:?}");
    for cut in 1..text.len() {
        let mut framing = Framing::default();
        let (first, second) = text.as_bytes().split_at(cut);
        assert_eq!(framing.scan(first), Scanned::All, "{text:?} cut at {cut}");
        assert_eq!(framing.scan(second), Scanned::All, "{text:?} cut at {cut}");
        assert!(!framing.in_head(), "{text:?} cut at {cut}");
    }
}

#[test]
fn ordinary_requests_pass() {
    passes("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    passes("\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\nGET /b HTTP/1.1\r\nHost: a\r\n\r\n");
    passes("POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\na\nbGET / HTTP/1.1\r\n\r\n");
    passes("POST / HTTP/1.1\r\nContent-Length: 3\r\ncontent-length:3 \r\n\r\n\n\n\n");
    passes(
        "POST / HTTP/1.1\r\ntransfer-encoding: Chunked\r\n\r\n3;x=y\r\n\n\n\n\r\n0A \r\n0123456789\r\n0\r\n\
         t: v\r\n\r\nGET / HTTP/1.1\r\n\r\n",
    );
}

#[test]
fn line_ends_are_crlf() {
    refused("GET / HTTP/1.1\nHost: a\r\n\r\n", Malformed::BareLineFeed);
    refused("GET / HTTP/1.1\r\nHost: a\n\r\n", Malformed::BareLineFeed);
    refused("GET / HTTP/1.1\r\nHost: a\r\n\n", Malformed::BareLineFeed);
    refused("\nGET / HTTP/1.1\r\n\r\n", Malformed::BareLineFeed);
    let chunked = "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n";
    refused(
        &format!("{chunked}3\nabc\r\n0\r\n\r\n"),
        Malformed::BareLineFeed,
    );
    refused(
        &format!("{chunked}3;a\nabc\r\n0\r\n\r\n"),
        Malformed::BareLineFeed,
    );
    refused(
        &format!("{chunked}0\r\na: b\n\r\n"),
        Malformed::BareLineFeed,
    );
}

#[test]
fn no_line_is_folded() {
    refused(
        "GET / HTTP/1.1\r\nA: b\r\n c\r\n\r\n",
        Malformed::FoldedLine,
    );
    refused("GET / HTTP/1.1\r\n\tA: b\r\n\r\n", Malformed::FoldedLine);
    refused(
        "POST / HTTP/1.1\r\nTransfer-Encoding:\r\n chunked\r\n\r\n",
        Malformed::TransferEncoding,
    );
}

#[test]
fn a_request_has_one_framing() {
    let both = ["Content-Length: 3", "Transfer-Encoding: chunked"];
    for [one, two] in [both, [both[1], both[0]]] {
        refused(
            &format!("POST / HTTP/1.1\r\n{one}\r\n{two}\r\n\r\n"),
            Malformed::TwoFramings,
        );
    }
    for length in ["", "+3", "-3", "3, 3", "0x3", "3 3", "99999999999999999999"] {
        refused(
            &format!("POST / HTTP/1.1\r\nContent-Length: {length}\r\n\r\n"),
            Malformed::ContentLength,
        );
    }
    refused(
        "POST / HTTP/1.1\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\n",
        Malformed::ContentLength,
    );
    for encoding in [
        "gzip",
        "gzip, chunked",
        "chunked, chunked",
        "identity",
        "\u{b}chunked",
        "xchunked",
    ] {
        refused(
            &format!("POST / HTTP/1.1\r\nTransfer-Encoding: {encoding}\r\n\r\n"),
            Malformed::TransferEncoding,
        );
    }
    refused(
        "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
        Malformed::TransferEncoding,
    );
}

#[test]
fn chunks_are_well_formed() {
    for chunk in [
        "x\r\n",
        "\r\n",
        " 3\r\n",
        "3x\r\n",
        "3\rabc",
        "3\r\nabcd\r\n",
        "11112222333344445\r\n",
    ] {
        refused(
            &format!("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n{chunk}"),
            Malformed::Chunk,
        );
    }
}

#[test]
fn what_follows_an_upgrade_is_left_alone() {
    let upgrade = "GET / HTTP/1.1\r\nUpgrade: websocket\r\n\r\n";
    let mut framing = Framing::default();
    assert_eq!(
        framing.scan(format!("{upgrade}\n").as_bytes()),
        Scanned::Opaque(upgrade.len())
    );
    framing.resume();
    assert_eq!(framing.scan(b"GET / HTTP/1.1\r\n\r\n"), Scanned::All);
    passes("POST / HTTP/1.1\r\nUpgrade: h2c\r\nContent-Length: 1\r\n\r\n\nGET / HTTP/1.1\r\n\r\n");
}

#[test]
fn a_head_under_way_is_known() {
    let mut framing = Framing::default();
    for (bytes, in_head) in [
        ("G", true),
        ("ET / HTTP/1.1\r\n", true),
        ("a: b\r", true),
        ("\n\r\n", false),
    ] {
        assert_eq!(framing.scan(bytes.as_bytes()), Scanned::All);
        assert_eq!(framing.in_head(), in_head, "{bytes:?}");
    }
}

#[test]
fn long_lines_are_not_kept() {
    let mut framing = Framing::default();
    assert_eq!(framing.scan(b"GET / HTTP/1.1\r\nCookie: "), Scanned::All);
    for _ in 0..1000 {
        assert_eq!(framing.scan(&[b'a'; 100]), Scanned::All);
    }
    assert!(framing.carry.capacity() < 4096);
    assert_eq!(
        framing.scan(b"\r\nContent-Length: 1\r\n\r\n\n"),
        Scanned::All
    );
    assert!(!framing.in_head());
}

proptest! {
    #[test]
    fn cutting_changes_nothing(bytes in proptest::collection::vec(any::<u8>(), 0..200), cut in 0_usize..200) {
        let whole = Framing::default().scan(&bytes);
        let (first, second) = bytes.split_at(cut.min(bytes.len()));
        let mut framing = Framing::default();
        let pieces = match framing.scan(first) {
            Scanned::All => match framing.scan(second) {
                Scanned::Refused(at, why) => Scanned::Refused(at + first.len(), why),
                Scanned::Opaque(at) => Scanned::Opaque(at + first.len()),
                other => other,
            },
            other => other,
        };
        prop_assert_eq!(whole, pieces);
    }
}
