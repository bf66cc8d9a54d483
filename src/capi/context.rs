//! A context: one device (and, on a card, one stream) with the host's callbacks.

use std::ffi::{CStr, CString, c_char, c_void};
use std::mem::{offset_of, size_of};
use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::handle::{self, Object};
use super::status::{EngineStatus, Failure, Outcome, guard};
use crate::backend::cpu::Cpu;
use crate::backend::gpu::cuda::Cuda;
use crate::backend::gpu::driver::Driver;
use crate::backend::gpu::hip::Hip;
use crate::backend::gpu::{Gpu, cuda};
use crate::backend::{Arch, Backend};
use crate::train::planner::{budget, host_memory};

/// A device with its memory, its threads or stream, and the host's callbacks. Calls may come from
/// any thread; those on one context take turns. Make it with engine_context_new.
pub struct EngineContext;

/// Importance of a message: informative.
pub const ENGINE_LOG_INFO: i32 = 0;
/// Importance of a message: something was left out or done otherwise than asked.
pub const ENGINE_LOG_WARNING: i32 = 1;

/// Gets a message (ENGINE_LOG_INFO, ENGINE_LOG_WARNING), on the thread that called the engine or on
/// one that works for it. The text is valid during the call. It must not use the same context.
pub type EngineLog =
    Option<unsafe extern "C" fn(level: i32, message: *const c_char, user: *mut c_void)>;

/// Asked now and then during long calls, on the thread that called the engine or on one that works
/// for it: anything but 0 ends the call with ENGINE_STATUS_CANCELLED. It must not use the same context.
pub type EngineCancel = Option<unsafe extern "C" fn(user: *mut c_void) -> i32>;

/// How a context is made. Start from ENGINE_OPTIONS_INIT: a member that is 0 has its default.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct EngineOptions {
    /// sizeof(engine_options) of the program.
    pub size: usize,
    /// "cpu" (also null), "cuda", "hip", or "auto": the first card that works, else the CPU.
    pub device: *const c_char,
    /// Which card of that maker, from 0.
    pub ordinal: u32,
    /// Threads of a CPU context; 0: one a core. Results do not depend on it.
    pub threads: u32,
    /// Bytes of the device's memory that may be used; 0: what is free now.
    pub memory: u64,
    /// Other than 0: work goes to `stream`, else to a stream of the context's own. Cards only.
    pub use_stream: i32,
    /// The host's cudaStream_t, CUstream or hipStream_t, of the device's primary context; null: the
    /// default stream. It must outlive the context.
    pub stream: *mut c_void,
    /// Folder for what reading a recording leaves behind, to be used again; null: a temporary one,
    /// removed after each call. UTF-8.
    pub cache_dir: *const c_char,
    /// Where messages go; null: nowhere.
    pub log: EngineLog,
    /// Given to `log`.
    pub log_user: *mut c_void,
    /// Asked whether to stop; null: never.
    pub cancel: EngineCancel,
    /// Given to `cancel`.
    pub cancel_user: *mut c_void,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self {
            size: size_of::<Self>(),
            device: std::ptr::null(),
            ordinal: 0,
            threads: 0,
            memory: 0,
            use_stream: 0,
            stream: std::ptr::null_mut(),
            cache_dir: std::ptr::null(),
            log: None,
            log_user: std::ptr::null_mut(),
            cancel: None,
            cancel_user: std::ptr::null_mut(),
        }
    }
}

/// Reads a structure that begins with its size, as the host knows it: members that the host does not
/// know are 0, and members that this library does not know must be.
///
/// # Safety
/// `from` is null or points to as many readable bytes as its first member says; a `T` of zero bytes is
/// valid.
pub(super) unsafe fn sized<T: Copy>(from: *const T, name: &str, least: usize) -> Outcome<T> {
    let remedy = "start from the initialiser that engine.h defines for it";
    if from.is_null() {
        return Err(Failure::argument(name, "is null", remedy));
    }
    // SAFETY: not null, so it has a size in front, by this function's contract.
    let size = unsafe { from.cast::<usize>().read_unaligned() };
    if size < least || size > 64 * size_of::<T>() {
        let problem = format!("says that it has {size} bytes; version 1 has {least}");
        return Err(Failure::argument(name, problem, remedy));
    }
    // SAFETY: `size` bytes are readable by this function's contract, and a T of zeros is valid.
    unsafe {
        let bytes = std::slice::from_raw_parts(from.cast::<u8>(), size);
        if bytes.get(size_of::<T>()..).unwrap_or_default().iter().any(|&byte| byte != 0) {
            let problem = "has members set that this library does not know";
            return Err(Failure::argument(
                name,
                problem,
                "use the library of the header's version",
            ));
        }
        let mut value = std::mem::zeroed::<T>();
        let known = usize::min(size, size_of::<T>());
        std::ptr::copy_nonoverlapping(bytes.as_ptr(), std::ptr::from_mut(&mut value).cast(), known);
        Ok(value)
    }
}

