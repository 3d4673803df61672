use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::buffer::Buffer;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use ratatui::style::Color;

use super::{Colours, Head, draw, plain};
use crate::top::columns::{self, Column, fit};
use crate::top::model::{Key, Picture, Shown};
use crate::top::view::{Asked, View};

fn row(source: &str, destination: &str, rate: f64, success: f64) -> Shown {
    Shown {
        key: Key {
            side: "wp",
            source: source.to_owned(),
            destination: destination.to_owned(),
            method: "GET".to_owned(),
            route: "HTTPRoute/shop/a-route-with-a-long-name".to_owned(),
        },
        rate,
        success: Some(success),
        denied: 0.0,
        p50: Some(0),
        p95: Some(20),
        p99: Some(12_000),
        bytes: 2048.0,
        live: 3,
    }
}

fn picture() -> Picture {
    Picture {
        rows: vec![
            row("shop/client", "web.shop:80", 10.0, 100.0),
            row(
                "shop/another-client-with-a-very-long-name",
                "web.shop:80",
                250.0,
                97.25,
            ),
            row("mesh/client", "cart.shop:80", 1.0, 50.0),
        ],
        dropped: 0,
    }
}

fn head(colours: Colours) -> Head {
    Head {
        sources: "node-a".to_owned(),
        colours,
    }
}

fn drawn(width: u16, height: u16, colours: Colours, view: &mut View, picture: &Picture) -> Buffer {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("terminal");
    let drawn = terminal.draw(|frame| draw(frame, &head(colours), picture, view));
    drawn.expect("draws").buffer.clone()
}

fn lines(buffer: &Buffer) -> Vec<String> {
    let rows = buffer.content.chunks(usize::from(buffer.area.width));
    rows.map(|row| {
        row.iter()
            .map(|cell| cell.symbol())
            .collect::<String>()
            .trim_end()
            .to_owned()
    })
    .collect()
}

fn press(view: &mut View, codes: &[KeyCode]) -> Asked {
    let keys = codes
        .iter()
        .map(|code| KeyEvent::new(*code, KeyModifiers::NONE));
    let asked = keys.map(|key| view.key(key)).collect::<Vec<_>>();
    asked.last().copied().unwrap_or(Asked::Draw)
}

#[test]
fn at_80_columns_the_least_worth_is_left_out() {
    let lines = lines(&drawn(
        80,
        10,
        Colours::On,
        &mut View::default(),
        &picture(),
    ));
    assert_eq!(
        lines,
        [
            "karst top  node-a  out 0/s  in 0/s  requests 261/s  live 9  denied 0/s",
            "rows 3/3  sort RATE/s  dropped 0",
            "BY  SOURCE            DESTINATION        RATE/s   OK% DENY/s   P99 BYTES/s  LIVE",
            "wp  shop/another-cli… web.shop:80           250  97.2      0   12s    2.0K     3",
            "wp  shop/client       web.shop:80          10.0   100      0   12s    2.0K     3",
            "wp  mesh/client       cart.shop:80          1.0  50.0      0   12s    2.0K     3",
            "",
            "",
            "",
            "q quit  s/S sort  r reverse  / filter  p pause  arrows move",
        ]
    );
}

#[test]
fn at_200_columns_everything_is_there() {
    let lines = lines(&drawn(
        200,
        10,
        Colours::On,
        &mut View::default(),
        &picture(),
    ));
    for column in columns::ALL {
        assert!(lines[2].contains(column.heading()), "{lines:#?}");
    }
    assert!(
        lines[3].contains("shop/another-client-with-a-very-long-name"),
        "{lines:#?}"
    );
    assert!(
        lines[3].contains("HTTPRoute/shop/a-route-with-a-long-name"),
        "{lines:#?}"
    );
    assert!(lines[3].contains("<1ms"), "{lines:#?}");
}

#[test]
fn every_width_and_height_can_be_drawn() {
    let picture = picture();
    for width in (1..=220).step_by(3) {
        for height in 1..12 {
            let rows = picture.rows.iter().collect::<Vec<_>>();
            let columns = fit(usize::from(width), &rows);
            let used: usize = columns.iter().map(|(_, width)| width + 1).sum();
            assert!(
                used <= usize::from(width) + 1 || columns.len() == 2,
                "{width}: {columns:?}"
            );
            drawn(width, height, Colours::On, &mut View::default(), &picture);
        }
    }
}

