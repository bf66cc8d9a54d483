//! Signals that were never downloaded: datalad and git-annex leave a broken link or a short text
//! in their place, git-lfs a short text.

use std::fs;
use std::io::Read;
use std::path::Path;

use crate::{Error, Result};

/// Pointers are a few lines; no signal file is as short as this.
const LONGEST_POINTER: u64 = 1024;

/// What stands where the signal should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pointer {
    /// A link into `.git/annex/objects` whose target is absent, or git-annex's pointer text.
    Annex,
    /// git-lfs's pointer text.
    Lfs,
    /// A link to nothing, of no known maker.
    BrokenLink,
}

impl Pointer {
    /// What is wrong, in a few words.
    pub fn problem(self) -> &'static str {
        match self {
            Self::Annex => "the signal was never downloaded: this is a git-annex pointer to it",
            Self::Lfs => "the signal was never downloaded: this is a git-lfs pointer to it",
            Self::BrokenLink => "a link whose target does not exist",
        }
    }

    /// The command that brings the file.
    pub fn remedy(self, path: &Path) -> String {
        let path = path.display();
        match self {
            Self::Annex => format!("get it with: datalad get {path}   (or: git annex get {path})"),
            Self::Lfs => format!("get it with: git lfs pull --include {path}"),
            Self::BrokenLink => "restore the link's target or remove the link".to_string(),
        }
    }
}

/// The pointer at `path`, None where there is a real file, or nothing at all.
pub(crate) fn find(path: &Path) -> Option<Pointer> {
    let link = fs::symlink_metadata(path).ok()?.file_type().is_symlink();
    let Ok(target) = fs::metadata(path) else {
        let to = link.then(|| fs::read_link(path).ok()).flatten()?;
        let annex = to.to_string_lossy().replace('\\', "/").contains(".git/annex");
        return Some(if annex { Pointer::Annex } else { Pointer::BrokenLink });
    };
    if !target.is_file() || target.len() > LONGEST_POINTER {
        return None;
    }
    let mut bytes = Vec::new();
    fs::File::open(path).ok()?.take(LONGEST_POINTER).read_to_end(&mut bytes).ok()?;
    let text = std::str::from_utf8(&bytes).ok()?;
    if text.starts_with("/annex/objects") || text.contains(".git/annex") {
        Some(Pointer::Annex)
    } else if text.starts_with("version https://git-lfs") {
        Some(Pointer::Lfs)
    } else {
        None
    }
}

/// An error where `path` is a pointer to a signal that is not there.
pub(crate) fn check(path: &Path) -> Result<()> {
    match find(path) {
        Some(pointer) => Err(Error::input(path.display(), pointer.problem(), pointer.remedy(path))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::{Pointer, check, find};

    #[test]
    fn pointers_are_told_from_files() {
        let dir = tempfile::tempdir().unwrap();
        let cases: [(&str, &[u8], Option<Pointer>); 6] = [
            ("annex.edf", b"/annex/objects/MD5E-s6231--d41d8cd98f.edf\n", Some(Pointer::Annex)),
            ("path.edf", b"../../.git/annex/objects/Xk/0p/MD5E-s1", Some(Pointer::Annex)),
            (
                "lfs.edf",
                b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n",
                Some(Pointer::Lfs),
            ),
            ("short.edf", b"0       too short", None),
            ("binary.edf", &[0xff, 0xfe, 0, 1, 200], None),
            ("long.edf", &[b'/'; 4096], None),
        ];
        for (name, bytes, expect) in cases {
            let path = dir.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            assert_eq!(find(&path), expect, "{name}");
        }
        assert_eq!(find(&dir.path().join("absent.edf")), None);
        let error = check(&dir.path().join("annex.edf")).unwrap_err().to_string();
        assert!(error.contains("never downloaded") && error.contains("datalad get "), "{error}");
    }

    #[cfg(unix)]
    #[test]
    fn broken_links() {
        let dir = tempfile::tempdir().unwrap();
        let annex = dir.path().join("a.bdf");
        std::os::unix::fs::symlink("../.git/annex/objects/1/2/MD5E-s9.bdf", &annex).unwrap();
        assert_eq!(find(&annex), Some(Pointer::Annex));
        let other = dir.path().join("b.bdf");
        std::os::unix::fs::symlink("nowhere.bdf", &other).unwrap();
        assert_eq!(find(&other), Some(Pointer::BrokenLink));
    }
}