/// A text of the host's.
///
/// # Safety
/// `text` is null or points to a text with its NUL that does not change meanwhile.
pub(super) unsafe fn text<'a>(text: *const c_char, name: &str) -> Outcome<Option<&'a str>> {
    if text.is_null() {
        return Ok(None);
    }
    // SAFETY: not null, hence a text, by this function's contract.
    let text = unsafe { CStr::from_ptr(text) };
    let bad = |_| Failure::argument(name, "is not valid UTF-8", "give the text in UTF-8");
    text.to_str().map(Some).map_err(bad)
}

/// The host's functions.
struct Callbacks {
    log: EngineLog,
    log_user: *mut c_void,
    cancel: EngineCancel,
    cancel_user: *mut c_void,
}

// SAFETY: the pointers are only given back to the host's functions, which engine.h says are called
// from the engine's threads too.
unsafe impl Send for Callbacks {}
// SAFETY: as above.
unsafe impl Sync for Callbacks {}

/// Where ops run.
pub(super) enum Device {
    /// Arrays are the host's.
    Cpu(Arc<Cpu>),
    /// Arrays are the card's.
    Card(Arc<dyn Backend>),
}

/// What a handle of a context stands for.
pub(super) struct Context {
    pub(super) device: Device,
    /// Held by whoever allocates from the backend, records on it or runs ops by its queue: what
    /// another thread did meanwhile would become a part of the recording.
    turn: Mutex<()>,
    cache_dir: Option<PathBuf>,
    callbacks: Callbacks,
}

impl Object for Context {
    const NAME: &'static str = "engine_context";
}

impl Context {
    /// The device as models and training see it.
    pub(super) fn backend(&self) -> Arc<dyn Backend> {
        match &self.device {
            Device::Cpu(cpu) => Arc::clone(cpu) as Arc<dyn Backend>,
            Device::Card(card) => Arc::clone(card),
        }
    }

    pub(super) fn arch(&self) -> &Arch {
        match &self.device {
            Device::Cpu(cpu) => cpu.arch(),
            Device::Card(card) => card.arch(),
        }
    }

