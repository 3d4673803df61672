//! Arguments of the commands that follow what happens now.

use std::time::Duration;

use clap::{Args, ValueEnum};
use karst_process::tap::query::{DEFAULT_RATE, MAX_RATE};

use super::{Kubernetes, NodeArgs};

/// Who is asked. Nothing named: the agent of this node.
#[derive(Clone, Debug, Default, Args)]
pub struct Sources {
    /// The node, or a waypoint beyond the API server.
    #[command(flatten)]
    pub place: NodeArgs,
    /// Admin port of a waypoint or gateway, such as 127.0.0.1:15000 inside its pod or of a port-forward,
    /// instead of the agent. Repeatable.
    #[arg(long = "waypoint", value_name = "ADDRESS", help_heading = "Place")]
    pub waypoints: Vec<String>,
    /// The agent too, where --waypoint names proxies; --node and --pod say so already.
    #[arg(long, requires = "waypoints", help_heading = "Place")]
    pub agent: bool,
    /// Cluster.
    #[command(flatten)]
    pub kubernetes: Kubernetes,
}

/// Which events. Of one option several are alternatives; all options must hold.
#[derive(Clone, Debug, Default, Args)]
pub struct Selectors {
    /// Client: NAMESPACE, NAMESPACE/POD, an address, or an identity (spiffe://…).
    #[arg(long, value_name = "PLACE", help_heading = "Selectors")]
    pub from: Vec<String>,
    /// Server: the same, or svc/NAME.NAMESPACE[:PORT].
    #[arg(long, value_name = "PLACE", help_heading = "Selectors")]
    pub to: Vec<String>,
    /// allowed, denied or failed.
    #[arg(long, value_name = "VERDICT", help_heading = "Selectors")]
    pub verdict: Vec<String>,
    /// AuthorizationPolicy that refused, would on trial, or notes: NAME or NAMESPACE/NAME.
    #[arg(long, value_name = "NAME", help_heading = "Selectors")]
    pub policy: Vec<String>,
    /// Method of requests (waypoints).
    #[arg(long, value_name = "METHOD", help_heading = "Selectors")]
    pub method: Vec<String>,
    /// Beginning of the path of requests (waypoints).
    #[arg(long, value_name = "PREFIX", help_heading = "Selectors")]
    pub path: Vec<String>,
    /// Status of answers: 404, 5xx or 400-499 (waypoints).
    #[arg(long, value_name = "STATUS", help_heading = "Selectors")]
    pub status: Vec<String>,
    /// Only what took so long: 250ms, 2s, 1m.
    #[arg(long, value_name = "DURATION", value_parser = duration, help_heading = "Selectors")]
    pub min_duration: Option<Duration>,
    /// outbound or inbound (agents).
    #[arg(long, value_name = "DIRECTION", help_heading = "Selectors")]
    pub direction: Vec<String>,
}

const TAP_HELP: &str = "\
What is selected is chosen in the data plane, and costs nothing there before and after. At most 8
clients follow one agent or waypoint at once. What comes faster than --max-rps, or than it is read,
is left out and counted; that is said on standard error. A stream ends after 10 minutes, or --for.

A name in NAMESPACE/NAME may end in *. Paths are shown without query, and no headers.

  karst tap                                        connections of this node's pods
  karst tap --from shop --verdict denied           what policies refuse to a namespace
  karst tap --to svc/web.shop:80 -n 20 -o json
  karst tap --waypoint 127.0.0.1:15000 --status 5xx --path /api --min-duration 200ms
  karst tap --node worker-1 --verdict denied       from anywhere, through the API server
  karst tap --pod shop/waypoint-6f7c --status 5xx  of a waypoint; of another pod's node else

Exit codes: 0 the count or the time is reached, or interrupted; 1 it refuses, or the stream broke
off; 2 wrong usage; 3 no such node or pod; 7 nobody answers; 8 an older version.";

