//! AMD's driver: the HIP runtime of ROCm 5 to 7, opened at run time.
//!
//! # Layout
//! [`Hip`], the driver; `library`, which runtime is opened, and its errors in words; `vendor`, hipBLAS;
//! `sys`, declarations made by bindgen from `engine_hip.h` and `engine_hipblas.h`.
//!
//! Variables: `ENGINE_HIP_LIBRARY` and `ENGINE_HIPBLAS_LIBRARY` name the libraries' files,
//! `ENGINE_HIP_IMAGE` a module image instead of those in this program, `ENGINE_HIP_GRAPHS=0` runs steps
//! without graphs.

mod library;
#[allow(missing_docs, nonstandard_style, dead_code, unsafe_op_in_unsafe_fn, clippy::all)]
#[rustfmt::skip]
mod sys;
mod vendor;

use std::ffi::{CString, c_int, c_void};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use self::library::{Library, refused};
use self::sys::{hipError_t, hipEvent_t, hipStream_t};
use self::vendor::Blas;
use super::blas::Product;
use super::driver::{Driver, Launch};
use super::images;
use crate::backend::Arch;
use crate::{Error, Result};

/// Bytes of one pinned buffer that uploads pass through.
const STAGING: usize = 16 << 20;
/// Pinned buffers in turn: the host fills one while the card reads another.
const STAGINGS: usize = 3;
/// Largest copy to the host that a slot of [`Driver::begin_read`] holds.
const READ: usize = 256;

/// One card's stream. Handles made beside it keep it alive.
#[derive(Debug)]
struct Context {
    library: &'static Library,
    device: c_int,
    stream: hipStream_t,
    /// The stream was made here, and is destroyed here.
    owned: bool,
}

// SAFETY: HIP handles may be used from any thread that has chosen their card; every use below goes
// through `Context::enter`, which does.
unsafe impl Send for Context {}
// SAFETY: as above; the driver locks its own state.
unsafe impl Sync for Context {}

impl Context {
    /// Chooses the card for this thread.
    fn enter(&self) -> Result<&HipCalls> {
        // SAFETY: a card that was counted.
        let code = unsafe { self.library.runtime.hipSetDevice(self.device) };
        self.check("choosing the card", code)?;
        Ok(&self.library.runtime)
    }

    fn check(&self, what: &str, code: hipError_t) -> Result<()> {
        self.library.check(what, code)
    }
}

type HipCalls = sys::runtime::HipLib;

impl Drop for Context {
    fn drop(&mut self) {
        if self.owned
            && let Ok(hip) = self.enter()
        {
            // SAFETY: made in `Hip::open_on`; nothing that uses it outlives this.
            unsafe { hip.hipStreamDestroy(self.stream) };
        }
    }
}

/// Pinned memory of the host.
#[derive(Debug)]
struct Pinned {
    base: *mut u8,
    /// Recorded after the copy that used it last.
    used: hipEvent_t,
}

// SAFETY: plain memory and an event, used under the lock of their owner.
unsafe impl Send for Pinned {}
// SAFETY: as above.
unsafe impl Sync for Pinned {}

impl Pinned {
    /// `context` has been entered.
    fn new(context: &Context, bytes: usize) -> Result<Self> {
        let hip = &context.library.runtime;
        let mut base: *mut c_void = std::ptr::null_mut();
        let mut used = std::ptr::null_mut();
        // SAFETY: both write one handle; freed in `Hip::drop`.
        unsafe {
            let code = hip.hipHostMalloc(&mut base, bytes, sys::hipHostMallocDefault);
            context.check("pinned memory of the host", code)?;
            let code = hip.hipEventCreateWithFlags(&mut used, sys::hipEventDisableTiming);
            context.check("an event", code)?;
        }
        Ok(Self { base: base.cast(), used })
    }
}

/// What grows while the driver is in use.
#[derive(Debug, Default)]
struct Resources {
    chunks: Vec<u64>,
    staging: Vec<Pinned>,
    next: usize,
    /// Slots of finished reads, to be used again.
    free_reads: Vec<Pinned>,
}

/// A loaded image, and the kernels it is known to hold; empty: any.
#[derive(Debug)]
struct Module {
    handle: sys::hipModule_t,
    kernels: &'static [&'static str],
}
// SAFETY: a handle of the card; see `Context`.
unsafe impl Send for Module {}
// SAFETY: as above.
unsafe impl Sync for Module {}