    /// Waits for this caller's turn at the backend. Whoever holds a model or trainer asks for it
    /// after that one's lock.
    pub(super) fn turn(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Fails where the host wants to stop.
    pub(super) fn check_cancelled(&self) -> Outcome {
        if self.is_cancelled() { Err(Failure::cancelled()) } else { Ok(()) }
    }

    /// True where the host wants to stop.
    pub(super) fn is_cancelled(&self) -> bool {
        let Callbacks { cancel, cancel_user, .. } = self.callbacks;
        // SAFETY: the host's function with the host's pointer, as engine.h describes.
        cancel.is_some_and(|cancel| unsafe { cancel(cancel_user) } != 0)
    }

    /// Tells the host something.
    pub(super) fn say(&self, level: i32, message: &str) {
        let Some(log) = self.callbacks.log else { return };
        let text = CString::new(message.replace('\0', "?")).unwrap_or_default();
        // SAFETY: as above; the text outlives the call.
        unsafe { log(level, text.as_ptr(), self.callbacks.log_user) }
    }

    /// A folder for caches.
    pub(super) fn cache(&self) -> Outcome<Folder> {
        match &self.cache_dir {
            Some(dir) => Ok(Folder { path: dir.clone(), temporary: false }),
            None => Folder::temporary(),
        }
    }
}

/// Something on a context's device that goes when nobody else is at work there.
pub(super) struct Held<T> {
    value: Option<T>,
    pub(super) context: Arc<Context>,
}

impl<T> Held<T> {
    pub(super) fn new(value: T, context: Arc<Context>) -> Self {
        Self { value: Some(value), context }
    }
}

impl<T> Deref for Held<T> {
    type Target = T;
    fn deref(&self) -> &T {
        self.value.as_ref().expect("taken by drop alone")
    }
}

impl<T> DerefMut for Held<T> {
    fn deref_mut(&mut self) -> &mut T {
        self.value.as_mut().expect("taken by drop alone")
    }
}

impl<T> Drop for Held<T> {
    fn drop(&mut self) {
        let _turn = self.context.turn();
        drop(self.value.take());
    }
}

/// A folder, removed with this value where it is temporary.
pub(super) struct Folder {
    path: PathBuf,
    temporary: bool,
}

impl Folder {
    fn temporary() -> Outcome<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("engine-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path)
            .map_err(|error| crate::Error::io(&path, "create the folder")(error))?;
        Ok(Self { path, temporary: true })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if self.temporary {
            // What cannot be removed stays with the system's other temporary files.
            let _ = std::fs::remove_dir_all(&self.path);
        }
    }
}

/// Bytes for a CPU context where the system does not say what is free.
const MEMORY_UNKNOWN: u64 = 4 << 30;

fn open_cpu(options: &EngineOptions) -> Outcome<Device> {
    if options.use_stream != 0 {
        let remedy = "set it only for \"cuda\" or \"hip\"";
        return Err(Failure::argument("options.use_stream", "the CPU has no streams", remedy));
    }
    if options.threads > 4096 {
        let problem = format!("{} is more than 4096", options.threads);
        return Err(Failure::argument("options.threads", problem, "give 0 for one a core"));
    }
    let free = || host_memory().map_or(MEMORY_UNKNOWN, |memory| memory.available);
    let limit = if options.memory == 0 { free() } else { options.memory };
    Ok(Device::Cpu(Arc::new(Cpu::new(options.threads as usize, limit)?)))
}

fn card<D: Driver>(driver: D, options: &EngineOptions) -> Outcome<Device> {
    let (free, _) = driver.memory()?;
    let limit = if options.memory == 0 { budget(free) } else { options.memory };
    let mut arch = driver.arch().clone();
    arch.memory = limit;
    Ok(Device::Card(Arc::new(Gpu::new(driver, arch, limit))))
}

fn open_device(name: &str, options: &EngineOptions) -> Outcome<(Device, Option<String>)> {
    let stream = (options.use_stream != 0).then_some(options.stream as usize);
    let ordinal = options.ordinal as usize;
    let open_cuda = || -> Outcome<Device> {
        card(Cuda::open_on(ordinal, None, stream).map_err(Failure::from)?, options)
    };
    let open_hip = || -> Outcome<Device> {
        card(Hip::open_on(ordinal, false, stream).map_err(Failure::from)?, options)
    };
    match name {
        "cpu" => Ok((open_cpu(options)?, None)),
        "cuda" => Ok((open_cuda()?, None)),
        "hip" => Ok((open_hip()?, None)),
        "auto" => {
            let why = match open_cuda() {
                Ok(device) => return Ok((device, None)),
                Err(error) => error.message,
            };
            let why = match open_hip() {
                Ok(device) => return Ok((device, None)),
                Err(_) if cuda::driver_is_present() => why,
                Err(error) => error.message,
            };
            Ok((open_cpu(options)?, Some(format!("no card is used: {why}"))))
        }
        other => {
            let problem = format!("{other:?} is no device");
            let remedy = "give \"cpu\", \"cuda\", \"hip\" or \"auto\"";
            Err(Failure::argument("options.device", problem, remedy))
        }
    }
}

/// Writes a handle to where the host wants it.
///
/// # Safety
/// `to` is null or may be written to.
pub(super) unsafe fn give<H>(to: *mut *mut H, make: impl FnOnce() -> Outcome<usize>) -> Outcome {
    if to.is_null() {
        let remedy = "point it to a variable for the handle";
        return Err(Failure::argument("out", "is null", remedy));
    }
    let number = make()?;
    // SAFETY: not null, hence writable by this function's contract.
    unsafe { to.write(std::ptr::without_provenance_mut(number)) };
    Ok(())
}

/// Opens a device. `options` may be null: a CPU context with defaults.
///
/// # Safety
/// `options` is null or points to an engine_options whose `size` is right and whose texts end with
/// NUL; its callbacks, their pointers and `stream` stay valid until the context is freed and the last
/// call that uses it has returned. `out` is null or may be written to.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn engine_context_new(
    options: *const EngineOptions,
    out: *mut *mut EngineContext,
) -> EngineStatus {
    let make = || -> Outcome<usize> {
        let options = if options.is_null() {
            EngineOptions::default()
        } else {
            let least = offset_of!(EngineOptions, cancel_user) + size_of::<*mut c_void>();
            // SAFETY: by this function's contract; its members may all be zero.
            unsafe { sized(options, "options", least)? }
        };
        // SAFETY: texts of the host's, by this function's contract.
        let (device, cache_dir) = unsafe {
            (
                text(options.device, "options.device")?.unwrap_or("cpu"),
                text(options.cache_dir, "options.cache_dir")?,
            )
        };
        let (device, why) = open_device(device, &options)?;
        let context = Context {
            device,
            turn: Mutex::default(),
            cache_dir: cache_dir.map(PathBuf::from),
            callbacks: Callbacks {
                log: options.log,
                log_user: options.log_user,
                cancel: options.cancel,
                cancel_user: options.cancel_user,
            },
        };
        if let Some(why) = why {
            context.say(ENGINE_LOG_WARNING, &why);
        }
        context.say(ENGINE_LOG_INFO, &format!("device {}", context.arch().name));
        Ok(handle::publish(context))
    };
    // SAFETY: by this function's contract.
    guard(|| unsafe { give(out, make) })
}

