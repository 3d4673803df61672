//! Bars of ratios as SVG. It is small enough to be written by hand: rectangles, lines and text.

use std::fmt::Write as _;

/// A chart of groups of bars, which lie on their sides so that long names fit.
#[derive(Clone, Debug)]
pub struct Chart {
    title: String,
    subtitle: String,
    groups: Vec<Group>,
}

/// Bars that belong together, and what they are held to.
#[derive(Clone, Debug)]
pub struct Group {
    /// Its name, at the left.
    pub name: String,
    pub bars: Vec<Bar>,
    /// A mark across the bars; none without a goal.
    pub goal: Option<f64>,
}

/// One value.
#[derive(Clone, Debug)]
pub struct Bar {
    /// Whose it is; bars of the same have the same colour.
    pub series: String,
    pub value: f64,
    /// The least and the greatest of the rounds; none of a value that is not of this run.
    pub range: Option<[f64; 2]>,
}

/// Pixels: the whole width, and what names and numbers take of it.
const WIDTH: f64 = 920.0;
const NAMES: f64 = 190.0;
const NUMBERS: f64 = 60.0;
/// Pixels: height of a bar, between groups, and above all of them.
const BAR: f64 = 14.0;
const GAP: f64 = 12.0;
const HEAD: f64 = 84.0;
const FOOT: f64 = 34.0;
/// Lines of the scale, about.
const LINES: f64 = 8.0;
/// Told apart without red and green, and on paper.
const COLOURS: [&str; 4] = ["#1f6f8b", "#e07b39", "#8a8f98", "#6b4c9a"];

impl Chart {
    /// Without bars yet.
    pub fn new(title: &str, subtitle: &str) -> Self {
        Self {
            title: title.to_owned(),
            subtitle: subtitle.to_owned(),
            groups: Vec::new(),
        }
    }

    /// With one more group below the others.
    pub fn add(&mut self, group: Group) {
        self.groups.push(group);
    }

    /// The text of the file.
    pub fn svg(&self) -> String {
        let mut text = String::new();
        let height = HEAD + FOOT + self.groups.iter().map(|g| height(g) + GAP).sum::<f64>();
        let scale = Scale::of(self.groups.iter());
        // A String takes all that is written to it.
        let _ = writeln!(
            text,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" \
             viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
             <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n\
             <text x=\"16\" y=\"26\" font-size=\"17\" font-weight=\"bold\">{}</text>\n\
             <text x=\"16\" y=\"46\" fill=\"#555555\">{}</text>",
            escaped(&self.title),
            escaped(&self.subtitle)
        );
        self.legend(&mut text);
        scale.lines(&mut text, height - FOOT);
        let mut y = HEAD;
        for group in &self.groups {
            self.group(&mut text, group, &scale, y);
            y += height_of(group);
        }
        text.push_str("</svg>\n");
        text
    }

    /// Names of series in the order of their first bars.
    fn series(&self) -> Vec<&str> {
        let mut names: Vec<&str> = Vec::new();
        for bar in self.groups.iter().flat_map(|group| &group.bars) {
            if !names.contains(&bar.series.as_str()) {
                names.push(&bar.series);
            }
        }
        names
    }

    fn colour(&self, series: &str) -> &'static str {
        let at = self.series().iter().position(|name| *name == series);
        COLOURS[at.unwrap_or(0) % COLOURS.len()]
    }

    fn legend(&self, text: &mut String) {
        let mut x = 16.0;
        for series in self.series() {
            let _ = writeln!(
                text,
                "<rect x=\"{x}\" y=\"56\" width=\"12\" height=\"12\" fill=\"{}\"/>\n\
                 <text x=\"{}\" y=\"66\">{}</text>",
                self.colour(series),
                x + 18.0,
                escaped(series)
            );
            x += 40.0 + 7.0 * series.chars().count() as f64;
        }
        if self.groups.iter().any(|group| group.goal.is_some()) {
            let _ = writeln!(
                text,
                "<line x1=\"{x}\" y1=\"55\" x2=\"{x}\" y2=\"69\" stroke=\"#000000\" stroke-width=\"2\"/>\n\
                 <text x=\"{}\" y=\"66\">goal</text>",
                x + 8.0
            );
        }
    }

    fn group(&self, text: &mut String, group: &Group, scale: &Scale, y: f64) {
        let middle = y + height(group) / 2.0 + 4.0;
        let _ = writeln!(
            text,
            "<text x=\"{}\" y=\"{middle}\" text-anchor=\"end\">{}</text>",
            NAMES - 8.0,
            escaped(&group.name)
        );
        for (bar, number) in group.bars.iter().zip(0_u32..) {
            let top = y + BAR * f64::from(number);
            let end = scale.x(bar.value);
            let _ = writeln!(
                text,
                "<rect x=\"{NAMES}\" y=\"{}\" width=\"{:.1}\" height=\"{}\" fill=\"{}\"/>",
                top + 1.0,
                (end - NAMES).max(0.0),
                BAR - 2.0,
                self.colour(&bar.series)
            );
            let mut right = end;
            if let Some([least, most]) = bar.range {
                let (from, to, line) = (scale.x(least), scale.x(most), top + BAR / 2.0);
                let _ = writeln!(
                    text,
                    "<line x1=\"{from:.1}\" y1=\"{line}\" x2=\"{to:.1}\" y2=\"{line}\" stroke=\"#222222\"/>"
                );
                right = right.max(to);
            }
            let _ = writeln!(
                text,
                "<text x=\"{:.1}\" y=\"{}\" font-size=\"11\">{:.3}</text>",
                right + 5.0,
                top + BAR - 3.0,
                bar.value
            );
        }
        if let Some(goal) = group.goal {
            let x = scale.x(goal);
            let _ = writeln!(
                text,
                "<line x1=\"{x:.1}\" y1=\"{}\" x2=\"{x:.1}\" y2=\"{}\" stroke=\"#000000\" stroke-width=\"2\"/>",
                y - 3.0,
                y + height(group) + 3.0
            );
        }
    }
}