/// One AMD card.
#[derive(Debug)]
pub struct Hip {
    context: Arc<Context>,
    arch: Arch,
    name: String,
    modules: Vec<Module>,
    blas: Option<Blas>,
    graphs: bool,
    resources: Arc<Mutex<Resources>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Number of cards.
///
/// # Errors
/// [`Error::Device`] with what is missing and what would mend it.
pub fn count() -> Result<usize> {
    library::open()?.count()
}

/// The runtime that was opened and its version: ("libamdhip64.so.6", "6.3").
///
/// # Errors
/// [`Error::Device`] where there is none.
pub fn runtime() -> Result<(String, Option<String>)> {
    let library = library::open()?;
    Ok((library.name.clone(), library.version()))
}

/// What is set on this machine that is known to do harm, each with its remedy.
pub fn warnings() -> Vec<String> {
    let set = std::env::var("HSA_OVERRIDE_GFX_VERSION");
    let warn = |version: String| {
        format!(
            "HSA_OVERRIDE_GFX_VERSION={version} makes the card take another card's code, which has \
             crashed systems; this program has code for the card itself: unset it"
        )
    };
    set.into_iter().map(warn).collect()
}

impl Hip {
    /// Opens card number `ordinal`. hipBLAS is opened where its files for the card are there; on
    /// RDNA1, only if `vendor` asks for it as well.
    ///
    /// # Errors
    /// [`Error::Device`] with what is missing, old, busy or hidden, and what would mend it.
    pub fn open(ordinal: usize, vendor: bool) -> Result<Self> {
        Self::open_on(ordinal, vendor, None)
    }

    /// [`Hip::open`] with work on a stream of the caller's: the address of its `hipStream_t`, 0 being
    /// the default stream. It must outlive what is opened. The default stream cannot be recorded:
    /// steps on it run op by op.
    ///
    /// # Errors
    /// As [`Hip::open`].
    pub fn open_on(ordinal: usize, vendor: bool, stream: Option<usize>) -> Result<Self> {
        let library = library::open()?;
        let cards = library.count()?;
        let device = c_int::try_from(ordinal).unwrap_or(c_int::MAX);
        if ordinal >= cards {
            let problem = format!("card {ordinal} of {cards}");
            return Err(refused(problem, "`engine devices` lists the cards there are"));
        }
        // SAFETY: a card that was counted.
        library.check("choosing the card", unsafe { library.runtime.hipSetDevice(device) })?;
        let owned = stream.is_none();
        let mut stream = stream.map_or(std::ptr::null_mut(), std::ptr::with_exposed_provenance_mut);
        if owned {
            let flags = sys::hipStreamNonBlocking;
            // SAFETY: writes one handle.
            let code = unsafe { library.runtime.hipStreamCreateWithFlags(&mut stream, flags) };
            library.check("opening the card", code)?;
        }
        let context = Arc::new(Context { library, device, stream, owned });
        let mut arch = library.arch(device)?;
        let modules = load_modules(&context, &arch)?;
        let blas = match arch.is_rdna1() && !vendor {
            true => None,
            false => Blas::open(&arch.name, stream.cast())?,
        };
        arch.blas = blas.is_some();
        Ok(Self {
            name: library.card_name(device)?,
            context,
            arch,
            modules,
            blas,
            graphs: std::env::var_os("ENGINE_HIP_GRAPHS").is_none_or(|value| value != "0"),
            resources: Arc::default(),
        })
    }

    /// The card's name: "AMD Radeon RX 5600 XT".
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where rocBLAS' files for the card lie, where hipBLAS is in use.
    pub fn blas_files(&self) -> Option<&std::path::Path> {
        self.blas.as_ref().map(Blas::files)
    }

