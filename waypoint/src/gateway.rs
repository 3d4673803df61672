//! Connections to a gateway's ports: from anywhere, with no identity.
//!
//! The listeners of a port differ in protocol or host name. On a port of HTTP the host of each request decides
//! (that is `http`'s business); where TLS is spoken the SNI does, before anything else is looked at: the listener
//! with the most specific host name that fits takes the connection, and no other one sees anything of it.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use bytes::BytesMut;
use karst_api::waypoint::ListenerProtocol;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;

use crate::access_log::{ConnectionRecord, Reporter};
use crate::authz::scope::{Hello, Place, Scope};
use crate::carrier::{Carrier, Prefixed};
use crate::client::Client;
use crate::client_hello::{self, Alert, HANDSHAKE};
use crate::http::{self as http_server, Entry, GatewayTls};
use crate::reason::Reason;
use crate::sockets;
use crate::stream::{self, Way};
use crate::table::{GatewayListener, Routes, SocketFrontend};
use crate::worker::Worker;

/// Serves one connection to `port`.
pub async fn serve(worker: Rc<Worker>, io: TcpStream, from: SocketAddr, port: u16) {
    let mut client = Client::new(from, None);
    client.destination = io.local_addr().ok().map(sockets::canonical);
    let target = match client.destination {
        Some(address) => address.to_string(),
        None => format!(":{port}"),
    };
    let record = ConnectionRecord::new(Reporter::Gateway, client, target);
    let socket = worker.shared.tables.load().sockets.get(&port).cloned();
    // The port was closed while the connection waited in its queue.
    let Some(socket) = socket else {
        return stream::refuse(&worker, io, record, Reason::NoListener, None);
    };
    match Kind::of(&socket) {
        Kind::Http => {
            let entry = Entry::Gateway { port, tls: None };
            let http = Rc::clone(&worker.http);
            http_server::serve(io, http, entry, record.client, worker.drain()).await;
        }
        Kind::Tls => serve_tls(worker, io, &socket, record).await,
        Kind::Tcp(listener) => {
            let scope = scope(port, &listener, Hello::Unread);
            serve_bytes(worker, io, &listener, scope, record).await;
        }
        Kind::Nothing => stream::refuse(&worker, io, record, Reason::NoListener, None),
    }
}

/// What is done with the connections of a port.
enum Kind {
    Http,
    Tls,
    Tcp(Arc<GatewayListener>),
    Nothing,
}

impl Kind {
    /// By the first listener: the controller accepts on one port only what can be told apart.
    fn of(socket: &SocketFrontend) -> Self {
        let Some(listener) = socket.listeners.first() else {
            return Self::Nothing;
        };
        match listener.protocol {
            ListenerProtocol::ListenerHttp => Self::Http,
            ListenerProtocol::ListenerHttps
            | ListenerProtocol::ListenerTlsPassthrough
            | ListenerProtocol::ListenerTlsTerminate => Self::Tls,
            ListenerProtocol::ListenerTcp => Self::Tcp(Arc::clone(listener)),
            ListenerProtocol::ListenerUnspecified => Self::Nothing,
        }
    }
}

/// The listener for a server name: they are sorted with the most specific host name first.
fn listener_for<'a>(
    socket: &'a SocketFrontend,
    server_name: Option<&str>,
) -> Option<&'a Arc<GatewayListener>> {
    socket
        .listeners
        .iter()
        .find(|listener| match (&listener.hostname, server_name) {
            (None, _) => true,
            (Some(hostname), Some(name)) => hostname.matches(name),
            (Some(_), None) => false,
        })
}

