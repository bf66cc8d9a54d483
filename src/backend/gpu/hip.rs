//! AMD's driver: the HIP runtime of ROCm 5 to 7, opened at run time.
//!
//! # Layout
//! [`Hip`], the driver; [`facts`], what there is of AMD's on this machine and what is wrong with it;
//! `handles`, what frees itself; `library`, which runtime is opened, and its errors in words; `vendor`,
//! hipBLAS; `sys`, declarations made by bindgen from `engine_hip.h` and `engine_hipblas.h`.
//!
//! Variables: `ENGINE_HIP_LIBRARY` and `ENGINE_HIPBLAS_LIBRARY` name the libraries' files,
//! `ENGINE_HIP_IMAGE` a module image instead of those in this program, `ENGINE_HIP_GRAPHS=0` runs steps
//! without graphs.

pub mod facts;
mod handles;
mod library;
#[allow(missing_docs, nonstandard_style, dead_code, unsafe_op_in_unsafe_fn, clippy::all)]
#[rustfmt::skip]
mod sys;
mod vendor;

use std::ffi::{CString, c_int, c_void};
use std::sync::{Arc, Mutex};

pub use self::facts::{count, runtime, warnings};
use self::handles::{Context, Event, Function, Graph, Module, Read, Resources, host_buffer};
use self::library::refused;
use self::sys::hipError_t;
use self::vendor::Blas;
use super::blas::Product;
use super::driver::{Driver, Launch};
use super::images;
use super::staging::{BUFFER, READ, lock};
use crate::backend::Arch;
use crate::{Error, Result};

/// What a desktop with a browser holds of a card's memory, generously.
const DESKTOP: u64 = 1 << 30;

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

impl Hip {
    /// Opens the first card that can be used: a desktop's processor may have one of its own besides.
    ///
    /// # Errors
    /// Where there is none, what is wrong with the first.
    pub fn first(vendor: bool) -> Result<Self> {
        let mut problem = None;
        for ordinal in 0..count()? {
            match Self::open(ordinal, vendor) {
                Ok(card) => return Ok(card),
                Err(error) => problem = problem.or(Some(error)),
            }
        }
        Err(problem.unwrap_or_else(facts::no_card))
    }

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

    /// Bytes of memory to leave alone. A card of RDNA may drive a display, and the runtime does not
    /// count what the desktop holds as taken: filled to the brim, the driver moves the desktop's
    /// memory in and out, and the system stalls.
    pub fn reserve(&self) -> u64 {
        if self.arch.is_rdna() { DESKTOP.min(self.arch.memory / 4) } else { 0 }
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
fn load_modules(context: &Arc<Context>, arch: &Arch) -> Result<Vec<Module>> {
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
    context: &Arc<Context>,
    bytes: &[u8],
    kernels: &'static [&'static str],
    what: &str,
) -> Result<Module> {
    let mut handle = std::ptr::null_mut();
    // SAFETY: a whole image; the runtime copies what it keeps.
    let code =
        unsafe { context.library.runtime.hipModuleLoadData(&mut handle, bytes.as_ptr().cast()) };
    context.check(what, code)?;
    Ok(Module { context: Arc::clone(context), handle, kernels })
}

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

    fn use_pinned(&self, pinned: bool) {
        lock(&self.resources).pageable = !pinned;
    }

    fn free(&self, address: u64) -> Result<()> {
        let hip = self.context.enter()?;
        lock(&self.resources).chunks.retain(|&chunk| chunk != address);
        // SAFETY: memory of `alloc`, which nothing uses any more; the call waits for the card.
        let code = unsafe { hip.hipFree(address as *mut c_void) };
        self.context.check("giving memory back", code)
    }

    fn upload(&self, to: u64, from: &[u8]) -> Result<()> {
        let hip = self.context.enter()?;
        let stream = self.context.stream;
        let check = |code| self.context.check("a copy to the card", code);
        let mut resources = lock(&self.resources);
        for (i, piece) in from.chunks(BUFFER).enumerate() {
            let place = resources.ring.place(piece.len());
            while resources.staging.len() <= place.buffer {
                let fresh = host_buffer(&self.context, BUFFER, resources.pageable)?;
                resources.staging.push(fresh);
            }
            let staging = &resources.staging[place.buffer];
            let to = to + (i * BUFFER) as u64;
            let kind = sys::hipMemcpyHostToDevice as c_int;
            // SAFETY: a live event; the copies that used this buffer before are over after it, and
            // no other is of this place. It has as many bytes as the piece, by `Ring::place`, and
            // `to` as many as `from`, by `Gpu::upload`.
            unsafe {
                if place.anew {
                    check(hip.hipEventSynchronize(staging.used))?;
                }
                let base = staging.base.add(place.offset);
                std::ptr::copy_nonoverlapping(piece.as_ptr(), base, piece.len());
                let staged = base.cast_const().cast();
                check(hip.hipMemcpyAsync(to as *mut c_void, staged, piece.len(), kind, stream))?;
                check(hip.hipEventRecord(staging.used, stream))?;
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
        let hip = self.context.enter()?;
        let check = |code| self.context.check("a copy from the card", code);
        let kept = lock(&self.resources).slot_for(bytes);
        let slot = kept.map_or_else(|| host_buffer(&self.context, bytes.max(READ), false), Ok)?;
        let kind = sys::hipMemcpyDeviceToHost as c_int;
        let stream = self.context.stream;
        // SAFETY: the slot has so many bytes and is nobody else's until its `Read` is dropped.
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
        let hip = self.context.leave();
        let mut resources = lock(&self.resources);
        // SAFETY: the queue is waited for first; each handle is freed once and used by nobody after.
        unsafe {
            hip.hipStreamSynchronize(self.context.stream);
            resources.take_buffers().for_each(|buffer| handles::free(&buffer, hip));
            for address in resources.chunks.drain(..) {
                hip.hipFree(address as *mut c_void);
            }
            if let Some(mut blas) = self.blas.take() {
                blas.close();
            }
        }
    }
}
