//! What the user has chosen: order, filter, place, pause.

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use super::columns::{self, Column};
use super::model::{Picture, Shown};

/// Longest filter, characters.
const MAX_FILTER: usize = 60;

/// How the picture is looked at.
#[derive(Debug)]
pub struct View {
    pub sort: Column,
    pub reversed: bool,
    pub filter: String,
    /// The filter is being typed.
    pub typing: bool,
    pub paused: bool,
    /// The row that is marked.
    pub selected: usize,
    /// Rows on the screen, as last drawn.
    pub page: usize,
}

impl Default for View {
    fn default() -> Self {
        Self {
            sort: Column::Rate,
            reversed: false,
            filter: String::new(),
            typing: false,
            paused: false,
            selected: 0,
            page: 1,
        }
    }
}

/// What a key asks for beside what the view does by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    Draw,
    Quit,
}

impl View {
    /// The rows that are to be seen, in order.
    pub fn rows<'a>(&self, picture: &'a Picture) -> Vec<&'a Shown> {
        let mut rows: Vec<_> = picture.rows.iter().filter(|row| self.passes(row)).collect();
        rows.sort_by(|a, b| {
            let order = self.sort.compare(a, b);
            let order = if self.reversed {
                order.reverse()
            } else {
                order
            };
            // Rows that are the same in this must not jump.
            order.then_with(|| a.key.cmp(&b.key))
        });
        rows
    }

    fn passes(&self, row: &Shown) -> bool {
        let key = &row.key;
        let texts = [&key.source, &key.destination, &key.method, &key.route];
        self.filter.is_empty() || texts.iter().any(|text| text.contains(&self.filter))
    }

    /// Does what a key asks for.
    pub fn key(&mut self, key: KeyEvent) -> Asked {
        if key.kind == KeyEventKind::Release {
            return Asked::Draw;
        }
        if key.modifiers.contains(KeyModifiers::CONTROL) && key.code == KeyCode::Char('c') {
            return Asked::Quit;
        }
        if self.typing {
            self.typed(key.code);
            return Asked::Draw;
        }
        match key.code {
            KeyCode::Char('q') => return Asked::Quit,
            KeyCode::Char('p' | ' ') => self.paused = !self.paused,
            KeyCode::Char('s') | KeyCode::Right => self.next_column(1),
            KeyCode::Char('S') | KeyCode::Left => self.next_column(columns::ALL.len() - 1),
            KeyCode::Char('r') => self.reversed = !self.reversed,
            KeyCode::Char('/') => self.typing = true,
            KeyCode::Esc => self.filter.clear(),
            KeyCode::Up | KeyCode::Char('k') => self.selected = self.selected.saturating_sub(1),
            KeyCode::Down | KeyCode::Char('j') => self.selected += 1,
            KeyCode::PageUp => self.selected = self.selected.saturating_sub(self.page),
            KeyCode::PageDown => self.selected += self.page,
            KeyCode::Home => self.selected = 0,
            KeyCode::End => self.selected = usize::MAX,
            _ => {}
        }
        Asked::Draw
    }

    fn typed(&mut self, code: KeyCode) {
        match code {
            KeyCode::Enter => self.typing = false,
            KeyCode::Esc => {
                self.typing = false;
                self.filter.clear();
            }
            KeyCode::Backspace => {
                self.filter.pop();
            }
            KeyCode::Char(c) if self.filter.chars().count() < MAX_FILTER => self.filter.push(c),
            _ => {}
        }
        self.selected = 0;
    }

    fn next_column(&mut self, steps: usize) {
        let all = columns::ALL;
        let at = all.iter().position(|column| *column == self.sort);
        self.sort = all[(at.unwrap_or(0) + steps) % all.len()];
        self.selected = 0;
    }
}
