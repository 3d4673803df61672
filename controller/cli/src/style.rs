//! Colour, where the terminal has it: `NO_COLOR` and pipes are heeded by `anstream`.

use anstyle::{AnsiColor, Style};

/// Something is as it should be.
pub const GOOD: Style = AnsiColor::Green.on_default();
/// Something deserves a look.
pub const WARN: Style = AnsiColor::Yellow.on_default();
/// Something is wrong.
pub const BAD: Style = AnsiColor::Red.on_default().bold();
/// What matters less.
pub const DIM: Style = Style::new().dimmed();

/// `text` in `style`.
pub fn paint(style: Style, text: &str) -> String {
    format!("{style}{text}{style:#}")
}

/// Says how far a long command is; on standard error, so that standard output holds results only.
pub fn progress(text: &str) {
    anstream::eprintln!("{}", paint(DIM, text));
}

/// Says what was done to one object.
pub fn result(style: Style, what: &str, object: &str) {
    anstream::println!("{} {object}", paint(style, &format!("{what:<10}")));
}
