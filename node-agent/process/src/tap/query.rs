//! What a subscriber asks for, as the query of a URL.
//!
//! | parameter | |
//! |---|---|
//! | `from`, `to`, `verdict`, `policy`, `method`, `path`, `status`, `min_duration_ms`, `direction`, `event` | see [`Selector`]; several of one name are alternatives, of different names conditions that all hold |
//! | `live` | `true`: what is there already comes first, as `connection_live` |
//! | `max_rps` | events a second, [`DEFAULT_RATE`] unless said, at most [`MAX_RATE`] |
//! | `limit_s` | seconds after which the stream ends, [`DEFAULT_LIMIT`] unless said, at most [`MAX_LIMIT`] |

use std::time::Duration;

use super::selector::{Invalid, Selector};

/// Events a second that a subscriber gets unless it asks for more or fewer: more than a person reads, and less than
/// what the formatting of costs a data plane one part in a hundred.
pub const DEFAULT_RATE: u32 = 100;

/// Most events a second for one subscriber: formatting them is some percent of one core.
pub const MAX_RATE: u32 = 10_000;

/// Time after which a stream ends unless it asks for another: nobody means to watch for longer without saying so.
pub const DEFAULT_LIMIT: Duration = Duration::from_secs(600);

/// Longest life of a stream: who wants events for days wants the access log.
pub const MAX_LIMIT: Duration = Duration::from_secs(24 * 3600);

/// Longest query, bytes: some dozens of selectors.
const MAX_LENGTH: usize = 8192;

/// What a process can see: what else is selected would never come, which is better said than waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sees {
    /// Connections, and which way they go: a node agent.
    Connections,
    /// Requests too: a waypoint or gateway.
    Requests,
}

/// What a subscriber asks for.
#[derive(Clone, Debug)]
pub struct Query {
    /// Which events.
    pub selector: Selector,
    /// Whether what is there already comes first.
    pub live: bool,
    /// Events a second.
    pub max_rps: u32,
    /// Time after which the stream ends.
    pub limit: Duration,
}

impl Query {
    /// Parses the query of a URL, for a process that sees `sees`.
    ///
    /// # Errors
    /// A parameter that there is not, with a value that it cannot have, or that means nothing to such a process.
    pub fn parse(query: &str, sees: Sees) -> Result<Self, Invalid> {
        if query.len() > MAX_LENGTH {
            let text = format!("the query is longer than {MAX_LENGTH} bytes");
            return Err(Invalid::new(text));
        }
        let mut asked = Self {
            selector: Selector::default(),
            live: false,
            max_rps: DEFAULT_RATE,
            limit: DEFAULT_LIMIT,
        };
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            let invalid = |why: &str| Invalid::new(format!("{name}={value}: {why}"));
            match &*name {
                "live" => {
                    asked.live = match &*value {
                        "true" => true,
                        "false" => false,
                        _ => return Err(invalid("it is true or false")),
                    };
                }
                "max_rps" => {
                    asked.max_rps = match value.parse() {
                        Ok(rate) if (1..=MAX_RATE).contains(&rate) => rate,
                        _ => return Err(invalid(&format!("it is 1 to {MAX_RATE}"))),
                    };
                }
                "limit_s" => {
                    let most = MAX_LIMIT.as_secs();
                    asked.limit = match value.parse() {
                        Ok(seconds) if (1..=most).contains(&seconds) => {
                            Duration::from_secs(seconds)
                        }
                        _ => return Err(invalid(&format!("it is 1 to {most} seconds"))),
                    };
                }
                _ => asked.selector.add(&name, &value)?,
            }
        }
        asked.selector.check(sees)?;
        if asked.live && sees == Sees::Requests {
            let text = "live: a waypoint does not list what is there already; only node agents do";
            return Err(Invalid::new(text.to_owned()));
        }
        if asked.live {
            asked.selector.add("event", "live")?;
        }
        Ok(asked)
    }
}
