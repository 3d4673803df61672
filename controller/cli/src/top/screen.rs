//! The picture on a terminal.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::Paragraph;

use super::columns::{self, Column, cut, fit, rate};
use super::model::{Picture, Shown};
use super::view::View;

/// Success below which a row is yellow, and red, in percent.
const WORRYING: f64 = 99.0;
const BAD: f64 = 95.0;

/// What stands above the rows.
#[derive(Debug)]
pub struct Head {
    /// Who is asked.
    pub sources: String,
    /// Whether colours are wanted.
    pub colours: Colours,
}

/// Whether the terminal shows colours, and the user wants them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Colours {
    On,
    Off,
}

impl Colours {
    fn of(self, colour: Color) -> Style {
        match self {
            Self::On => Style::new().fg(colour),
            Self::Off => Style::new(),
        }
    }
}

/// Draws everything. Notes in `view` how many rows there is room for.
pub fn draw(frame: &mut Frame<'_>, head: &Head, picture: &Picture, view: &mut View) {
    let areas = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(1),
        Constraint::Length(1),
        Constraint::Min(0),
        Constraint::Length(1),
    ]);
    let [title, state, heading, body, keys] = areas.areas(frame.area());
    let rows = view.rows(picture);
    frame.render_widget(Paragraph::new(self::title(head, picture)), title);
    frame.render_widget(
        Paragraph::new(self::state(head, picture, view, rows.len())),
        state,
    );
    let columns = fit(usize::from(body.width), &rows);
    frame.render_widget(Paragraph::new(headings(&columns, view)), heading);
    view.page = usize::from(body.height).max(1);
    view.selected = view.selected.min(rows.len().saturating_sub(1));
    let lines = visible(&rows, view, body)
        .map(|(row, is_selected)| line(row, &columns, is_selected, head.colours));
    frame.render_widget(Paragraph::new(lines.collect::<Vec<_>>()), body);
    let help = if view.typing {
        format!("filter: {}_   enter keep  esc none", view.filter)
    } else {
        "q quit  s/S sort  r reverse  / filter  p pause  arrows move".to_owned()
    };
    let style = Style::new().add_modifier(Modifier::DIM);
    frame.render_widget(Paragraph::new(Line::styled(help, style)), keys);
}

fn title(head: &Head, picture: &Picture) -> Line<'static> {
    let live: u64 = picture.rows.iter().map(|row| row.live).sum();
    let denied: f64 = picture.rows.iter().map(|row| row.denied).sum();
    let mut line = vec![
        Span::styled("karst top", Style::new().add_modifier(Modifier::BOLD)),
        Span::raw(format!("  {}", head.sources)),
        Span::raw(format!(
            "  out {}/s  in {}/s  requests {}/s  live {live}  ",
            rate(picture.rate(&["out"])),
            rate(picture.rate(&["in"])),
            rate(picture.rate(&["wp", "gw"])),
        )),
    ];
    let style = match denied > 0.0 {
        true => head.colours.of(Color::Red),
        false => Style::new(),
    };
    line.push(Span::styled(format!("denied {}/s", rate(denied)), style));
    Line::from(line)
}

fn state(head: &Head, picture: &Picture, view: &View, shown: usize) -> Line<'static> {
    let direction = if view.reversed { " reversed" } else { "" };
    let mut line = vec![Span::raw(format!(
        "rows {shown}/{}  sort {}{direction}",
        picture.rows.len(),
        view.sort.heading(),
    ))];
    if !view.filter.is_empty() {
        line.push(Span::raw(format!("  filter {:?}", view.filter)));
    }
    if view.paused {
        let style = head.colours.of(Color::Yellow).add_modifier(Modifier::BOLD);
        line.push(Span::styled("  PAUSED", style));
    }
    let (text, style) = match picture.dropped {
        0 => ("  dropped 0".to_owned(), Style::new()),
        dropped => (
            format!("  dropped {dropped}: rates are too low"),
            head.colours.of(Color::Yellow).add_modifier(Modifier::BOLD),
        ),
    };
    line.push(Span::styled(text, style));
    Line::from(line)
}

fn headings(columns: &[(Column, usize)], view: &View) -> Line<'static> {
    let mut line = Vec::new();
    for (column, width) in columns {
        let mut style = Style::new().add_modifier(Modifier::BOLD);
        if *column == view.sort {
            style = style.add_modifier(Modifier::UNDERLINED);
        }
        line.push(Span::styled(cut(column.heading(), *width, *column), style));
        line.push(Span::raw(" "));
    }
    Line::from(line)
}

/// The rows on the screen: those around the one that is marked.
fn visible<'a>(
    rows: &'a [&'a Shown],
    view: &View,
    body: Rect,
) -> impl Iterator<Item = (&'a Shown, bool)> {
    let height = usize::from(body.height).max(1);
    let first = (view.selected + 1).saturating_sub(height);
    let selected = view.selected;
    let numbered = rows.iter().enumerate().skip(first).take(height);
    numbered.map(move |(number, row)| (*row, number == selected))
}

fn line(
    row: &Shown,
    columns: &[(Column, usize)],
    is_selected: bool,
    colours: Colours,
) -> Line<'static> {
    let mut line = Vec::new();
    for (column, width) in columns {
        let text = cut(&column.cell(row), *width, *column);
        line.push(Span::styled(text, style(*column, row, colours)));
        line.push(Span::raw(" "));
    }
    let line = Line::from(line);
    match is_selected {
        true => line.patch_style(Style::new().add_modifier(Modifier::REVERSED)),
        false => line,
    }
}

fn style(column: Column, row: &Shown, colours: Colours) -> Style {
    match (column, row.success) {
        (Column::Success, Some(success)) if success < BAD => {
            colours.of(Color::Red).add_modifier(Modifier::BOLD)
        }
        (Column::Success, Some(success)) if success < WORRYING => colours.of(Color::Yellow),
        (Column::Success, Some(_)) => colours.of(Color::Green),
        (Column::Denied, _) if row.denied > 0.0 => colours.of(Color::Red),
        _ => Style::new(),
    }
}

/// The picture as a table of text, for what is no terminal. Nothing is cut.
pub fn plain(head: &Head, picture: &Picture, view: &View) -> String {
    let rows = view.rows(picture);
    let mut text = format!("{}\n", self::title(head, picture));
    text += &format!("{}\n", state(head, picture, view, rows.len()));
    let widths = columns::ALL.map(|column| {
        let cells = rows.iter().map(|row| column.cell(row).chars().count());
        let widest = cells.max().unwrap_or(0);
        (column, widest.max(column.heading().len()))
    });
    let mut add = |cell: &dyn Fn(Column) -> String| {
        let cells = widths.map(|(column, width)| cut(&cell(column), width, column));
        text += cells.join("  ").trim_end();
        text.push('\n');
    };
    add(&|column| column.heading().to_owned());
    for row in rows {
        add(&|column| column.cell(row));
    }
    text
}

#[cfg(test)]
#[path = "screen_tests.rs"]
mod tests;
