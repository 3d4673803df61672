//! `karst top`: who talks to whom, how much and how well, as it changes.
//!
//! Events of the tap and lists of live connections become rows ([`model`]), which are drawn ([`screen`]) as the user
//! has chosen ([`view`]) in what columns fit ([`columns`]). Start reading at [`run`].

mod columns;
mod model;
mod quantile;
mod screen;
mod view;

use std::io::{self, IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anstream::ColorChoice;
use bytes::Bytes;
use http::Method;
use karst_process::tap::query::{MAX_LIMIT, MAX_RATE};
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event as TerminalEvent};
use serde_json::Value;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

use crate::admin::Source;
use crate::args::Top;
use crate::failure::Failure;
use crate::tap::event::Line;
use crate::tap::{Arrived, encode, follow, runtime, selectors, source};
use model::{Model, Picture};
use screen::{Colours, Head};
use view::{Asked, View};

/// How often the thread that reads keys looks whether it is to end.
const KEYS: Duration = Duration::from_millis(100);

/// An agent is asked for its connections no more often than this many times what its answer took: a list of very
/// many must not keep it busy.
const SHARE: u32 = 10;

/// Shows until the user, a signal or the sources end it. Prints by itself.
///
/// # Errors
/// See [`Failure`].
pub fn run(args: &Top) -> Result<String, Failure> {
    let sources = source::all(&args.sources)?;
    let queries = sources
        .iter()
        .map(|source| query(args, source))
        .collect::<Result<Vec<_>, _>>()?;
    let is_screen = !args.once && is_screen();
    runtime()?.block_on(async {
        let feed = Feed::open(args, sources, &queries).await?;
        match is_screen {
            true => on_screen(args, feed).await,
            false => as_text(args, feed).await,
        }
    })?;
    Ok(String::new())
}

/// Whether there is a terminal to draw on and to read keys from.
fn is_screen() -> bool {
    let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb" || term.is_empty());
    io::stdout().is_terminal() && io::stdin().is_terminal() && !dumb
}

/// The query for a source.
fn query(args: &Top, source: &Source) -> Result<String, Failure> {
    let mut all = selectors(&args.selectors);
    if source.is_agent() {
        all.push(("live", "true".to_owned()));
    }
    all.push(("max_rps", MAX_RATE.to_string()));
    all.push(("limit_s", MAX_LIMIT.as_secs().to_string()));
    encode(&all, source)
}

/// What comes from the sources, and what has been made of it.
struct Feed {
    model: Model,
    events: mpsc::Receiver<Arrived>,
    lists: mpsc::Receiver<(usize, Result<Value, Failure>)>,
    began: Instant,
    head: Head,
}

impl Feed {
    async fn open(args: &Top, sources: Vec<Source>, queries: &[String]) -> Result<Self, Failure> {
        let events = follow(&sources, queries).await?;
        let (sender, lists) = mpsc::channel(sources.len().max(1));
        let mut names = Vec::new();
        // A list cannot be selected from as events can; what is left out of them would be back.
        let lists_fit = selectors(&args.selectors).is_empty();
        for (index, source) in sources.into_iter().enumerate() {
            let status = source.document(Method::GET, "/v1/status").await?;
            let name = status["node"].as_str().filter(|_| source.is_agent());
            let name = name.or(status["gateway"].as_str()).unwrap_or("?");
            names.push(name.to_owned());
            if source.is_agent() && lists_fit {
                let (sender, interval) = (sender.clone(), args.interval);
                tokio::spawn(async move {
                    loop {
                        let asked = Instant::now();
                        let list = source.document(Method::GET, "/v1/connections").await;
                        if sender.send((index, list)).await.is_err() {
                            return;
                        }
                        let wait = interval.max(asked.elapsed() * SHARE);
                        tokio::time::sleep(wait).await;
                    }
                });
            }
        }
        let colours = match anstream::AutoStream::choice(&io::stdout()) {
            ColorChoice::Never => Colours::Off,
            _ => Colours::On,
        };
        Ok(Self {
            model: Model::default(),
            events,
            lists,
            began: Instant::now(),
            head: Head {
                sources: names.join(" "),
                colours,
            },
        })
    }

    fn now(&self) -> u64 {
        self.began.elapsed().as_secs()
    }

    fn picture(&mut self) -> Picture {
        let now = self.now();
        self.model.picture(now)
    }

    /// Waits for what comes next and takes it in.
    ///
    /// # Errors
    /// A source has ended.
    async fn next(&mut self) -> Result<(), Failure> {
        tokio::select! {
            Some((index, line)) = self.events.recv() => match line? {
                Some(line) => self.line(index, &line),
                None => Err(broken("a source has ended its stream without saying why")),
            },
            Some((index, list)) = self.lists.recv() => {
                let now = self.now();
                self.model.connections(index, &list?, now);
                Ok(())
            }
            else => Err(broken("all sources have ended")),
        }
    }