/// Frees a context; null is nothing. Models and trainers that were made of it go on working, so it
/// may be freed first.
#[unsafe(no_mangle)]
pub extern "C" fn engine_context_free(context: *mut EngineContext) -> EngineStatus {
    handle::free::<Context>(context)
}

/// Waits until all work of a context is done. Calls on host arrays have waited already; those on a
/// card's arrays have not.
#[unsafe(no_mangle)]
pub extern "C" fn engine_context_sync(context: *const EngineContext) -> EngineStatus {
    guard(|| Ok(handle::find::<Context>(context)?.backend().sync()?))
}

/// Facts about a context's device.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct EngineDeviceInfo {
    /// sizeof(engine_device_info) of the program.
    pub size: usize,
    /// Other than 0: arrays of kernels lie in a card's memory (ENGINE_DEVICE).
    pub is_card: i32,
    /// Threads, multiprocessors or compute units.
    pub units: u32,
    /// Bytes of memory it may use.
    pub memory: u64,
    /// Bytes of it in use.
    pub memory_used: u64,
    /// "cpu avx512", "sm_90", "gfx1010": a text that ends with NUL.
    pub name: [c_char; 64],
}

/// Tells about a context's device. `info->size` must be set (ENGINE_DEVICE_INFO_INIT).
///
/// # Safety
/// `info` is null or points to as many writable bytes as its `size` says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn engine_context_get_info(
    context: *const EngineContext,
    info: *mut EngineDeviceInfo,
) -> EngineStatus {
    guard(|| {
        let context = handle::find::<Context>(context)?;
        let (arch, used) = (context.arch(), context.backend().memory());
        let mut found = EngineDeviceInfo {
            size: 0,
            is_card: i32::from(matches!(context.device, Device::Card(_))),
            units: arch.units,
            memory: arch.memory,
            memory_used: used.held + used.step_peak,
            name: [0; 64],
        };
        let room = found.name.len() - 1;
        for (to, &byte) in found.name[..room].iter_mut().zip(arch.name.as_bytes()) {
            *to = byte.cast_signed() as c_char;
        }
        // SAFETY: by this function's contract.
        unsafe { give_sized(info, found, size_of::<EngineDeviceInfo>(), "info") }
    })
}

/// Writes a structure that begins with its size, as far as the host knows it; `least` bytes of it are
/// known to every host.
///
/// # Safety
/// `to` is null or points to as many writable bytes as its first member says.
pub(super) unsafe fn give_sized<T: Copy>(
    to: *mut T,
    value: T,
    least: usize,
    name: &str,
) -> Outcome {
    let size = match to.is_null() {
        true => 0,
        // SAFETY: not null, so it has a size in front, by this function's contract.
        false => unsafe { to.cast::<usize>().read_unaligned() },
    };
    if size < least || size > 64 * size_of::<T>() {
        let problem = format!("is null or its size ({size}) is not set");
        let remedy = "start from the initialiser that engine.h defines for it";
        return Err(Failure::argument(name, problem, remedy));
    }
    let known = usize::min(size, size_of::<T>());
    // SAFETY: `size` bytes may be written; the host's size stays in front.
    unsafe {
        to.cast::<u8>().write_bytes(0, size);
        std::ptr::copy_nonoverlapping(std::ptr::from_ref(&value).cast(), to.cast::<u8>(), known);
        to.cast::<usize>().write_unaligned(size);
    }
    Ok(())
}
