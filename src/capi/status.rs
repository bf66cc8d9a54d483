//! Status codes, the thread's last error, and the guard around every function.

use std::any::Any;
use std::cell::RefCell;
use std::ffi::{CString, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::Error;

/// What a function gives back. Every status but ENGINE_STATUS_OK has a message: engine_last_error.
#[repr(i32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EngineStatus {
    /// It worked.
    Ok = 0,
    /// An argument that is null, out of range, of the wrong shape or type.
    Argument = 1,
    /// A handle that was freed, or is of another kind.
    Handle = 2,
    /// A file, or something in it, that the user can mend.
    Input = 3,
    /// The operating system refused a file.
    Io = 4,
    /// The device's memory, or the limit on it, does not suffice.
    Memory = 5,
    /// A loss, gradient or weight is not finite; the weights are as they were.
    NotFinite = 6,
    /// The device is not there, or failed.
    Device = 7,
    /// The cancel callback asked to stop.
    Cancelled = 8,
    /// A mistake in the engine. The handle in use may be in disorder: free it.
    Internal = 9,
}

/// What a function failed with.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) status: EngineStatus,
    pub(super) message: String,
}

impl Failure {
    /// An argument that cannot be: place, problem, remedy.
    pub(super) fn argument(place: &str, problem: impl ToString, remedy: &str) -> Self {
        Self::with(EngineStatus::Argument, place, problem, remedy)
    }

    pub(super) fn with(
        status: EngineStatus,
        place: &str,
        problem: impl ToString,
        remedy: &str,
    ) -> Self {
        let problem = problem.to_string();
        Self { status, message: format!("{place}: {problem}\n  remedy: {remedy}") }
    }

    /// The host asked to stop.
    pub(super) fn cancelled() -> Self {
        let problem = "stopped: the cancel callback returned other than 0";
        Self::with(EngineStatus::Cancelled, "cancel", problem, "call again to go on")
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let status = match &error {
            Error::Input { .. } => EngineStatus::Input,
            Error::Io { .. } => EngineStatus::Io,
            Error::Shape { .. } => EngineStatus::Argument,
            Error::OutOfMemory { .. } => EngineStatus::Memory,
            Error::NotFinite { .. } => EngineStatus::NotFinite,
            Error::Device { .. } => EngineStatus::Device,
        };
        let remedy = match &error {
            Error::Io { .. } => "\n  remedy: check that the path exists and may be used",
            Error::Shape { .. } => "\n  remedy: engine.h says which shapes the function takes",
            _ => "",
        };
        Self { status, message: format!("{error}{remedy}") }
    }
}

/// Result of everything behind the boundary.
pub(super) type Outcome<T = ()> = Result<T, Failure>;

thread_local! {
    static LAST: RefCell<CString> = RefCell::default();
}

/// Keeps a message for this thread. A NUL inside it would end it early.
fn keep(message: &str) {
    let text = CString::new(message.replace('\0', "?")).unwrap_or_default();
    // While the thread ends, its message may be gone already; nobody can ask for it then.
    let _ = LAST.try_with(|last| last.replace(text));
}

/// Runs the body of a function: errors and panics become a status and the thread's message.
pub(super) fn guard(body: impl FnOnce() -> Outcome) -> EngineStatus {
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => EngineStatus::Ok,
        Ok(Err(failure)) => {
            keep(&failure.message);
            failure.status
        }
        Err(panic) => {
            let what = said(panic.as_ref());
            let remedy = "free the handle in use; report this with the call's arguments";
            keep(&format!("engine: a mistake inside it: {what}\n  remedy: {remedy}"));
            // A payload whose drop panics must not unwind from here.
            std::mem::forget(panic);
            EngineStatus::Internal
        }
    }
}

fn said(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic without words")
}

/// The message of the last call on this thread that failed: place, problem, remedy. "" where none
/// has. Valid until the next call on this thread that fails, or the thread's end; never null.
#[unsafe(no_mangle)]
pub extern "C" fn engine_last_error() -> *const c_char {
    LAST.try_with(|last| last.borrow().as_ptr()).unwrap_or(c"".as_ptr())
}

/// A status in a word, as in "argument". The text is constant; "unknown" for other numbers.
#[unsafe(no_mangle)]
pub extern "C" fn engine_status_name(status: i32) -> *const c_char {
    let names = [
        c"ok",
        c"argument",
        c"handle",
        c"input",
        c"io",
        c"memory",
        c"not finite",
        c"device",
        c"cancelled",
        c"internal",
    ];
    let known = usize::try_from(status).ok().and_then(|i| names.get(i));
    known.unwrap_or(&c"unknown").as_ptr()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::CStr;

    fn last() -> String {
        // SAFETY: the pointer is to this thread's text, which nothing replaces meanwhile.
        unsafe { CStr::from_ptr(engine_last_error()) }.to_string_lossy().into_owned()
    }

    #[test]
    fn a_panic_becomes_a_status_with_words() {
        assert_eq!(guard(|| panic!("planted {}", 7)), EngineStatus::Internal);
        assert!(last().contains("planted 7") && last().contains("remedy"), "{}", last());
        assert_eq!(guard(|| panic!("plain")), EngineStatus::Internal);
        assert!(last().contains("plain"), "{}", last());
    }

    #[test]
    fn messages_are_the_thread_s_own() {
        let failing = || Err(Failure::argument("here", "mine\0", "none"));
        assert_eq!(guard(failing), EngineStatus::Argument);
        assert_eq!(std::thread::spawn(last).join().expect("joins"), "");
        assert_eq!(last(), "here: mine?\n  remedy: none");
        assert_eq!(guard(|| Ok(())), EngineStatus::Ok);
        assert!(last().starts_with("here"), "success leaves the message alone");
    }
}
