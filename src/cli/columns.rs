//! What the columns of a participants table hold, by their values.

use serde_json::{Value, json};

use super::text;

/// Most different values that still read as classes.
const MOST_CLASSES: usize = 20;
/// Fewest subjects of a class that can be learned and scored at all.
const LEAST_OF_A_CLASS: usize = 2;

/// What a column seems to hold.
#[derive(Debug, Clone, PartialEq)]
pub enum Kind {
    /// Three or more different numbers.
    Numbers {
        /// Smallest.
        min: f64,
        /// Median.
        median: f64,
        /// Largest.
        max: f64,
    },
    /// A few different values, each with its number of subjects, the most frequent first. Two
    /// different numbers are classes as well.
    Classes(Vec<(String, usize)>),
    /// available, caution or unavailable: whether a recording is there, not who took part.
    Availability,
    /// Too many different values for classes, not all of them numbers.
    Text {
        /// Different values.
        distinct: usize,
        /// The first that is no number, and how many are none.
        other: (String, usize),
    },
    /// No value at all.
    Empty,
}

/// A column by its values.
#[derive(Debug, Clone, PartialEq)]
pub struct Column {
    /// Its name.
    pub name: String,
    /// What it seems to hold.
    pub kind: Kind,
    /// Subjects with a value.
    pub present: usize,
    /// Subjects without: n/a or empty.
    pub missing: usize,
}

impl Column {
    /// Looks at a column's values, one a subject, None for n/a. "NaN", which some tables have, is
    /// no value either.
    pub fn of<'a>(name: &str, values: impl IntoIterator<Item = Option<&'a str>>) -> Self {
        let value = |v: Option<&'a str>| v.filter(|v| !v.eq_ignore_ascii_case("nan"));
        let values: Vec<Option<&str>> = values.into_iter().map(value).collect();
        let present: Vec<&str> = values.iter().flatten().copied().collect();
        let missing = values.len() - present.len();
        Self { name: name.to_string(), kind: guess(&present), present: present.len(), missing }
    }

    /// Whether a model could be trained to predict it: numbers, or two or more classes of two
    /// subjects or more each.
    pub fn is_target(&self) -> bool {
        match &self.kind {
            Kind::Numbers { .. } => true,
            Kind::Classes(classes) => {
                classes.len() >= 2 && classes.iter().all(|&(_, n)| n >= LEAST_OF_A_CLASS)
            }
            Kind::Availability | Kind::Text { .. } | Kind::Empty => false,
        }
    }

    /// What it holds, in words.
    pub fn words(&self) -> String {
        match &self.kind {
            Kind::Numbers { min, median, max } => {
                let [min, median, max] = [min, median, max].map(|x| text::number(*x));
                format!("numbers {min} to {max}, median {median}")
            }
            Kind::Classes(classes) => {
                let each: Vec<String> = classes.iter().map(|(c, n)| format!("{c} {n}")).collect();
                format!("classes {}", each.join(", "))
            }
            Kind::Availability => "whether a recording is available".to_string(),
            Kind::Text { distinct, other: (example, n) } => {
                let values = text::count(*distinct, "different value");
                format!("text, {values}; {n} are no numbers, as in \"{example}\"")
            }
            Kind::Empty => "nothing".to_string(),
        }
    }

    /// The same for programs.
    pub fn json(&self) -> Value {
        let mut fields =
            json!({ "name": self.name, "present": self.present, "missing": self.missing });
        let kind = match &self.kind {
            Kind::Numbers { min, median, max } => {
                fields["min"] = json!(min);
                fields["median"] = json!(median);
                fields["max"] = json!(max);
                "numbers"
            }
            Kind::Classes(classes) => {
                let of = |(class, n): &(String, usize)| json!({ "class": class, "subjects": n });
                fields["classes"] = classes.iter().map(of).collect();
                "classes"
            }
            Kind::Availability => "availability",
            Kind::Text { distinct, .. } => {
                fields["distinct"] = json!(distinct);
                "text"
            }
            Kind::Empty => "empty",
        };
        fields["kind"] = kind.into();
        fields
    }
}

