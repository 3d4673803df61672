//! `karst tap`: follows connections and requests as they come, from the data plane itself.
//!
//! Start reading at [`run`]; [`source`] is how agents and waypoints are reached, [`event`] what they say.

pub mod event;
pub mod source;
pub mod text;

use std::io::{self, Write};
use std::time::{Duration, Instant};

use bytes::Bytes;
use karst_process::tap::query::{Query, Sees};
use tokio::sync::mpsc;

use crate::admin::Source;
use crate::args::{EventKind, Selectors, Tap, TapOutput};
use crate::failure::Failure;
use crate::style::{WARN, paint};
use event::{Dropped, Line, Notice};
use source::Lines;
use text::Width;

/// Lines that wait to be printed, of all sources. When they are not printed fast enough, the sources notice.
const WAITING: usize = 1024;

/// Follows until the count or the time is reached, or it is interrupted. Prints by itself.
///
/// # Errors
/// See [`Failure`].
pub fn run(args: &Tap) -> Result<String, Failure> {
    let sources = source::all(&args.sources)?;
    let queries = sources
        .iter()
        .map(|source| query(args, source))
        .collect::<Result<Vec<_>, _>>()?;
    let runtime = runtime()?;
    runtime.block_on(async {
        let followed = follow(&sources, &queries).await?;
        print(args, followed).await
    })?;
    Ok(String::new())
}

/// One thread for everything.
///
/// # Errors
/// There is none to be had.
pub fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::failed("runtime", error.to_string()))
}

/// What comes from one of several sources, by its place among them.
pub type Arrived = (usize, Result<Option<Bytes>, Failure>);

/// Opens all sources and gives their lines as they come. A source ends with `None` or a failure.
///
/// # Errors
/// One of them does not answer, or refuses.
pub async fn follow(
    sources: &[Source],
    queries: &[String],
) -> Result<mpsc::Receiver<Arrived>, Failure> {
    let (sender, receiver) = mpsc::channel(WAITING);
    for (index, (source, query)) in sources.iter().zip(queries).enumerate() {
        let mut lines = Lines::open(source, &format!("/v1/tap?{query}")).await?;
        let sender = sender.clone();
        tokio::spawn(async move {
            loop {
                let line = lines.next().await;
                let last = !matches!(line, Ok(Some(_)));
                if sender.send((index, line)).await.is_err() || last {
                    return;
                }
            }
        });
    }
    Ok(receiver)
}

/// The query for a source, which refuses what it would refuse.
fn query(args: &Tap, source: &Source) -> Result<String, Failure> {
    let mut all = selectors(&args.selectors);
    let kinds = args.event.iter().map(|kind| match kind {
        EventKind::Opened => "opened",
        EventKind::Closed => "closed",
        EventKind::Refused => "refused",
        EventKind::Request => "request",
    });
    all.extend(kinds.map(|kind| ("event", kind.to_owned())));
    if args.live {
        all.push(("live", "true".to_owned()));
    }
    if let Some(limit) = args.limit {
        let seconds = limit.as_millis().div_ceil(1000);
        all.push(("limit_s", seconds.to_string()));
    }
    all.push(("max_rps", args.max_rps.to_string()));
    encode(&all, source)
}

/// The parameters of selectors.
pub fn selectors(selectors: &Selectors) -> Vec<(&'static str, String)> {
    let lists = [
        ("from", &selectors.from),
        ("to", &selectors.to),
        ("verdict", &selectors.verdict),
        ("policy", &selectors.policy),
        ("method", &selectors.method),
        ("path", &selectors.path),
        ("status", &selectors.status),
        ("direction", &selectors.direction),
    ];
    let one = |(name, values): (&'static str, &Vec<String>)| {
        let values = values.iter().map(move |value| (name, value.clone()));
        values.collect::<Vec<_>>()
    };
    let mut all: Vec<_> = lists.into_iter().flat_map(one).collect();
    if let Some(least) = selectors.min_duration {
        all.push(("min_duration_ms", least.as_millis().to_string()));
    }
    all
}

