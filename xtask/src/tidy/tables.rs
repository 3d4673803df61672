//! Reads the tables of the documents.

/// The names in the first column of every table whose first column is headed `heading`. A cell may
/// name several things, each in backticks.
pub fn first_column(document: &str, heading: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut inside = false;
    for line in document.lines() {
        let Some(cell) = first_cell(line) else {
            inside = false;
            continue;
        };
        if !inside {
            inside = cell == heading;
        } else {
            names.extend(in_backticks(cell));
        }
    }
    names
}

/// The first cell of a table row; `None` for any other line.
fn first_cell(line: &str) -> Option<&str> {
    let row = line.trim().strip_prefix('|')?;
    Some(row.split('|').next()?.trim())
}

fn in_backticks(cell: &str) -> impl Iterator<Item = String> {
    cell.split('`').skip(1).step_by(2).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOCUMENT: &str = "\
# Title

| Map | Key |
|---|---|
| `PODS` | netns |
| `A`, `B` | other |

| Port | Who |
|---|---|
| `15001` | agent |

text `NOT`
";

    #[test]
    fn reads_the_table_with_the_heading() {
        assert_eq!(first_column(DOCUMENT, "Map"), ["PODS", "A", "B"]);
        assert_eq!(first_column(DOCUMENT, "Port"), ["15001"]);
    }

    #[test]
    fn no_such_table_has_no_names() {
        assert!(first_column(DOCUMENT, "Key").is_empty());
    }
}
