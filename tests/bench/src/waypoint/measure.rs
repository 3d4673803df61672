//! The rows: every combination of protocol, body, routes and connections.

use anyhow::{Result, ensure};

/// Streams at a time on a connection of HTTP/2 that is alone.
const STREAMS_ALONE: u32 = 32;

/// Requests a second for the latencies: far below what either proxy carries, on a machine that is busy
/// too, so that the queue is short and latency is that of the way. A connection that is alone carries
/// one request at a time.
const RATE_ALONE: u32 = 250;
const RATE: u32 = 500;

/// The rows of memory alone.
const IDLE: [&str; 2] = ["idle", "idle_c1000"];

/// What is spoken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Protocol {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2 without TLS of the application's.
    Http2,
}

impl Protocol {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Http1, Self::Http2];

    /// As in names of rows and services.
    pub fn name(self) -> &'static str {
        match self {
            Self::Http1 => "http1",
            Self::Http2 => "http2",
        }
    }
}

/// What is answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Body {
    /// 1 KiB.
    Small,
    /// 64 KiB.
    Large,
}

impl Body {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Small, Self::Large];

    /// As in names of rows and paths.
    pub fn name(self) -> &'static str {
        match self {
            Self::Small => "1k",
            Self::Large => "64k",
        }
    }
}

/// How many routes the service has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Routes {
    /// One, for all paths.
    One,
    /// A hundred, each for a path of its own.
    Hundred,
}

impl Routes {
    /// Both.
    pub const ALL: [Self; 2] = [Self::One, Self::Hundred];

    /// As in names of rows and services.
    pub fn name(self) -> &'static str {
        match self {
            Self::One => "r1",
            Self::Hundred => "r100",
        }
    }

    /// The paths that routes match by prefix, in their order.
    pub fn prefixes(self) -> Vec<String> {
        match self {
            Self::One => vec!["/".to_owned()],
            Self::Hundred => (1..=100).map(|number| format!("/r{number:03}")).collect(),
        }
    }
}

/// One row.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Measure {
    /// What is spoken.
    pub protocol: Protocol,
    /// What is answered.
    pub body: Body,
    /// How many routes there are.
    pub routes: Routes,
    /// How many connections the client opens.
    pub connections: u32,
}

impl Measure {
    /// The plainest one.
    pub const FIRST: Self = Self {
        protocol: Protocol::Http1,
        body: Body::Small,
        routes: Routes::One,
        connections: 1,
    };

    /// The row's name in the JSON.
    pub fn name(&self) -> String {
        format!(
            "{}_{}_{}_c{}",
            self.protocol.name(),
            self.body.name(),
            self.routes.name(),
            self.connections
        )
    }

    /// Requests a second of the latencies.
    pub fn rate(&self) -> u32 {
        if self.connections == 1 {
            RATE_ALONE
        } else {
            RATE
        }
    }

    /// Requests at a time on each connection of HTTP/2: many where there is one connection, since that
    /// is what it is for.
    pub fn streams(&self) -> u32 {
        if self.connections == 1 {
            STREAMS_ALONE
        } else {
            1
        }
    }
}

/// Every row, in the order of the report.
pub fn all() -> Vec<Measure> {
    let mut all = Vec::new();
    for protocol in Protocol::ALL {
        for body in Body::ALL {
            for routes in Routes::ALL {
                for connections in [1, 1000] {
                    all.push(Measure {
                        protocol,
                        body,
                        routes,
                        connections,
                    });
                }
            }
        }
    }
    all
}

/// The rows whose names are or contain one of `only`; all of them without any.
pub fn selected(only: &[String]) -> Result<Vec<Measure>> {
    let selected: Vec<Measure> = all()
        .into_iter()
        .filter(|measure| is_selected(&measure.name(), only))
        .collect();
    ensure!(
        !selected.is_empty() || !selected_idle(only).is_empty(),
        "no row has {} in its name; names are like {} and {}",
        only.join(" or "),
        Measure::FIRST.name(),
        IDLE[0]
    );
    Ok(selected)
}

/// The same for rows of memory alone.
pub fn selected_idle(only: &[String]) -> Vec<&'static str> {
    IDLE.into_iter()
        .filter(|name| is_selected(name, only))
        .collect()
}

/// A whole name stands for its row alone, though others may contain it.
fn is_selected(name: &str, only: &[String]) -> bool {
    let is_name = |part: &str| IDLE.contains(&part) || all().iter().any(|row| row.name() == part);
    only.is_empty()
        || only
            .iter()
            .any(|part| name == part || !is_name(part) && name.contains(part.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(only: &[&str]) -> Vec<String> {
        let only: Vec<String> = only.iter().map(ToString::to_string).collect();
        let rows = selected(&only).unwrap();
        rows.iter().map(Measure::name).collect()
    }

    #[test]
    fn every_combination_is_a_row() {
        let names = names(&[]);
        assert_eq!(names.len(), 16);
        assert_eq!(names[0], Measure::FIRST.name());
        assert_eq!(names[0], "http1_1k_r1_c1");
        assert_eq!(names[15], "http2_64k_r100_c1000");
    }

    #[test]
    fn rows_are_selected_by_parts_of_their_names() {
        assert_eq!(names(&["http2_64k_r1_"]).len(), 2);
        assert_eq!(names(&["http1_1k_r1_c1"]), ["http1_1k_r1_c1"]);
        assert_eq!(names(&["http1_1k_r1_c1", "r100_c1000"]).len(), 5);
        assert!(names(&["idle_"]).is_empty());
        assert_eq!(selected_idle(&["idl".to_owned()]), IDLE);
        assert_eq!(selected_idle(&["idle".to_owned()]), ["idle"]);
        assert!(selected(&["quic".to_owned()]).is_err());
    }

    #[test]
    fn routes_are_matched_in_the_order_of_their_names() {
        let prefixes = Routes::Hundred.prefixes();
        assert_eq!(prefixes.len(), 100);
        assert!(prefixes.is_sorted());
        assert_eq!(prefixes[99], "/r100");
    }
}