/// Parameters as the query of a URL, checked as `source` checks it.
///
/// # Errors
/// It makes no sense to `source`.
pub fn encode(parameters: &[(&str, String)], source: &Source) -> Result<String, Failure> {
    let query = form_urlencoded::Serializer::new(String::new())
        .extend_pairs(parameters)
        .finish();
    let sees = match source.is_agent() {
        true => Sees::Connections,
        false => Sees::Requests,
    };
    match Query::parse(&query, sees) {
        Ok(_) => Ok(query),
        Err(error) => Err(Failure::usage(error.to_string())),
    }
}

async fn print(args: &Tap, mut followed: mpsc::Receiver<Arrived>) -> Result<(), Failure> {
    let deadline = args.limit.map(|limit| Instant::now() + limit);
    let mut printer = Printer {
        output: args.output,
        left: args.count,
        dropped: Vec::new(),
    };
    let mut interrupt = std::pin::pin!(tokio::signal::ctrl_c());
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        // The far future of those who set no limit; the source has one anyway.
        let left = left.unwrap_or(Duration::from_secs(48 * 3600));
        let arrived = tokio::select! {
            arrived = followed.recv() => arrived,
            () = tokio::time::sleep(left) => return Ok(()),
            _ = &mut interrupt => return Ok(()),
        };
        let Some((index, line)) = arrived else {
            return Ok(());
        };
        match line? {
            Some(line) => match printer.line(index, &line) {
                Ok(Next::More) => {}
                Ok(Next::Enough) => return Ok(()),
                // A closed pipe (`| head`) is no failure.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
                Err(error) => return Err(Failure::failed("output", error.to_string())),
            },
            None => {
                let text = "a source has ended its stream without saying why";
                return Err(Failure::failed("stream_broken", text));
            }
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Next {
    More,
    Enough,
}

struct Printer {
    output: TapOutput,
    left: Option<u64>,
    /// By source.
    dropped: Vec<Dropped>,
}

impl Printer {
    fn line(&mut self, index: usize, line: &Bytes) -> io::Result<Next> {
        match Line::parse(line) {
            Some(Line::Event(event)) => {
                let mut out = anstream::stdout().lock();
                match self.output {
                    TapOutput::Json => {
                        out.write_all(line)?;
                        out.write_all(b"\n")?;
                    }
                    TapOutput::Text => {
                        out.write_all(text::line(&event, Width::Normal).as_bytes())?;
                    }
                    TapOutput::Wide => {
                        out.write_all(text::line(&event, Width::Wide).as_bytes())?;
                    }
                }
                out.flush()?;
                if let Some(left) = &mut self.left {
                    *left = left.saturating_sub(1);
                    if *left == 0 {
                        return Ok(Next::Enough);
                    }
                }
                Ok(Next::More)
            }
            Some(Line::Notice(notice)) => self.notice(index, &notice),
            None => {
                say(
                    "a line that this command does not understand was left out; is the source of another version?",
                );
                Ok(Next::More)
            }
        }
    }

    fn notice(&mut self, index: usize, notice: &Notice) -> io::Result<Next> {
        if self.dropped.len() <= index {
            self.dropped.resize(index + 1, Dropped::default());
        }
        let before = std::mem::replace(&mut self.dropped[index], notice.dropped);
        if notice.tap != "started" && before != notice.dropped {
            let Dropped {
                queue_full,
                rate_limit,
            } = notice.dropped;
            let text = format!(
                "left out so far: {rate_limit} beyond --max-rps, {queue_full} that were not read fast enough"
            );
            say(&text);
        }
        if notice.tap == "ended" {
            match &*notice.reason {
                "time_limit" => say("ended: the time limit is reached (--for)"),
                other => say(&format!("ended: {}", event::printable(other))),
            }
            return Ok(Next::Enough);
        }
        Ok(Next::More)
    }
}

/// Says something about the stream where it does not mix with events.
fn say(text: &str) {
    // Standard error may be closed; there is nobody to tell then.
    let _ = writeln!(anstream::stderr(), "{}", paint(WARN, text));
}

#[cfg(test)]
#[path = "tap/tests.rs"]
mod tests;
