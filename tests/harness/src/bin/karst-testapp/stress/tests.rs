//! The test can fail: a relay between both sides that loses, doubles, changes or swaps bytes, or makes an end of a reset.

use std::net::Ipv4Addr;

use rand::rngs::StdRng;
use tokio::io::{AsyncRead, AsyncWrite};

use super::plan::Order;
use super::stream::{Bytes, Checker, Sender};
use super::*;

/// What a relay does to the bytes from client to server.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    None,
    Change,
    Lose,
    Double,
    Swap,
    /// The end comes early.
    Cut,
    /// What the server sends is changed, not what the client does.
    ChangeAnswer,
}

/// The piece that a fault is about, bytes.
const PIECE: usize = 100;

fn spoil(fault: Fault, mut bytes: Vec<u8>) -> Vec<u8> {
    let at = bytes.len() / 2;
    let pieces = bytes.get(at..at + 2 * PIECE).map(<[u8]>::to_vec);
    let Some(pieces) = pieces else { return bytes };
    let (one, two) = pieces.split_at(PIECE);
    match fault {
        Fault::None => {}
        Fault::Change | Fault::ChangeAnswer => bytes[at] ^= 1,
        Fault::Lose => drop(bytes.drain(at..at + PIECE)),
        Fault::Double => drop(bytes.splice(at..at, one.iter().copied())),
        Fault::Swap => {
            let swapped = [two, one].concat();
            bytes[at..at + 2 * PIECE].copy_from_slice(&swapped);
        }
        Fault::Cut => bytes.truncate(at),
    }
    bytes
}

/// Passes everything on at its end, spoiled; a reset as an end.
async fn pass(
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
    fault: Fault,
) {
    let mut bytes = Vec::new();
    let mut block = vec![0; 64 << 10];
    while let Ok(read @ 1..) = from.read(&mut block).await {
        bytes.extend_from_slice(&block[..read]);
    }
    let _ = to.write_all(&spoil(fault, bytes)).await;
    let _ = to.shutdown().await;
}

/// Runs a plan through a relay; what the client and the server say of it.
async fn through(fault: Fault, plan: Plan) -> (Result<Outcome>, Result<Outcome>) {
    let listen = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
    let (server_at, relay_at) = (listen().await.unwrap(), listen().await.unwrap());
    let (behind, front) = (
        server_at.local_addr().unwrap(),
        relay_at.local_addr().unwrap(),
    );
    tokio::spawn(async move {
        let (mut near, _) = relay_at.accept().await.unwrap();
        let mut far = TcpStream::connect(behind).await.unwrap();
        let (mut near_read, mut near_write) = near.split();
        let (mut far_read, mut far_write) = far.split();
        let (up, down) = if fault == Fault::ChangeAnswer {
            (Fault::None, fault)
        } else {
            (fault, Fault::None)
        };
        tokio::join!(
            pass(&mut near_read, &mut far_write, up),
            pass(&mut far_read, &mut near_write, down)
        );
    });
    let served = tokio::spawn(async move {
        let (stream, _) = server_at.accept().await.unwrap();
        server(stream, plan.server_first).await
    });
    let mut random = StdRng::seed_from_u64(7);
    let stream = TcpStream::connect(front).await.unwrap();
    let client = client(stream, &plan, &mut random);
    let client = timeout(LIMIT, client).await.unwrap();
    (client, served.await.unwrap())
}

fn plan() -> Plan {
    Plan {
        seed: 5,
        up: 300_000,
        down: 200_000,
        order: Order::AtOnce,
        reset: Reset::Never,
        server_first: false,
    }
}

#[tokio::test]
async fn what_is_passed_on_unchanged_is_whole() {
    for order in [Order::AtOnce, Order::ServerLast] {
        let plan = Plan { order, ..plan() };
        let (client, server) = through(Fault::None, plan).await;
        let (client, server) = (client.unwrap(), server.unwrap());
        assert_eq!((client.side, client.checked), (Side::Whole, plan.down));
        assert_eq!((server.side, server.checked), (Side::Whole, plan.up));
    }
}

#[tokio::test]
async fn every_fault_is_found() {
    for (fault, words) in [
        (Fault::Change, "from nowhere near"),
        (Fault::Lose, "what came belongs to 150096"),
        (Fault::Double, "what came belongs to"),
        (Fault::Swap, "what came belongs to"),
        (Fault::Cut, "an end after"),
    ] {
        let (_, server) = through(fault, plan()).await;
        let error = format!("{:#}", server.expect_err("a fault"));
        assert!(error.contains(words), "{fault:?}: {error}");
    }
    let (client, _) = through(Fault::ChangeAnswer, plan()).await;
    let error = format!("{:#}", client.expect_err("a fault"));
    assert!(error.contains("byte 1000"), "{error}");
}

