//! BIDS file names: `sub-01_ses-2_task-rest_run-1_eeg.edf`.

/// A file name taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Name {
    /// Pairs of key and label in order, as in ("task", "rest").
    pub entities: Vec<(String, String)>,
    /// The last part, as in "eeg"; "" where the name ends in an entity.
    pub suffix: String,
    /// Lower case, without the dot.
    pub extension: String,
}

impl Name {
    pub fn parse(file: &str) -> Option<Self> {
        let (stem, extension) = file.rsplit_once('.')?;
        let mut parts: Vec<&str> = stem.split('_').collect();
        let suffix = match parts.last() {
            Some(last) if !last.contains('-') => parts.pop().unwrap_or_default().to_string(),
            _ => String::new(),
        };
        let pair = |part: &str| part.split_once('-').map(|(k, v)| (k.to_string(), v.to_string()));
        let entities: Option<Vec<_>> = parts.into_iter().map(pair).collect();
        Some(Self { entities: entities?, suffix, extension: extension.to_lowercase() })
    }

    /// The label of an entity, as in `get("task")`.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.entities.iter().find(|(k, _)| k == key).map(|(_, label)| label.as_str())
    }

    /// Whether this sidecar describes `recording`: every entity it names is one of the
    /// recording's.
    pub fn applies_to(&self, recording: &Name) -> bool {
        self.entities.iter().all(|(key, label)| recording.get(key) == Some(label))
    }
}

#[cfg(test)]
mod tests {
    use super::Name;

    #[test]
    fn names() {
        let name = Name::parse("sub-NDAR1_ses-02_task-rest_run-1_eeg.EDF").unwrap();
        assert_eq!((name.suffix.as_str(), name.extension.as_str()), ("eeg", "edf"));
        assert_eq!(
            (name.get("task"), name.get("run"), name.get("acq")),
            (Some("rest"), Some("1"), None)
        );
        assert!(Name::parse("task-rest_eeg.json").unwrap().applies_to(&name));
        assert!(Name::parse("eeg.json").unwrap().applies_to(&name));
        assert!(!Name::parse("task-video_eeg.json").unwrap().applies_to(&name));
        assert!(!Name::parse("acq-a_eeg.json").unwrap().applies_to(&name));
        assert_eq!(Name::parse("sub-1_task-rest.edf").unwrap().suffix, "");
        assert_eq!(Name::parse("some_file.edf"), None);
        assert_eq!(Name::parse("README"), None);
    }
}