    fn out_of_memory(&self, bytes: usize) -> Error {
        let (free, total) = self.memory().unwrap_or((0, self.arch.memory));
        let own: u64 = total - free;
        Error::OutOfMemory {
            what: format!("a chunk of {}'s memory", self.name),
            requested: bytes as u64,
            held: own,
            capacity: total,
            remedy: "close other programs on the card, or take a smaller batch".into(),
        }
    }
}

/// Loads the program's kernels for a card, or the image that ENGINE_HIP_IMAGE names.
fn load_modules(context: &Context, arch: &Arch) -> Result<Vec<Module>> {
    if let Some(path) = std::env::var_os("ENGINE_HIP_IMAGE") {
        let mut bytes = std::fs::read(&path).map_err(Error::io(&path, "read"))?;
        bytes.push(0);
        let what = format!("the image {}", path.to_string_lossy());
        return Ok(vec![load(context, &bytes, &[], &what)?]);
    }
    if let Some((problem, remedy)) = images::why_not(arch.machine) {
        return Err(refused(problem, remedy));
    }
    let load = |image: &images::Image| {
        let what = format!("the kernels of {} for {}", image.source, arch.name);
        load(context, image.bytes, image.kernels, &what)
    };
    images::of(arch.machine).into_iter().map(load).collect()
}

fn load(
    context: &Context,
    bytes: &[u8],
    kernels: &'static [&'static str],
    what: &str,
) -> Result<Module> {
    let mut handle = std::ptr::null_mut();
    // SAFETY: a whole image; the runtime copies what it keeps.
    let code =
        unsafe { context.library.runtime.hipModuleLoadData(&mut handle, bytes.as_ptr().cast()) };
    context.check(what, code)?;
    Ok(Module { handle, kernels })
}

/// A recorded graph.
#[derive(Debug)]
pub struct Graph {
    context: Arc<Context>,
    exec: sys::hipGraphExec_t,
}
// SAFETY: see `Context`.
unsafe impl Send for Graph {}
// SAFETY: as above.
unsafe impl Sync for Graph {}

impl Drop for Graph {
    fn drop(&mut self) {
        if let Ok(hip) = self.context.enter() {
            // SAFETY: live handles; the graph may still be running, so it is waited for.
            unsafe {
                hip.hipStreamSynchronize(self.context.stream);
                hip.hipGraphExecDestroy(self.exec);
            }
        }
    }
}

/// A moment in the queue.
#[derive(Debug)]
pub struct Event {
    context: Arc<Context>,
    event: hipEvent_t,
}
// SAFETY: see `Context`.
unsafe impl Send for Event {}
// SAFETY: as above.
unsafe impl Sync for Event {}

impl Drop for Event {
    fn drop(&mut self) {
        if let Ok(hip) = self.context.enter() {
            // SAFETY: a live event, destroyed once.
            unsafe { hip.hipEventDestroy(self.event) };
        }
    }
}

/// A copy to the host that is under way. Its slot is used again once it is dropped.
#[derive(Debug)]
pub struct Read {
    slot: Option<Pinned>,
    bytes: usize,
    resources: Arc<Mutex<Resources>>,
    // Dropped after the slot has gone back.
    _context: Arc<Context>,
}

impl Drop for Read {
    fn drop(&mut self) {
        lock(&self.resources).free_reads.extend(self.slot.take());
    }
}

/// A kernel's handle.
#[derive(Debug, Clone, Copy)]
pub struct Function(sys::hipFunction_t);
// SAFETY: see `Context`.
unsafe impl Send for Function {}
// SAFETY: as above.
unsafe impl Sync for Function {}

impl Driver for Hip {
    type Function = Function;
    type Graph = Graph;
    type Event = Event;
    type Read = Read;

    fn arch(&self) -> &Arch {
        &self.arch
    }

    fn memory(&self) -> Result<(u64, u64)> {
        let hip = self.context.enter()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: writes two integers.
        let code = unsafe { hip.hipMemGetInfo(&mut free, &mut total) };
        self.context.check("the card's memory", code)?;
        Ok((free as u64, total as u64))
    }

    fn alloc(&self, bytes: usize) -> Result<u64> {
        let hip = self.context.enter()?;
        let mut address: *mut c_void = std::ptr::null_mut();
        // SAFETY: writes one address; freed with the driver.
        let code = unsafe { hip.hipMalloc(&mut address, bytes) };
        if code == sys::hipErrorOutOfMemory as hipError_t {
            return Err(self.out_of_memory(bytes));
        }
        self.context.check("memory of the card", code)?;
        lock(&self.resources).chunks.push(address as u64);
        Ok(address as u64)
    }