#[tokio::test]
async fn a_reset_that_looks_like_an_end_is_found() {
    let plan = Plan {
        reset: Reset::ByClient(1000),
        ..plan()
    };
    let (client, server) = through(Fault::None, plan).await;
    assert_eq!(client.unwrap().side, Side::Reset);
    let error = format!("{:#}", server.expect_err("a fault"));
    assert!(error.contains("an end after 1000 of 300000"), "{error}");
}

/// Both sides without anything between them.
async fn directly(plan: Plan, seed: u64) -> (Result<Outcome>, Result<Outcome>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let at = listener.local_addr().unwrap();
    let served = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        server(stream, plan.server_first).await
    });
    let mut random = StdRng::seed_from_u64(seed);
    let stream = TcpStream::connect(at).await.unwrap();
    let client = client(stream, &plan, &mut random);
    let client = timeout(LIMIT, client).await.unwrap();
    (client, served.await.unwrap())
}

#[tokio::test]
async fn plans_by_chance_are_carried_out() {
    let mut random = StdRng::seed_from_u64(3);
    let mut resets = 0;
    for number in 0..100 {
        let plan = Plan::draw(&mut random, 100_000);
        let (client, server) = directly(plan, number).await;
        let client = client.unwrap_or_else(|error| panic!("client: {error:#}: {plan:?}"));
        let server = server.unwrap_or_else(|error| panic!("server: {error:#}"));
        if plan.reset == Reset::Never {
            assert_eq!((client.side, server.side), (Side::Whole, Side::Whole));
            assert_eq!(server.checked, plan.up);
        } else {
            resets += 1;
            assert_eq!(client.side, Side::Reset);
        }
    }
    assert!(resets > 5, "{resets}");
}

#[test]
fn a_failure_is_a_reset_only_if_it_is_one() {
    let error = |kind| anyhow::Error::from(std::io::Error::from(kind)).context("reading");
    let reset = talk::reset_or(error(std::io::ErrorKind::ConnectionReset), Side::Reset);
    assert_eq!(reset.unwrap().side, Side::Reset);
    assert!(talk::reset_or(error(std::io::ErrorKind::UnexpectedEof), Side::Reset).is_err());
    assert!(talk::reset_or(anyhow::anyhow!("wrong"), Side::Reset).is_err());
}

#[test]
fn plans_come_as_they_were_sent() {
    let mut random = StdRng::seed_from_u64(1);
    for _ in 0..1000 {
        let plan = Plan::draw(&mut random, 1 << 23);
        assert_eq!(Plan::from_bytes(&plan.to_bytes()).unwrap(), plan);
        assert!(plan.up <= 1 << 23 && plan.down <= 1 << 23);
    }
    assert!(Plan::from_bytes(&[0; plan::PLAN_BYTES]).is_err());
}

#[test]
fn bytes_do_not_depend_on_how_they_are_taken() {
    let mut whole = vec![0; 10_000];
    Bytes::up(9).fill(0, &mut whole);
    let mut pieces: Vec<&[u8]> = whole.chunks(16).collect();
    pieces.sort_unstable();
    pieces.dedup();
    assert_eq!(pieces.len(), 625, "two places look alike");
    for (from, to) in [
        (0, 10_000),
        (1, 9),
        (7, 8),
        (8, 16),
        (13, 9999),
        (4095, 4100),
        (4099, 8200),
    ] {
        let mut part = vec![0; to - from];
        Bytes::up(9).fill(from as u64, &mut part);
        assert_eq!(part, whole[from..to]);
    }
    let mut other = vec![0; 10_000];
    Bytes::down(9).fill(0, &mut other);
    for (one, other) in whole.chunks(16).zip(other.chunks(16)) {
        assert_ne!(other, one);
    }
}

#[test]
fn a_wrong_or_missing_hash_is_found() {
    let mut sender = Sender::new(Bytes::up(1), 10);
    let mut block = [0; 10];
    let body = sender.next(&mut block).to_vec();
    let hash = sender.hash();
    let check = |bytes: &[u8]| {
        let mut checker = Checker::new(Bytes::up(1), 10);
        checker.take(bytes)?;
        checker.finish()
    };
    let good = [&body[..], &hash[..]].concat();
    check(&good).unwrap();
    assert!(check(&good[..41]).is_err());
    assert!(check(&[&good[..], &[0]].concat()).is_err());
    let mut bad = good;
    bad[41] ^= 1;
    assert!(check(&bad).is_err());
}