fn height(group: &Group) -> f64 {
    BAR * group.bars.len().max(1) as f64
}

fn height_of(group: &Group) -> f64 {
    height(group) + GAP
}

/// From values to pixels, from 0 on.
struct Scale {
    step: f64,
    most: f64,
}

impl Scale {
    /// Room for all values, and for 1, the direct connection.
    fn of<'a>(groups: impl Iterator<Item = &'a Group>) -> Self {
        let values = groups.flat_map(|group| {
            let bars = group.bars.iter();
            bars.flat_map(|bar| [bar.value, bar.range.map_or(0.0, |range| range[1])])
                .chain(group.goal)
        });
        let most = values.filter(|v| v.is_finite()).fold(1.0, f64::max);
        let rough = most / LINES;
        let unit = 10_f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0]
            .map(|factor| factor * unit)
            .into_iter()
            .find(|step| *step >= rough)
            .unwrap_or(rough);
        Self {
            step,
            most: (most / step).ceil() * step,
        }
    }

    /// What is no number is drawn as nothing.
    fn x(&self, value: f64) -> f64 {
        let value = if value.is_finite() { value } else { 0.0 };
        let share = value.clamp(0.0, self.most) / self.most;
        NAMES + share * (WIDTH - NAMES - NUMBERS)
    }

    fn lines(&self, text: &mut String, bottom: f64) {
        let count = (self.most / self.step).round() as u32;
        for number in 0..=count {
            let value = self.step * f64::from(number);
            let direct = (value - 1.0).abs() < self.step / 1e6;
            let colour = if direct { "#c0392b" } else { "#dddddd" };
            let x = self.x(value);
            let digits = if self.step < 0.1 { 2 } else { 1 };
            let _ = writeln!(
                text,
                "<line x1=\"{x:.1}\" y1=\"{}\" x2=\"{x:.1}\" y2=\"{bottom}\" stroke=\"{colour}\"/>\n\
                 <text x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\" fill=\"#555555\">{value:.digits$}</text>",
                HEAD - 6.0,
                bottom + 16.0
            );
        }
    }
}

/// As text of an XML document.
fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&apos;"),
            // No other control characters may be in a document, not even escaped.
            c if c.is_control() && !matches!(c, '\t' | '\n' | '\r') => safe.push('\u{fffd}'),
            c => safe.push(c),
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(value: f64) -> Chart {
        let mut chart = Chart::new("a <b> & \"c\"", "it's\u{1}");
        chart.add(Group {
            name: "row".to_owned(),
            bars: vec![
                Bar {
                    series: "karst".to_owned(),
                    value,
                    range: Some([value * 0.9, value * 1.1]),
                },
                Bar {
                    series: "stock".to_owned(),
                    value: 0.27,
                    range: None,
                },
            ],
            goal: Some(0.5),
        });
        chart
    }

    #[test]
    fn names_cannot_become_markup() {
        let svg = chart(0.4).svg();
        assert!(svg.contains("a &lt;b&gt; &amp; &quot;c&quot;"), "{svg}");
        assert!(svg.contains("it&apos;s\u{fffd}"), "{svg}");
        assert!(!svg.contains("<b>"));
    }

    #[test]
    fn bars_are_as_long_as_their_values() {
        let svg = chart(0.5).svg();
        // The scale goes to 1: half of what names and numbers leave.
        let half = (WIDTH - NAMES - NUMBERS) / 2.0;
        assert!(svg.contains(&format!("width=\"{half:.1}\"")), "{svg}");
        assert!(svg.contains(">0.500<") && svg.contains(">0.270<"), "{svg}");
    }

    #[test]
    fn what_is_no_number_is_no_bar() {
        for value in [f64::NAN, f64::INFINITY, -1.0] {
            let svg = chart(value).svg();
            assert!(svg.contains("width=\"0.0\""), "{svg}");
            assert!(!svg.contains("x1=\"NaN\"") && !svg.contains("x2=\"inf\""));
        }
        assert!(Chart::new("empty", "").svg().ends_with("</svg>\n"));
    }

    #[test]
    fn a_long_bar_widens_the_scale() {
        let svg = chart(7.3).svg();
        assert!(
            svg.contains(">8.0</text>") || svg.contains(">9.0</text>"),
            "{svg}"
        );
    }
}