async fn serve_tls(
    worker: Rc<Worker>,
    mut io: TcpStream,
    socket: &SocketFrontend,
    mut record: ConnectionRecord,
) {
    let mut read = BytesMut::new();
    match client_hello::read(&mut io, &mut read).await {
        Ok(hello) => record.sni = hello.server_name,
        Err(error) => {
            let (reason, text) = (error.reason(), error.to_string());
            return stream::refuse(&worker, io, record, reason, Some(text));
        }
    }
    let Some(listener) = listener_for(socket, record.sni.as_deref()) else {
        let only_https = socket
            .listeners
            .iter()
            .all(|listener| listener.protocol == ListenerProtocol::ListenerHttps);
        if only_https {
            return turn_away(&worker, io, record, Reason::NoListener).await;
        }
        // A port of TLSRoutes is closed without a word, as the Gateway API's conformance tests ask: an alert
        // would be this proxy's, where all others are the applications'.
        return stream::refuse(&worker, io, record, Reason::NoListener, None);
    };
    record.listener = Some(Arc::from(listener.name.as_str()));
    if listener.protocol == ListenerProtocol::ListenerTlsPassthrough {
        let io = Prefixed::new(read.freeze(), io);
        let scope = scope(socket.port, listener, Hello::Read);
        return serve_bytes(worker, io, listener, scope, record).await;
    }
    let Some(config) = &listener.tls else {
        return turn_away(&worker, io, record, Reason::NoServerCertificate).await;
    };
    let acceptor = TlsAcceptor::from(Arc::clone(config));
    // Boxed: the handshake's state is several KiB that the connection shall not keep.
    let accepting = Box::pin(acceptor.accept(Prefixed::new(read.freeze(), io)));
    let io = match tokio::time::timeout(HANDSHAKE, accepting).await {
        Ok(Ok(io)) => io,
        Ok(Err(error)) => {
            record.reason = Some(Reason::TlsFailed);
            record.error = Some(error.to_string());
            return worker.recorder.connection_refused(record);
        }
        Err(_) => {
            record.reason = Some(Reason::FirstBytesTimeout);
            return worker.recorder.connection_refused(record);
        }
    };
    if listener.protocol == ListenerProtocol::ListenerTlsTerminate {
        let scope = scope(socket.port, listener, Hello::Read);
        return serve_bytes(worker, io, listener, scope, record).await;
    }
    let tls = GatewayTls {
        listener: listener.name.clone(),
        server_name: record.sni.as_deref().map(Arc::from),
    };
    let entry = Entry::Gateway {
        port: socket.port,
        tls: Some(tls),
    };
    let http = Rc::clone(&worker.http);
    http_server::serve(io, http, entry, record.client, worker.drain()).await;
}

/// Tells a client of TLS why it is not served.
async fn turn_away(
    worker: &Worker,
    mut io: TcpStream,
    mut record: ConnectionRecord,
    reason: Reason,
) {
    let alert = match reason {
        Reason::NoListener => Alert::UnrecognizedName,
        _ => Alert::InternalError,
    };
    alert.send(&mut io).await;
    record.reason = Some(reason);
    worker.recorder.connection_refused(record);
}

/// What decides about connections of bytes to a listener.
fn scope(port: u16, listener: &GatewayListener, hello: Hello) -> Scope {
    let name = Arc::from(listener.name.as_str());
    Scope {
        place: Place::Listener { port, name },
        hello,
    }
}

/// Passes bytes on, by the listener's routes.
async fn serve_bytes<C: Carrier>(
    worker: Rc<Worker>,
    io: C,
    listener: &GatewayListener,
    scope: Scope,
    mut record: ConnectionRecord,
) {
    record.listener = Some(Arc::from(listener.name.as_str()));
    let routed = match &listener.routes {
        Routes::L4(router) => router.route(record.sni.as_deref()).map(Arc::clone),
        // Routes of HTTP are for requests; on this listener there are none.
        Routes::None | Routes::Http(_) => Err(crate::route::NoRoute::NotFound),
    };
    match routed {
        Ok(rule) => stream::serve(worker, io, Way::Rule(rule), scope, record).await,
        Err(error) => {
            let (reason, text) = (Reason::Other(error.reason()), error.to_string());
            stream::refuse(&worker, io, record, reason, Some(text));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use karst_api::waypoint::ListenerProtocol;

    use super::listener_for;
    use crate::authz::Authorization;
    use crate::table::{GatewayListener, Hostname, Routes, SocketFrontend};

    fn listener(name: &str, hostname: Option<&str>) -> Arc<GatewayListener> {
        let hostname = hostname.map(|text| Hostname::parse(text).expect("valid"));
        Arc::new(GatewayListener {
            name: name.to_owned(),
            hostname,
            protocol: ListenerProtocol::ListenerHttps,
            tls: None,
            routes: Routes::None,
            authorization: Authorization::default(),
            authentication: Default::default(),
            reporting: None,
        })
    }

    #[test]
    fn the_most_specific_listener_takes_the_connection() {
        let socket = SocketFrontend {
            port: 443,
            listeners: vec![
                listener("exact", Some("a.example.com")),
                listener("wide", Some("*.example.com")),
            ],
        };
        let check = |name: Option<&str>, expected: Option<&str>| {
            let found = listener_for(&socket, name).map(|listener| listener.name.as_str());
            assert_eq!(found, expected, "{name:?}");
        };
        check(Some("a.example.com"), Some("exact"));
        check(Some("b.example.com"), Some("wide"));
        check(Some("x.a.example.com"), Some("wide"));
        check(Some("example.com"), None);
        check(None, None);
    }
}
