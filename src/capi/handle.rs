//! The table behind opaque handles. A handle is a number in a pointer's clothes: no number is given
//! twice, so a freed handle, or one of another kind, is refused with words instead of being followed
//! into memory. An object lives until its handle is freed and the calls that use it have returned.

use std::any::Any;
use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use super::status::{EngineStatus, Failure, Outcome, guard};

/// Something that has handles.
pub(super) trait Object: Any + Send + Sync {
    /// Its C type, as in "engine_model".
    const NAME: &'static str;
}

type Table = HashMap<usize, Arc<dyn Any + Send + Sync>>;

/// Objects of all hosts of this process. It holds no setting: hosts meet here and nowhere else.
static LIVE: RwLock<Option<Table>> = RwLock::new(None);
static NEXT: AtomicUsize = AtomicUsize::new(0);

/// Numbers are no addresses: multiples of 16 begin where no object of a program lies.
const FIRST: usize = 0x1000;

/// Gives an object a handle.
pub(super) fn publish<T: Object>(object: T) -> usize {
    let number = FIRST + 16 * NEXT.fetch_add(1, Ordering::Relaxed);
    let mut live = LIVE.write().unwrap_or_else(PoisonError::into_inner);
    live.get_or_insert_default().insert(number, Arc::new(object));
    number
}

/// The object of a handle.
pub(super) fn find<T: Object>(handle: *const impl Sized) -> Outcome<Arc<T>> {
    let number = handle.addr();
    let found = {
        let live = LIVE.read().unwrap_or_else(PoisonError::into_inner);
        live.as_ref().and_then(|table| table.get(&number)).cloned()
    };
    let problem = match found {
        Some(object) => match object.downcast::<T>() {
            Ok(object) => return Ok(object),
            Err(_) => "is a handle of another kind",
        },
        None if number == 0 => "is null",
        None => "was freed, or was never a handle",
    };
    let remedy = "give a handle that the engine made and that was not freed";
    Err(Failure::with(EngineStatus::Handle, T::NAME, problem, remedy))
}

/// Frees a handle; null is nothing.
pub(super) fn free<T: Object>(handle: *const impl Sized) -> EngineStatus {
    guard(|| {
        if handle.is_null() {
            return Ok(());
        }
        find::<T>(handle)?;
        let mut live = LIVE.write().unwrap_or_else(PoisonError::into_inner);
        let object = live.as_mut().and_then(|table| table.remove(&handle.addr()));
        drop(live);
        // Destructors run without the lock: they may take long, and free other objects.
        drop(object);
        Ok(())
    })
}

/// Handles that are not freed yet, in the whole process: for tests that look for leaks.
#[unsafe(no_mangle)]
pub extern "C" fn engine_live_handles() -> usize {
    let live = LIVE.read().unwrap_or_else(PoisonError::into_inner);
    live.as_ref().map_or(0, HashMap::len)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct A;
    struct B;
    impl Object for A {
        const NAME: &'static str = "engine_a";
    }
    impl Object for B {
        const NAME: &'static str = "engine_b";
    }

    fn pointer(number: usize) -> *const u8 {
        std::ptr::without_provenance(number)
    }

    #[test]
    fn freed_and_foreign_handles_are_refused() {
        let (a, b) = (pointer(publish(A)), pointer(publish(B)));
        assert!(find::<A>(a).is_ok());
        let kind = find::<A>(b).err().expect("of another kind");
        assert!(kind.message.contains("another kind"), "{}", kind.message);
        assert_eq!(free::<B>(a), EngineStatus::Handle);
        assert_eq!(free::<A>(a), EngineStatus::Ok);
        assert_eq!(free::<A>(a), EngineStatus::Handle);
        assert_eq!(free::<A>(pointer(0)), EngineStatus::Ok);
        assert!(find::<A>(a).err().expect("freed").message.contains("freed"));
        assert!(find::<A>(pointer(0)).err().expect("null").message.contains("null"));
        assert_eq!(free::<B>(b), EngineStatus::Ok);
    }
}