/// Arguments of `karst tap`.
#[derive(Clone, Debug, Args)]
#[command(after_help = TAP_HELP)]
pub struct Tap {
    /// Selectors.
    #[command(flatten)]
    pub selectors: Selectors,
    /// Kinds of events; all unless said.
    #[arg(long, value_name = "KIND", value_enum, help_heading = "Selectors")]
    pub event: Vec<EventKind>,
    /// Live connections first (agents).
    #[arg(long, help_heading = "Selectors")]
    pub live: bool,
    /// End after so many events.
    #[arg(short = 'n', long, value_name = "NUMBER", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,
    /// End after this time, at most 24h.
    #[arg(long = "for", value_name = "DURATION", value_parser = duration)]
    pub limit: Option<Duration>,
    /// Most events a second, of each source.
    #[arg(long, value_name = "NUMBER", default_value_t = DEFAULT_RATE,
          value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_RATE)))]
    pub max_rps: u32,
    /// Form of the output.
    #[arg(short, long, value_enum, default_value_t)]
    pub output: TapOutput,
    /// Sources.
    #[command(flatten)]
    pub sources: Sources,
}

/// Kinds of events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum EventKind {
    /// A connection is established.
    Opened,
    /// A connection has ended.
    Closed,
    /// A connection was refused.
    Refused,
    /// A request has its answer.
    Request,
}

/// Forms of output of `karst tap`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum TapOutput {
    /// A line for people.
    #[default]
    Text,
    /// A line for people, with addresses, identities and what was negotiated.
    Wide,
    /// An object a line, as in controller/cli/schemas/tap.json.
    Json,
}

const TOP_HELP: &str = "\
Keys: q quit, p pause, s and S the column to sort by, r the other way round, / a filter (enter: keep,
esc: none), arrows, PgUp, PgDn, Home and End move. Rates and times are those of the last 10 seconds.

Connections come from agents, requests from waypoints (--waypoint, or --pod of one). What is not on the screen for
want of width, least important first, is in a wider terminal. Without a terminal, and with --once,
it is a table without colours, every --interval.

Exit codes: 0 ended as asked; 1 it refuses, or a stream broke off; 2 wrong usage; 3 no such node or
pod; 7 nobody answers; 8 an older version.";

/// Arguments of `karst top`.
#[derive(Clone, Debug, Args)]
#[command(after_help = TOP_HELP)]
pub struct Top {
    /// Selectors.
    #[command(flatten)]
    pub selectors: Selectors,
    /// One table, after one interval.
    #[arg(long)]
    pub once: bool,
    /// Time between two pictures.
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = interval)]
    pub interval: Duration,
    /// Sources.
    #[command(flatten)]
    pub sources: Sources,
}

/// `250ms`, `2s`, `5m`, `1h`.
fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number
        .parse()
        .map_err(|_| "write it as 250ms, 2s, 5m or 1h".to_owned())?;
    let millis = match unit {
        "ms" => Some(number),
        "s" => number.checked_mul(1000),
        "m" => number.checked_mul(60_000),
        "h" => number.checked_mul(3_600_000),
        _ => return Err("write it as 250ms, 2s, 5m or 1h".to_owned()),
    };
    match millis {
        Some(millis @ 1..=86_400_000) => Ok(Duration::from_millis(millis)),
        _ => Err("it is 1ms to 24h".to_owned()),
    }
}

fn interval(text: &str) -> Result<Duration, String> {
    let interval = duration(text)?;
    let fits = (Duration::from_millis(200)..=Duration::from_secs(60)).contains(&interval);
    fits.then_some(interval)
        .ok_or_else(|| "it is 200ms to 1m".to_owned())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use clap::Parser;

    use super::duration;
    use crate::args::{Cli, Command};

    #[test]
    fn durations_have_a_unit() {
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(duration("2m"), Ok(Duration::from_secs(120)));
        for wrong in [
            "",
            "5",
            "s",
            "0s",
            "25h",
            "1.5s",
            "-1s",
            "99999999999999999999s",
        ] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_tap_is_described() {
        let args =
            "karst tap --from shop --from mesh/a --to svc/web.shop:80 -n 3 --for 10s -o json";
        let parsed = Cli::try_parse_from(args.split(' '))
            .expect("parses")
            .command;
        let Command::Tap(tap) = parsed else {
            panic!("not tap");
        };
        assert_eq!(tap.selectors.from, ["shop", "mesh/a"]);
        assert_eq!(
            (tap.count, tap.limit),
            (Some(3), Some(Duration::from_secs(10)))
        );
        for wrong in [
            "karst tap -n 0",
            "karst tap --max-rps 0",
            "karst tap --agent",
            "karst top --interval 1ms",
        ] {
            assert!(Cli::try_parse_from(wrong.split(' ')).is_err(), "{wrong}");
        }
    }
}
