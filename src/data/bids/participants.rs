//! participants.tsv: who took part, and what is known of them.

use std::collections::HashMap;
use std::path::Path;

use super::table::{Table, value};
use crate::{Error, Result};

/// The participants table of a dataset.
#[derive(Debug, Clone, Default)]
pub struct Participants {
    table: Table,
    /// Row of each subject.
    rows: HashMap<String, usize>,
    subjects: Vec<String>,
}

impl Participants {
    /// Reads participants.tsv.
    ///
    /// # Errors
    /// The file cannot be read, or has no column participant_id.
    pub fn read(path: &Path) -> Result<Self> {
        let mut table = Table::read(path)?;
        let Some(id) = table.column("participant_id") else {
            return Err(Error::input(
                path.display(),
                format!("has no column participant_id, but: {}", table.columns.join(", ")),
                "name the column of subjects participant_id, in a table separated by tabs",
            ));
        };
        let (mut rows, mut subjects, mut again) = (HashMap::new(), Vec::new(), Vec::new());
        let mut nameless = 0;
        for (number, row) in table.rows.iter().enumerate() {
            let Some(written) = value(row, Some(id)) else {
                nameless += 1;
                continue;
            };
            let subject = match written.starts_with("sub-") {
                true => written.to_string(),
                false => format!("sub-{written}"),
            };
            if rows.contains_key(&subject) {
                again.push(subject);
            } else {
                rows.insert(subject.clone(), number);
                subjects.push(subject);
            }
        }
        if nameless > 0 {
            table.notes.push(format!("participants.tsv: {nameless} rows name no participant"));
        }
        if !again.is_empty() {
            table.notes.push(format!(
                "participants.tsv: {} listed more than once; the first row counts",
                again.join(", ")
            ));
        }
        Ok(Self { table, rows, subjects })
    }

    /// Columns in file order, participant_id included.
    pub fn columns(&self) -> &[String] {
        &self.table.columns
    }

    /// Subjects in file order, each with its "sub-".
    pub fn subjects(&self) -> &[String] {
        &self.subjects
    }

    /// Whether the table lists a subject, as in "sub-04".
    pub fn contains(&self, subject: &str) -> bool {
        self.rows.contains_key(subject)
    }

    /// A subject's value in a column; None where it is n/a or empty, or either is not there.
    pub fn value(&self, subject: &str, column: &str) -> Option<&str> {
        let row = self.table.rows.get(*self.rows.get(subject)?)?;
        value(row, self.table.column(column))
    }

    /// What was passed over in the table.
    pub fn notes(&self) -> &[String] {
        &self.table.notes
    }
}