    fn line(&mut self, index: usize, line: &Bytes) -> Result<(), Failure> {
        let now = self.now();
        match Line::parse(line) {
            Some(Line::Event(event)) => self.model.event(index, &event, now),
            Some(Line::Notice(notice)) => {
                self.model.dropped(index, notice.dropped);
                if notice.tap == "ended" {
                    let why = crate::tap::event::printable(&notice.reason);
                    return Err(broken(&format!("a source has ended its stream: {why}")));
                }
            }
            // Of a newer version; what is understood is shown.
            None => {}
        }
        Ok(())
    }
}

fn broken(why: &str) -> Failure {
    Failure::failed("stream_broken", why)
}

/// What ends a program from outside.
struct Ends {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Ends {
    fn new() -> Result<Self, Failure> {
        let listen =
            |kind| signal(kind).map_err(|error| Failure::failed("signal", error.to_string()));
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
            hangup: listen(SignalKind::hangup())?,
        })
    }

    async fn wait(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
            _ = self.hangup.recv() => {}
        }
    }
}

/// A table every interval.
async fn as_text(args: &Top, mut feed: Feed) -> Result<(), Failure> {
    feed.head.colours = Colours::Off;
    let view = View::default();
    let mut ends = Ends::new()?;
    let mut tick = tokio::time::interval(args.interval);
    tick.reset();
    loop {
        tokio::select! {
            taken = feed.next() => taken?,
            () = ends.wait() => return Ok(()),
            _ = tick.tick() => {
                let picture = feed.picture();
                let mut text = screen::plain(&feed.head, &picture, &view);
                if !args.once {
                    text.push('\n');
                }
                match write(&text) {
                    Ok(()) => {}
                    // A closed pipe (`| head`) is no failure.
                    Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
                    Err(error) => return Err(Failure::failed("output", error.to_string())),
                }
                if args.once {
                    return Ok(());
                }
            }
        }
    }
}

fn write(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// The terminal, which is as it was before when this is dropped. After a panic, ratatui's hook does that first, so
/// that what is said then is seen.
struct Screen {
    terminal: DefaultTerminal,
    stop: Arc<AtomicBool>,
}

impl Drop for Screen {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        ratatui::restore();
    }
}

impl Screen {
    fn open() -> Result<(Self, mpsc::Receiver<TerminalEvent>), Failure> {
        let failure = |error: io::Error| Failure::failed("terminal", error.to_string());
        let terminal = ratatui::try_init().map_err(failure)?;
        let stop = Arc::new(AtomicBool::new(false));
        let screen = Self {
            terminal,
            stop: Arc::clone(&stop),
        };
        let (sender, keys) = mpsc::channel(64);
        std::thread::Builder::new()
            .name("karst-keys".to_owned())
            .spawn(move || read_keys(&stop, &sender))
            .map_err(failure)?;
        Ok((screen, keys))
    }

    fn draw(&mut self, head: &Head, picture: &Picture, view: &mut View) -> Result<(), Failure> {
        let drawn = self
            .terminal
            .draw(|frame| screen::draw(frame, head, picture, view));
        match drawn {
            Ok(_) => Ok(()),
            Err(error) => Err(Failure::failed("terminal", error.to_string())),
        }
    }
}

fn read_keys(stop: &AtomicBool, keys: &mpsc::Sender<TerminalEvent>) {
    while !stop.load(Ordering::Relaxed) {
        match event::poll(KEYS) {
            Ok(false) => {}
            Ok(true) => {
                let Ok(event) = event::read() else { return };
                if keys.blocking_send(event).is_err() {
                    return;
                }
            }
            // The terminal has gone; its owner is told by a signal too.
            Err(_) => return,
        }
    }
}

/// A picture every interval and at every key.
async fn on_screen(args: &Top, mut feed: Feed) -> Result<(), Failure> {
    let mut ends = Ends::new()?;
    let (mut screen, mut keys) = Screen::open()?;
    let mut view = View::default();
    let mut picture = feed.picture();
    let mut tick = tokio::time::interval(args.interval);
    loop {
        tokio::select! {
            taken = feed.next() => {
                taken?;
                continue;
            }
            () = ends.wait() => return Ok(()),
            key = keys.recv() => match key {
                Some(TerminalEvent::Key(key)) => if view.key(key) == Asked::Quit {
                    return Ok(());
                },
                // A new size, of which the next picture takes account.
                Some(_) => {}
                None => return Err(Failure::failed("terminal", "the terminal has gone")),
            },
            _ = tick.tick() => if !view.paused {
                picture = feed.picture();
            },
        }
        screen.draw(&feed.head, &picture, &mut view)?;
    }
}
