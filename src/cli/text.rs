//! Numbers, lists and tables in words.

use std::path::Path;

/// Bytes in binary units: "312 B", "4.8 KiB", "118 MiB", "1.2 GiB".
pub fn bytes(n: u64) -> String {
    let mut value = n as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if value < 1023.5 {
            let decimals = usize::from(value < 9.95 && unit != "B");
            return format!("{value:.decimals$} {unit}");
        }
        value /= 1024.0;
    }
    format!("{value:.1} TiB")
}

/// "1 subject", "40 subjects".
pub fn count(n: usize, one: &str) -> String {
    let plural = if n == 1 { "" } else { "s" };
    format!("{n} {one}{plural}")
}

/// Up to four significant digits, without zeros at the end: "12.34", "0.5", "1200".
pub fn number(x: f64) -> String {
    let magnitude = if x == 0.0 { 0.0 } else { x.abs().log10().floor() };
    if !(-4.0..9.0).contains(&magnitude) {
        return format!("{x:.3e}");
    }
    let decimals = (3.0 - magnitude).max(0.0) as usize;
    let text = format!("{x:.decimals$}");
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_string(),
        false => text,
    }
}

/// A path as a word of a shell's command line.
pub fn shell_word(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_alphanumeric() || "/._-+=:,@%".contains(c);
    match !text.is_empty() && text.chars().all(plain) {
        true => text,
        false => format!("'{}'", text.replace('\'', r"'\''")),
    }
}

/// Rows as lines, two blanks in front and between columns; the last column is not padded.
pub fn table(rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = Vec::new();
    for row in rows {
        widths.resize(widths.len().max(row.len()), 0);
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |row: &Vec<String>| {
        let cells: String =
            row.iter().zip(&widths).map(|(cell, &width)| format!("  {cell:<width$}")).collect();
        format!("{}\n", cells.trim_end())
    };
    rows.iter().map(line).collect()
}

/// Each different item with its number, the most frequent first, equals by name.
pub fn tally<T: Ord>(items: impl IntoIterator<Item = T>) -> Vec<(T, usize)> {
    let mut counts = std::collections::BTreeMap::new();
    for item in items {
        *counts.entry(item).or_insert(0) += 1;
    }
    let mut counts: Vec<(T, usize)> = counts.into_iter().collect();
    counts.sort_by_key(|&(_, n)| std::cmp::Reverse(n));
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_in_words() {
        for (n, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (123_731_968, "118 MiB"),
            (1_288_490_189, "1.2 GiB"),
            (11 << 40, "11.0 TiB"),
        ] {
            assert_eq!(bytes(n), text);
        }
        for (x, text) in [
            (0.0, "0"),
            (12.3456, "12.35"),
            (-0.6031, "-0.6031"),
            (2000.0, "2000"),
            (123_456.7, "123457"),
            (1.0e-7, "1.000e-7"),
            (21.0, "21"),
        ] {
            assert_eq!(number(x), text);
        }
        assert_eq!((count(1, "file"), count(0, "file")), ("1 file".into(), "0 files".into()));
    }

    #[test]
    fn paths_survive_a_shell() {
        for name in ["a b", "it's", "$HOME", "plain/x-1_y.z", "", "né", "*"] {
            let echoed = std::process::Command::new("sh")
                .args(["-c", &format!("printf %s {}", shell_word(Path::new(name)))])
                .output();
            let Ok(echoed) = echoed else { return eprintln!("skipped: no sh here") };
            assert_eq!(String::from_utf8_lossy(&echoed.stdout), name);
        }
    }

    #[test]
    fn rows_align_and_the_frequent_come_first() {
        let row = |cells: &[&str]| cells.iter().map(ToString::to_string).collect::<Vec<_>>();
        let text = table(&[row(&["µV", "1", "x y"]), row(&["longer", "23"])]);
        assert_eq!(text, "  µV      1   x y\n  longer  23\n");
        assert_eq!(tally("bccab".chars()), [('b', 2), ('c', 2), ('a', 1)]);
    }
}
