//! Columns, and which of them fit.

use super::model::Shown;
use crate::tap::text::{bytes, millis};

/// A column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Column {
    Side,
    Source,
    Destination,
    Method,
    Route,
    Rate,
    Success,
    Denied,
    P50,
    P95,
    P99,
    Bytes,
    Live,
}

/// In the order in which they stand.
pub const ALL: [Column; 13] = [
    Column::Side,
    Column::Source,
    Column::Destination,
    Column::Method,
    Column::Route,
    Column::Rate,
    Column::Success,
    Column::Denied,
    Column::P50,
    Column::P95,
    Column::P99,
    Column::Bytes,
    Column::Live,
];

/// The order in which they find a place: what is last goes first where there is none.
const BY_WORTH: [Column; 13] = [
    Column::Source,
    Column::Destination,
    Column::Rate,
    Column::Success,
    Column::Live,
    Column::P99,
    Column::Denied,
    Column::Side,
    Column::Bytes,
    Column::Method,
    Column::P50,
    Column::P95,
    Column::Route,
];

impl Column {
    /// Its heading.
    pub fn heading(self) -> &'static str {
        match self {
            Self::Side => "BY",
            Self::Source => "SOURCE",
            Self::Destination => "DESTINATION",
            Self::Method => "METHOD",
            Self::Route => "ROUTE",
            Self::Rate => "RATE/s",
            Self::Success => "OK%",
            Self::Denied => "DENY/s",
            Self::P50 => "P50",
            Self::P95 => "P95",
            Self::P99 => "P99",
            Self::Bytes => "BYTES/s",
            Self::Live => "LIVE",
        }
    }

    /// Fewest characters that it makes sense with; texts may have more.
    fn least(self) -> usize {
        match self {
            Self::Side => 3,
            Self::Source => 16,
            Self::Destination => 18,
            Self::Method | Self::Bytes => 7,
            Self::Route => 14,
            Self::Rate | Self::Denied => 6,
            Self::Success | Self::P50 | Self::P95 | Self::P99 | Self::Live => 5,
        }
    }

    /// Whether it holds text, which stands on the left and may be cut.
    pub fn is_text(self) -> bool {
        matches!(
            self,
            Self::Side | Self::Source | Self::Destination | Self::Method | Self::Route
        )
    }

    /// What stands in it.
    pub fn cell(self, row: &Shown) -> String {
        let or_dash = |text: &str| if text.is_empty() { "-" } else { text }.to_owned();
        let time = |time: Option<u64>| match time {
            Some(0) => "<1ms".to_owned(),
            Some(time) => millis(time),
            None => "-".to_owned(),
        };
        match self {
            Self::Side => row.key.side.to_owned(),
            Self::Source => row.key.source.clone(),
            Self::Destination => row.key.destination.clone(),
            Self::Method => or_dash(&row.key.method),
            Self::Route => or_dash(&row.key.route),
            Self::Rate => rate(row.rate),
            Self::Success => row.success.map_or_else(|| "-".to_owned(), percent),
            Self::Denied => rate(row.denied),
            Self::P50 => time(row.p50),
            Self::P95 => time(row.p95),
            Self::P99 => time(row.p99),
            Self::Bytes => bytes(row.bytes as u64),
            Self::Live => number(row.live),
        }
    }

    /// Which of two rows comes first by this column: the greater number, the earlier text.
    pub fn compare(self, a: &Shown, b: &Shown) -> std::cmp::Ordering {
        // What has no value comes last: a success rate that is not known worries nobody.
        let known = |a: Option<u64>, b: Option<u64>| b.cmp(&a);
        match self {
            Self::Side => a.key.side.cmp(b.key.side),
            Self::Source => a.key.source.cmp(&b.key.source),
            Self::Destination => a.key.destination.cmp(&b.key.destination),
            Self::Method => a.key.method.cmp(&b.key.method),
            Self::Route => a.key.route.cmp(&b.key.route),
            Self::Rate => b.rate.total_cmp(&a.rate),
            // The worst first.
            Self::Success => {
                let of = |row: &Shown| row.success.unwrap_or(101.0);
                of(a).total_cmp(&of(b))
            }
            Self::Denied => b.denied.total_cmp(&a.denied),
            Self::P50 => known(a.p50, b.p50),
            Self::P95 => known(a.p95, b.p95),
            Self::P99 => known(a.p99, b.p99),
            Self::Bytes => b.bytes.total_cmp(&a.bytes),
            Self::Live => b.live.cmp(&a.live),
        }
    }
}

/// Columns that fit into `width` with one space between them, and the width of each. `rows` say how much room texts
/// could use.
pub fn fit(width: usize, rows: &[&Shown]) -> Vec<(Column, usize)> {
    let mut chosen: Vec<(Column, usize)> = Vec::new();
    let mut used = 0;
    for column in BY_WORTH {
        let more = column.least() + usize::from(!chosen.is_empty());
        // Two columns are a table however narrow.
        if used + more > width && chosen.len() >= 2 {
            break;
        }
        used += more;
        chosen.push((column, column.least()));
    }
    let mut left = width.saturating_sub(used);
    for text in [
        Column::Source,
        Column::Destination,
        Column::Route,
        Column::Method,
    ] {
        if let Some((_, has)) = chosen.iter_mut().find(|(column, _)| *column == text) {
            let cells = rows.iter().map(|row| text.cell(row).chars().count());
            let wanted = cells.max().unwrap_or(0).saturating_sub(*has).min(left);
            *has += wanted;
            left -= wanted;
        }
    }
    let place = |column: Column| ALL.iter().position(|other| *other == column);
    chosen.sort_by_key(|(column, _)| place(*column));
    chosen
}

/// A cell of exactly `width` characters: filled up, or cut with a sign that it is.
pub fn cut(text: &str, width: usize, column: Column) -> String {
    let length = text.chars().count();
    if length > width {
        let kept: String = text.chars().take(width.saturating_sub(1)).collect();
        return format!("{kept}…");
    }
    match column.is_text() {
        true => format!("{text:<width$}"),
        false => format!("{text:>width$}"),
    }
}

/// A number per second in at most five columns.
pub fn rate(rate: f64) -> String {
    match rate {
        r if r <= 0.0 => "0".to_owned(),
        r if r < 100.0 => format!("{r:.1}"),
        r => number(r as u64),
    }
}

/// A success rate. Only what is entirely good is 100.
fn percent(percent: f64) -> String {
    if percent >= 100.0 {
        return "100".to_owned();
    }
    format!("{:.1}", (percent * 10.0).floor() / 10.0)
}

fn number(number: u64) -> String {
    match number {
        0..100_000 => number.to_string(),
        100_000..10_000_000 => format!("{}k", number / 1000),
        _ => format!("{}M", number / 1_000_000),
    }
}
