//! Lists of channel names held against each other, in words.

/// As many names as a message lists.
const SHOWN: usize = 4;

/// A few of these names, then how many more there are.
pub fn few(names: &[&str]) -> String {
    let shown = names.iter().take(SHOWN).copied().collect::<Vec<_>>().join(", ");
    match names.len() {
        n if n > SHOWN => format!("{shown} and {} more", n - SHOWN),
        _ => shown,
    }
}

/// The names of `wanted` that are not in `have`, and which of them are there but for upper and lower case;
/// None where all are.
pub fn lacking<'a>(wanted: &'a [String], have: &[&str]) -> Option<String> {
    let lacks: Vec<&'a str> =
        wanted.iter().map(String::as_str).filter(|name| !have.contains(name)).collect();
    let same = |a: &str, b: &str| a.to_lowercase() == b.to_lowercase();
    let alike = lacks.iter().filter_map(|lack| have.iter().copied().find(|name| same(name, lack)));
    let alike: Vec<&str> = alike.collect();
    let hint = match alike.is_empty() {
        true => String::new(),
        false => format!(" (there is {}: upper and lower case count)", few(&alike)),
    };
    (!lacks.is_empty()).then(|| few(&lacks) + &hint)
}

#[cfg(test)]
mod tests {
    use super::lacking;

    #[test]
    fn what_is_missing_is_named_with_what_is_much_like_it() {
        let owned = |text: &str| text.split(' ').map(String::from).collect::<Vec<_>>();
        assert_eq!(lacking(&owned("Fp1 Cz"), &["Cz", "Fp1", "Oz"]), None);
        assert_eq!(lacking(&owned("Fp1 Cz"), &["Cz"]), Some("Fp1".into()));
        let all = lacking(&owned("A B C D E F"), &["c"]).expect("missing");
        assert_eq!(all, "A, B, C, D and 2 more (there is c: upper and lower case count)");
    }
}
