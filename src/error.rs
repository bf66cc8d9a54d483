//! The engine's one error type. A message names the place, what is wrong there, and the remedy.

use std::fmt::Display;
use std::path::{Path, PathBuf};

/// Result of every fallible call of the engine.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong, by who can mend it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Something the caller gave: a flag, a field of a file, a folder. The program exits with 2.
    #[error("{place}: {problem}\n  remedy: {remedy}")]
    Input {
        /// The file, field or flag.
        place: String,
        /// What is wrong with it.
        problem: String,
        /// What to do about it.
        remedy: String,
    },
    /// The operating system refused: a path that cannot be read or written. Exits with 2.
    #[error("{}: cannot {action}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What was attempted, as in "read", "create the folder".
        action: &'static str,
        /// The system's reason.
        source: std::io::Error,
    },
    /// Operands do not fit each other. A caller of the library sees this, the program never should.
    #[error("{op}: {problem}")]
    Shape {
        /// The op that refused.
        op: &'static str,
        /// Which operand, what was expected, what came.
        problem: String,
    },
    /// The device's memory (or the limit set on it) does not hold what was asked.
    #[error(
        "out of memory for {what}: {requested} bytes asked, {held} held of {capacity}\n  remedy: {remedy}"
    )]
    OutOfMemory {
        /// The tensor and its shape.
        what: String,
        /// Bytes asked.
        requested: u64,
        /// Bytes held when asked.
        held: u64,
        /// Bytes there are.
        capacity: u64,
        /// The batch that would fit, where it is known.
        remedy: String,
    },
    /// A loss, gradient or weight stopped being a number. Exits with 3.
    #[error("step {step}: {tensor} is not finite\n  remedy: {remedy}")]
    NotFinite {
        /// Optimizer step, counted from 1.
        step: u64,
        /// Name of the tensor.
        tensor: String,
        /// How to go on from the last good checkpoint.
        remedy: String,
    },
    /// The device or its library failed in the middle of work.
    #[error("{device}: {problem}\n  remedy: {remedy}")]
    Device {
        /// The device's name.
        device: String,
        /// What it reported.
        problem: String,
        /// What to do about it.
        remedy: String,
    },
}

impl Error {
    /// An [`Error::Input`] from its three parts.
    pub fn input(place: impl Display, problem: impl Display, remedy: impl Display) -> Self {
        Self::Input {
            place: place.to_string(),
            problem: problem.to_string(),
            remedy: remedy.to_string(),
        }
    }

    /// For `map_err` on file operations: `.map_err(Error::io(path, "read"))`.
    pub fn io(path: impl AsRef<Path>, action: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.as_ref().to_path_buf();
        move |source| Self::Io { path, action, source }
    }

    /// An [`Error::Shape`].
    pub fn shape(op: &'static str, problem: impl Display) -> Self {
        Self::Shape { op, problem: problem.to_string() }
    }

    /// Exit status of the program for this error: 2 for what the user can mend, 3 for a diverged
    /// training, 1 otherwise.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Input { .. } | Self::Io { .. } | Self::OutOfMemory { .. } => 2,
            Self::NotFinite { .. } => 3,
            Self::Shape { .. } | Self::Device { .. } => 1,
        }
    }
}