fn guess(present: &[&str]) -> Kind {
    if present.is_empty() {
        return Kind::Empty;
    }
    let availability = ["available", "caution", "unavailable"];
    if present.iter().all(|value| availability.contains(value)) {
        return Kind::Availability;
    }
    let number = |value: &str| value.parse::<f64>().ok().filter(|x| x.is_finite());
    let mut numbers: Vec<f64> = present.iter().filter_map(|value| number(value)).collect();
    numbers.sort_by(f64::total_cmp);
    let mut different = numbers.clone();
    different.dedup();
    if let (true, true, [min, .., max]) =
        (numbers.len() == present.len(), different.len() > 2, numbers.as_slice())
    {
        let half = numbers.len() / 2;
        let upper = numbers.get(half).copied().unwrap_or(*max);
        let lower = numbers.get(numbers.len().div_ceil(2) - 1).copied().unwrap_or(*min);
        return Kind::Numbers { min: *min, median: (lower + upper) / 2.0, max: *max };
    }
    let classes = text::tally(present.iter().map(ToString::to_string));
    let repeat =
        classes.len() <= 2 || 2 * classes.len() <= present.len() || numbers.len() == present.len();
    if classes.len() <= MOST_CLASSES && repeat {
        return Kind::Classes(classes);
    }
    let others: Vec<&&str> = present.iter().filter(|value| number(value).is_none()).collect();
    let example = others.first().map(ToString::to_string).unwrap_or_default();
    Kind::Text { distinct: classes.len(), other: (example, others.len()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::rng::Rng;

    fn of(values: &[&str]) -> Column {
        Column::of("x", values.iter().map(|&v| (v != "n/a").then_some(v)))
    }

    #[test]
    fn numbers_have_the_median_of_a_sorted_list() {
        let mut rng = Rng::new(8, 0);
        for n in 3..60 {
            let mut numbers: Vec<f64> = (0..n).map(|_| rng.normal()).collect();
            let written: Vec<String> = numbers.iter().map(f64::to_string).collect();
            let column = Column::of("x", written.iter().map(|v| Some(v.as_str())).chain([None]));
            numbers.sort_by(f64::total_cmp);
            let median = match n % 2 {
                1 => numbers[n / 2],
                _ => (numbers[n / 2 - 1] + numbers[n / 2]) / 2.0,
            };
            let (min, max) = (numbers[0], numbers[n - 1]);
            assert_eq!(column.kind, Kind::Numbers { min, median, max });
            assert!(column.is_target() && (column.present, column.missing) == (n, 1));
        }
    }

    #[test]
    fn few_values_are_classes_and_many_words_are_text() {
        let sex = of(&["F", "M", "n/a", "F", "M", "F"]);
        assert_eq!(sex.kind, Kind::Classes(vec![("F".into(), 3), ("M".into(), 2)]));
        assert!(sex.is_target() && sex.missing == 1);
        assert_eq!(sex.words(), "classes F 3, M 2");
        assert!(of(&["0", "1", "1", "0"]).is_target());
        assert!(matches!(of(&["0", "1", "1", "0"]).kind, Kind::Classes(_)));
        for not_learnable in [
            &["F", "F", "F"][..],
            &["F", "F", "M"],
            &["available", "unavailable", "available", "caution"],
            &["n/a", "n/a"],
            &["left", "right", "both", "none", "either"],
        ] {
            assert!(!of(not_learnable).is_target(), "{not_learnable:?}");
        }
        let mixed = of(&["21", "22.5", "unknown", "23", "24", "NaN", "inf"]);
        assert_eq!(mixed.kind, Kind::Text { distinct: 6, other: ("unknown".into(), 2) });
        assert_eq!((mixed.present, mixed.missing), (6, 1));
        assert_eq!(of(&["1", "1.0", "2"]).words(), "classes 1 1, 1.0 1, 2 1");
        assert_eq!(of(&["n/a"]).kind, Kind::Empty);
    }
}