#[test]
fn what_is_degraded_is_coloured_unless_colours_are_off() {
    let mut picture = picture();
    picture.dropped = 7;
    picture.rows[0].denied = 1.5;
    let colour_of = |buffer: &Buffer, text: &str| {
        let width = usize::from(buffer.area.width);
        let (number, line) = lines(buffer)
            .into_iter()
            .enumerate()
            .find(|(_, line)| line.contains(text))
            .expect("text");
        let before = line[..line.find(text).expect("text")].chars().count();
        buffer.content[number * width + before].fg
    };
    let buffer = drawn(120, 10, Colours::On, &mut View::default(), &picture);
    assert_eq!(
        colour_of(&buffer, "dropped 7: rates are too low"),
        Color::Yellow
    );
    assert_eq!(colour_of(&buffer, "denied 1.5/s"), Color::Red);
    assert_eq!(colour_of(&buffer, "97.2"), Color::Yellow);
    assert_eq!(colour_of(&buffer, "50.0"), Color::Red);
    assert_eq!(colour_of(&buffer, "100 "), Color::Green);
    let buffer = drawn(120, 10, Colours::Off, &mut View::default(), &picture);
    assert!(buffer.content.iter().all(|cell| cell.fg == Color::Reset));
}

#[test]
fn keys_sort_filter_move_and_quit() {
    let picture = picture();
    let mut view = View::default();
    let first = |view: &View| view.rows(&picture)[0].key.source.clone();
    assert_eq!(first(&view), "shop/another-client-with-a-very-long-name");
    press(&mut view, &[KeyCode::Char('s')]);
    assert_eq!(view.sort, Column::Success);
    assert_eq!(first(&view), "mesh/client", "the worst first");
    press(&mut view, &[KeyCode::Char('r')]);
    assert_eq!(first(&view), "shop/client");
    press(&mut view, &[KeyCode::Char('S'), KeyCode::Char('r')]);
    assert_eq!(view.sort, Column::Rate);
    // In a filter, keys are letters.
    press(
        &mut view,
        &[
            KeyCode::Char('/'),
            KeyCode::Char('q'),
            KeyCode::Backspace,
            KeyCode::Char('m'),
        ],
    );
    press(&mut view, &[KeyCode::Char('e'), KeyCode::Char('s')]);
    assert_eq!((view.filter.as_str(), view.typing), ("mes", true));
    assert_eq!(view.rows(&picture).len(), 1);
    press(&mut view, &[KeyCode::Enter]);
    let shown = lines(&drawn(80, 10, Colours::On, &mut view, &picture));
    assert!(
        shown[1].contains("rows 1/3") && shown[1].contains("filter \"mes\""),
        "{shown:#?}"
    );
    press(&mut view, &[KeyCode::Esc, KeyCode::End]);
    drawn(80, 10, Colours::On, &mut view, &picture);
    assert_eq!(view.selected, 2, "no further than there are rows");
    press(&mut view, &[KeyCode::Down, KeyCode::Home, KeyCode::Down]);
    assert_eq!(view.selected, 1);
    // A page of one row: the marked one is on it.
    let small = lines(&drawn(80, 5, Colours::On, &mut view, &picture));
    assert!(small[3].contains("shop/client"), "{small:#?}");
    press(&mut view, &[KeyCode::Char('p')]);
    assert!(lines(&drawn(80, 10, Colours::On, &mut view, &picture))[1].contains("PAUSED"));
    assert_eq!(press(&mut view, &[KeyCode::Char('q')]), Asked::Quit);
    let interrupt = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
    assert_eq!(View::default().key(interrupt), Asked::Quit);
}

#[test]
fn without_a_terminal_it_is_a_table_of_whole_words() {
    let text = plain(&head(Colours::Off), &picture(), &View::default());
    assert!(!text.contains(['\u{1b}', '…']), "{text}");
    let rows: Vec<Vec<&str>> = text
        .lines()
        .skip(2)
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert_eq!(rows[0].len(), columns::ALL.len());
    assert_eq!(rows[1][1], "shop/another-client-with-a-very-long-name");
    assert_eq!(rows.len(), 4);
}