    fn upload(&self, to: u64, from: &[u8]) -> Result<()> {
        let hip = self.context.enter()?;
        let stream = self.context.stream;
        let check = |code| self.context.check("a copy to the card", code);
        let mut resources = lock(&self.resources);
        for (i, piece) in from.chunks(STAGING).enumerate() {
            if resources.staging.len() < STAGINGS {
                let fresh = Pinned::new(&self.context, STAGING)?;
                resources.staging.push(fresh);
            }
            let at = resources.next % resources.staging.len();
            resources.next += 1;
            let pinned = &resources.staging[at];
            let to = to + (i * STAGING) as u64;
            let kind = sys::hipMemcpyHostToDevice as c_int;
            // SAFETY: a live event; the copy that used this buffer last is over after it. The
            // buffer has STAGING bytes, and `to` as many as `from`, by `Gpu::upload`.
            unsafe {
                check(hip.hipEventSynchronize(pinned.used))?;
                std::ptr::copy_nonoverlapping(piece.as_ptr(), pinned.base, piece.len());
                let staged = pinned.base.cast_const().cast();
                check(hip.hipMemcpyAsync(to as *mut c_void, staged, piece.len(), kind, stream))?;
                check(hip.hipEventRecord(pinned.used, stream))?;
            }
        }
        Ok(())
    }

    fn download(&self, from: u64, to: &mut [u8]) -> Result<()> {
        let hip = self.context.enter()?;
        let kind = sys::hipMemcpyDeviceToHost as c_int;
        let stream = self.context.stream;
        // SAFETY: the card's bytes exist by `Gpu::download`; `to` outlives the copy, which is waited
        // for.
        unsafe {
            let from = from as *const c_void;
            let code = hip.hipMemcpyAsync(to.as_mut_ptr().cast(), from, to.len(), kind, stream);
            self.context.check("a copy from the card", code)?;
            self.context.check("work on the card", hip.hipStreamSynchronize(stream))
        }
    }

    fn begin_read(&self, from: u64, bytes: usize) -> Result<Read> {
        if bytes > READ {
            return Err(Error::shape("download_later", format!("{bytes} bytes at once")));
        }
        let hip = self.context.enter()?;
        let check = |code| self.context.check("a copy from the card", code);
        let kept = lock(&self.resources).free_reads.pop();
        let slot = kept.map_or_else(|| Pinned::new(&self.context, READ), Ok)?;
        let kind = sys::hipMemcpyDeviceToHost as c_int;
        let stream = self.context.stream;
        // SAFETY: the slot has READ bytes and is nobody else's until its `Read` is dropped.
        unsafe {
            let from = from as *const c_void;
            check(hip.hipMemcpyAsync(slot.base.cast(), from, bytes, kind, stream))?;
            check(hip.hipEventRecord(slot.used, stream))?;
        }
        let (resources, _context) = (Arc::clone(&self.resources), Arc::clone(&self.context));
        Ok(Read { slot: Some(slot), bytes, resources, _context })
    }

    fn end_read(&self, read: &Read) -> Result<Vec<u8>> {
        let hip = self.context.enter()?;
        let Some(slot) = &read.slot else { return Ok(Vec::new()) };
        // SAFETY: the event was recorded after the copy; the bytes are whole after it.
        unsafe {
            self.context.check("work on the card", hip.hipEventSynchronize(slot.used))?;
            Ok(std::slice::from_raw_parts(slot.base, read.bytes).to_vec())
        }
    }

    fn function(&self, name: &str, _shared: u32) -> Result<Option<Function>> {
        let hip = self.context.enter()?;
        let Ok(symbol) = CString::new(name) else { return Ok(None) };
        let may_hold = |m: &&Module| m.kernels.is_empty() || m.kernels.contains(&name);
        for module in self.modules.iter().filter(may_hold) {
            let mut function = std::ptr::null_mut();
            // SAFETY: a live module; writes one handle.
            let code =
                unsafe { hip.hipModuleGetFunction(&mut function, module.handle, symbol.as_ptr()) };
            if code == sys::hipErrorNotFound as hipError_t {
                continue;
            }
            self.context.check(&format!("kernel {name}"), code)?;
            return Ok(Some(Function(function)));
        }
        Ok(None)
    }

    fn launch(&self, launch: &Launch<Function>) -> Result<()> {
        let hip = self.context.enter()?;
        let stage = &launch.stage;
        let mut arguments: [*mut c_void; 2] = [
            launch.params.as_ptr().cast_mut().cast(),
            std::ptr::from_ref(&launch.operands).cast_mut().cast(),
        ];
        let [x, y, z] = stage.grid;
        let (function, shared, stream) = (launch.function.0, stage.shared, self.context.stream);
        // SAFETY: the function takes these two structs by value (kernels/portable.h); its operands
        // are live memory of this card, by the arena.
        let code = unsafe {
            let (params, extra) = (arguments.as_mut_ptr(), std::ptr::null_mut());
            let block = stage.block;
            hip.hipModuleLaunchKernel(function, x, y, z, block, 1, 1, shared, stream, params, extra)
        };
        if code == sys::hipSuccess as hipError_t {
            return Ok(());
        }
        let geometry = format!("{:?} blocks of {} threads", stage.grid, stage.block);
        let what = format!("kernel {} ({geometry}, {shared} bytes of LDS)", stage.kernel);
        Err(self.context.library.failed(&what, code))
    }

