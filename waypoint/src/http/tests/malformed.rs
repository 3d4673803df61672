use std::cell::Cell;
use std::rc::Rc;

use super::support::{Proxy, echo, run, text};

/// The proxy refuses a request without asking the application, and closes.
#[track_caller]
fn refused(request: &str, status: &str, reason: &str) {
    let (request, status, reason) = (request.to_owned(), status.to_owned(), reason.to_owned());
    run(async move {
        let seen = Rc::new(Cell::new(0));
        let count = Rc::clone(&seen);
        let proxy = Proxy::of(move |_| {
            count.set(count.get() + 1);
            text("seen")
        })
        .await;
        let answer = proxy.raw(&request).await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{request:?}: {answer}"
        );
        assert_eq!(
            answer.matches("HTTP/1.1").count(),
            1,
            "{request:?}: {answer}"
        );
        assert_eq!(seen.get(), 0, "{request:?}");
        proxy.refused(&reason, 1).await;
    });
}

#[test]
fn lengths_that_conflict() {
    refused(
        "POST / HTTP/1.1\r\nHost: shop\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
        "400",
        "http_bad_content_length",
    );
    refused(
        "POST / HTTP/1.1\r\nHost: shop\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "400",
        "http_length_and_encoding",
    );
    refused(
        "POST / HTTP/1.1\r\nHost: shop\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n",
        "400",
        "http_length_and_encoding",
    );
    refused(
        "POST / HTTP/1.1\r\nHost: shop\r\nContent-Length: +3\r\n\r\nabc",
        "400",
        "http_bad_content_length",
    );
}

#[test]
fn encodings_that_others_may_not_know() {
    for encoding in [
        "gzip, chunked",
        "xchunked",
        "chunked, identity",
        "chunked;q=1",
    ] {
        refused(
            &format!(
                "POST / HTTP/1.1\r\nHost: shop\r\nTransfer-Encoding: {encoding}\r\n\r\n0\r\n\r\n"
            ),
            "400",
            "http_bad_transfer_encoding",
        );
    }
    refused(
        "POST / HTTP/1.0\r\nHost: shop\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "400",
        "http_malformed",
    );
}

#[test]
fn lines_that_end_otherwise() {
    refused(
        "GET / HTTP/1.1\nHost: shop\n\n",
        "400",
        "http_bare_line_feed",
    );
    refused(
        "GET / HTTP/1.1\r\nHost: shop\nA: b\r\n\r\n",
        "400",
        "http_bare_line_feed",
    );
    refused(
        "GET / HTTP/1.1\r\nHost: shop\r\nA: b\rC: d\r\n\r\n",
        "400",
        "http_malformed",
    );
}

#[test]
fn lines_that_are_folded() {
    refused(
        "GET / HTTP/1.1\r\nHost: shop\r\nA: b\r\n c\r\n\r\n",
        "400",
        "http_folded_header",
    );
    refused(
        "GET / HTTP/1.1\r\n Host: shop\r\n\r\n",
        "400",
        "http_folded_header",
    );
}

#[test]
fn heads_that_are_no_heads() {
    for request in [
        "GET / HTTP/1.1\r\nHost : shop\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: shop\r\nA\0: b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: shop\r\nA: b\0\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: shop\r\n: b\r\n\r\n",
        "G T / HTTP/1.1\r\nHost: shop\r\n\r\n",
        "GET  / HTTP/1.1\r\nHost: shop\r\n\r\n",
        "GET / HTTP/1.2\r\nHost: shop\r\n\r\n",
        "GET / HTTP/3.0\r\nHost: shop\r\n\r\n",
    ] {
        refused(request, "400", "http_malformed");
    }
}

#[test]
fn heads_that_are_too_large() {
    let value = "v".repeat(100 << 10);
    let request = format!("GET / HTTP/1.1\r\nHost: shop\r\nA: {value}\r\n\r\n");
    refused(&request, "431", "http_head_too_large");
    let many = "A: b\r\n".repeat(200);
    let request = format!("GET / HTTP/1.1\r\nHost: shop\r\n{many}\r\n");
    refused(&request, "431", "http_head_too_large");
}

#[test]
fn hosts_that_are_missing_or_many() {
    refused("GET / HTTP/1.1\r\n\r\n", "400", "http_no_host");
    refused(
        "GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",
        "400",
        "http_several_hosts",
    );
    refused(
        "GET http://a/ HTTP/1.1\r\nHost: b\r\n\r\n",
        "400",
        "http_host_mismatch",
    );
    refused(
        "GET / HTTP/1.1\r\nHost: a@b\r\n\r\n",
        "400",
        "http_bad_host",
    );
    refused(
        "GET /%zz HTTP/1.1\r\nHost: a\r\n\r\n",
        "400",
        "http_bad_path",
    );
    refused(
        "GET /../a HTTP/1.1\r\nHost: a\r\n\r\n",
        "400",
        "http_bad_path",
    );
}

#[test]
fn what_is_refused_behind_a_good_request_does_not_touch_it() {
    run(async {
        let proxy = Proxy::of(echo).await;
        let good = "POST /good HTTP/1.1\r\nHost: shop\r\nContent-Length: 2\r\n\r\n\n\n";
        let bad = "GET /bad HTTP/1.1\r\nHost: shop\nA: b\r\n\r\n";
        let answer = proxy.raw(format!("{good}{bad}")).await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        assert!(answer.contains("POST /good"), "{answer}");
        assert!(answer.contains("HTTP/1.1 400 "), "{answer}");
        assert!(!answer.contains("/bad"), "{answer}");
    });
}

#[test]
fn a_body_that_is_malformed_reaches_nobody_whole() {
    run(async {
        let seen = Rc::new(Cell::new(None));
        let whole = Rc::clone(&seen);
        let proxy = Proxy::of(move |request: http::Request<hyper::body::Incoming>| {
            let whole = Rc::clone(&whole);
            async move {
                let body = http_body_util::BodyExt::collect(request.into_body()).await;
                whole.set(Some(body.is_ok()));
                text("done").await
            }
        })
        .await;
        let head = "POST / HTTP/1.1\r\nHost: shop\r\nTransfer-Encoding: chunked\r\n\r\n";
        for body in [
            "3\r\nabcX0\r\n\r\n",
            "3\nabc\r\n0\r\n\r\n",
            "3\r\nabc\r\n0\r\nt: v\n\r\n",
        ] {
            seen.set(None);
            let answer = proxy.raw(format!("{head}{body}")).await;
            assert!(!answer.contains("200 OK"), "{body:?}: {answer}");
            assert_ne!(seen.get(), Some(true), "{body:?}");
        }
    });
}
