//! Tab-separated tables as BIDS writes them, and as spreadsheets do.

use std::path::Path;

use crate::data::format::{pointer, text};
use crate::{Error, Result};

/// A table with a header row. Cells without a value are empty.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Table {
    pub columns: Vec<String>,
    /// As many cells in each row as there are columns.
    pub rows: Vec<Vec<String>>,
    pub notes: Vec<String>,
}

impl Table {
    pub fn read(path: &Path) -> Result<Self> {
        pointer::check(path)?;
        let bytes = std::fs::read(path).map_err(Error::io(path, "read"))?;
        let name = path.file_name().map(|n| n.to_string_lossy()).unwrap_or_default();
        Ok(Self::parse(&bytes, &name))
    }

    /// Parses bytes of any kind; what looks wrong becomes a note that begins with `name`.
    pub fn parse(bytes: &[u8], name: &str) -> Self {
        let mut notes = Vec::new();
        let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
        let text = text(bytes);
        let mut lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
        let header = lines.next().map(|(_, line)| line).unwrap_or_default();
        let columns: Vec<String> = header.split('\t').map(|cell| cell.trim().to_string()).collect();
        if columns.len() == 1 && header.contains([',', ';']) {
            notes.push(format!("{name}: its columns are not separated by tabs"));
        }
        let mut ragged: Vec<usize> = Vec::new();
        let mut rows = Vec::new();
        for (number, line) in lines {
            let mut row: Vec<String> = line.split('\t').map(cell).collect();
            if row.len() != columns.len() {
                ragged.push(number + 1);
                row.resize(columns.len(), String::new());
            }
            rows.push(row);
        }
        if let Some(first) = ragged.first() {
            notes.push(format!(
                "{name}: {} rows do not have the header's {} cells, line {first} first: missing \
                 cells are taken as n/a, further ones ignored",
                ragged.len(),
                columns.len()
            ));
        }
        Self { columns, rows, notes }
    }

    /// Position of a column.
    pub fn column(&self, name: &str) -> Option<usize> {
        self.columns.iter().position(|column| column == name)
    }
}

/// A cell's text; "n/a" and its kin are no value.
fn cell(written: &str) -> String {
    let written = written.trim();
    match written.to_ascii_lowercase().as_str() {
        "n/a" | "na" | "nan" => String::new(),
        _ => written.to_string(),
    }
}

/// The cell at `column` of a row, None where it has no value.
pub(crate) fn value(row: &[String], column: Option<usize>) -> Option<&str> {
    row.get(column?).map(String::as_str).filter(|cell| !cell.is_empty())
}

#[cfg(test)]
mod tests {
    use super::{Table, value};

    #[test]
    fn spreadsheets_are_tolerated() {
        let bytes = b"\xef\xbb\xbfparticipant_id\tage\tsex\r\nsub-1\t 9.5 \tn/a\r\n\r\nsub-2\t8\nsub-3\tNaN\tF\t9\r\n";
        let table = Table::parse(bytes, "participants.tsv");
        assert_eq!(table.columns, ["participant_id", "age", "sex"]);
        assert_eq!(table.rows, [["sub-1", "9.5", ""], ["sub-2", "8", ""], ["sub-3", "", "F"]]);
        assert_eq!(table.notes.len(), 1);
        assert!(table.notes[0].contains("2 rows") && table.notes[0].contains("line 4"));
        assert_eq!(value(&table.rows[0], table.column("sex")), None);
        assert_eq!(value(&table.rows[0], table.column("age")), Some("9.5"));
        assert_eq!(value(&table.rows[0], table.column("handedness")), None);
    }

    #[test]
    fn other_bytes() {
        assert!(Table::parse(b"", "x.tsv").rows.is_empty());
        assert!(Table::parse(b"a,b\n1,2", "x.tsv").notes[0].contains("not separated by tabs"));
        assert_eq!(Table::parse(b"a\n\xb5V", "x.tsv").rows, [["\u{b5}V"]]);
    }
}