    fn product(&self, product: &Product) -> Result<()> {
        self.context.enter()?;
        match &self.blas {
            Some(blas) => blas.multiply(product),
            None => Err(refused("hipBLAS is not there", "give --gemm native")),
        }
    }

    fn sync(&self) -> Result<()> {
        let hip = self.context.enter()?;
        // SAFETY: a live stream.
        let code = unsafe { hip.hipStreamSynchronize(self.context.stream) };
        self.context.check("work on the card", code)
    }

    /// Not where hipBLAS is in use: rocBLAS loads code and takes memory at a shape's first product,
    /// which a recording does not allow.
    fn begin_capture(&self) -> Result<bool> {
        if !self.graphs || self.blas.is_some() || self.context.stream.is_null() {
            return Ok(false);
        }
        let hip = self.context.enter()?;
        let mode = sys::hipStreamCaptureModeThreadLocal as c_int;
        // SAFETY: a live stream.
        let code = unsafe { hip.hipStreamBeginCapture(self.context.stream, mode) };
        self.context.check("recording a step", code)?;
        Ok(true)
    }

    fn end_capture(&self) -> Result<Graph> {
        let hip = self.context.enter()?;
        let check = |code| self.context.check("recording a step", code);
        let (mut graph, mut exec) = (std::ptr::null_mut(), std::ptr::null_mut());
        let none = std::ptr::null_mut();
        // SAFETY: the capture was begun on this stream; the graph is destroyed once instantiated.
        unsafe {
            check(hip.hipStreamEndCapture(self.context.stream, &mut graph))?;
            let made = hip.hipGraphInstantiate(&mut exec, graph, none, std::ptr::null_mut(), 0);
            let destroyed = hip.hipGraphDestroy(graph);
            check(made)?;
            let graph = Graph { context: Arc::clone(&self.context), exec };
            check(destroyed)?;
            Ok(graph)
        }
    }

    fn launch_graph(&self, graph: &Graph) -> Result<()> {
        let hip = self.context.enter()?;
        // SAFETY: a live graph of this card.
        let code = unsafe { hip.hipGraphLaunch(graph.exec, self.context.stream) };
        self.context.check("a recorded step", code)
    }

    fn stamp(&self) -> Result<Event> {
        let hip = self.context.enter()?;
        let mut event = std::ptr::null_mut();
        // SAFETY: writes one handle, which `Event` destroys; then records it.
        unsafe {
            self.context.check("timing", hip.hipEventCreateWithFlags(&mut event, 0))?;
            let event = Event { context: Arc::clone(&self.context), event };
            let code = hip.hipEventRecord(event.event, self.context.stream);
            self.context.check("timing", code)?;
            Ok(event)
        }
    }

    fn elapsed(&self, from: &Event, to: &Event) -> Result<f64> {
        let hip = self.context.enter()?;
        let mut milliseconds = 0.0;
        // SAFETY: live events, both recorded; writes one float.
        unsafe {
            self.context.check("work on the card", hip.hipEventSynchronize(to.event))?;
            let code = hip.hipEventElapsedTime(&mut milliseconds, from.event, to.event);
            self.context.check("timing", code)?;
        }
        Ok(f64::from(milliseconds))
    }
}

impl Drop for Hip {
    fn drop(&mut self) {
        let Ok(hip) = self.context.enter() else { return };
        let mut resources = lock(&self.resources);
        // SAFETY: the queue is waited for first; each handle is freed once and used by nobody after.
        unsafe {
            hip.hipStreamSynchronize(self.context.stream);
            let staging = std::mem::take(&mut resources.staging);
            for Pinned { base, used } in staging.into_iter().chain(resources.free_reads.drain(..)) {
                hip.hipEventDestroy(used);
                hip.hipHostFree(base.cast());
            }
            for address in resources.chunks.drain(..) {
                hip.hipFree(address as *mut c_void);
            }
            if let Some(mut blas) = self.blas.take() {
                blas.close();
            }
            for module in self.modules.drain(..) {
                hip.hipModuleUnload(module.handle);
            }
        }
    }
}
