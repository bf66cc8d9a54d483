//! NVIDIA's driver, through cudarc's bindings. Nothing of the CUDA toolkit is needed at run time but
//! the driver's own libcuda; cuBLAS is used where it is found. `ENGINE_CUDA_EARLY=0` launches each
//! kernel only when the one before it has ended.
//!
//! # Layout
//! Here the driver; [`facts`], what there is and what is wrong with it; [`function`], kernels'
//! handles and tensor maps; [`library`], cuBLAS; [`buffers`], memory that copies pass through.

mod buffers;
mod facts;
mod function;
mod library;

use std::ffi::{CString, c_int, c_void};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::sync::{Arc, Mutex};

use cudarc::cublas::{result as cublas, sys as blas_sys};
use cudarc::driver::{DriverError, result, sys};

use super::blas::Product;
use super::driver::{Driver, Launch};
use super::images::{self, Image};
use super::staging::{BUFFER, READ, lock};
pub use buffers::Read;
use buffers::{Resources, host_buffer};
use facts::{arch_of, driver_version, failed, refused, version_words};
pub use facts::{count, cublas_is_present, driver_is_present};
pub use function::Function;
use function::{DEFAULT_SHARED, allow_shared, encode};
use library::{Blas, multiply, open_blas};

use crate::backend::{Arch, Machine};
use crate::{Error, Result};

/// Queues a recorded step may spread over.
const LANES: usize = 4;

/// The context of one card. Handles made in it keep it alive.
#[derive(Debug)]
struct Context {
    device: sys::CUdevice,
    context: sys::CUcontext,
    stream: sys::CUstream,
    /// The other lanes of recordings; none where the stream is not the engine's own.
    beside: Vec<sys::CUstream>,
}

// SAFETY: CUDA handles may be used from any thread whose current context is theirs; every use
// below goes through `Context::enter`, which sets it.
unsafe impl Send for Context {}
// SAFETY: as above; the driver locks its own state.
unsafe impl Sync for Context {}

impl Context {
    fn enter(&self) -> Result<()> {
        // SAFETY: the context was retained in `Cuda::open` and is released in `drop`.
        unsafe { result::ctx::set_current(self.context) }
            .map_err(|e| failed("the card's context", e))
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        if !self.beside.is_empty() && self.enter().is_ok() {
            for &stream in std::iter::once(&self.stream).chain(&self.beside) {
                // SAFETY: made in `Cuda::open_on`; nothing that uses them outlives this.
                let _ = unsafe { result::stream::destroy(stream) };
            }
        }
        // SAFETY: retained once in `Cuda::open`.
        let _ = unsafe { result::primary_ctx::release(self.device) };
    }
}

/// One NVIDIA card.
#[derive(Debug)]
pub struct Cuda {
    inner: Arc<Context>,
    arch: Arch,
    name: String,
    driver_version: c_int,
    /// Kernels may start while their predecessor runs: all of them wait for it themselves.
    starts_early: bool,
    lanes: usize,
    /// The lane that is chosen. One caller at a time enqueues, by `Gpu`.
    lane: AtomicUsize,
    /// The chosen lane waits for another: its next kernel starts when both have ended.
    has_waited: AtomicBool,
    modules: Vec<Module>,
    blas: Option<Blas>,
    resources: Arc<Mutex<Resources>>,
}

#[derive(Debug)]
struct Module {
    handle: sys::CUmodule,
    kernels: &'static [&'static str],
}
// SAFETY: a handle of the context; see `Context`.
unsafe impl Send for Module {}
// SAFETY: as above.
unsafe impl Sync for Module {}

impl Cuda {
    /// Opens card number `ordinal`. `sm` makes it take an older card's kernels, so that they can be
    /// checked on it; so does `ENGINE_CUDA_SM=80`.
    ///
    /// # Errors
    /// [`Error::Device`] with what is missing, old, busy or hidden, and what would mend it.
    pub fn open(ordinal: usize, sm: Option<u32>) -> Result<Self> {
        Self::open_on(ordinal, sm, None)
    }

    /// [`Cuda::open`] with work on a stream of the caller's: the address of its `CUstream`, of the
    /// card's primary context, 0 being the default stream. It must outlive what is opened. The
    /// default stream cannot be recorded: steps on it run op by op.
    ///
    /// # Errors
    /// As [`Cuda::open`].
    pub fn open_on(ordinal: usize, sm: Option<u32>, stream: Option<usize>) -> Result<Self> {
        let cards = count()?;
        if ordinal >= cards {
            let problem = format!("card {ordinal} of {cards}");
            return Err(refused(problem, "`engine devices` lists the cards there are"));
        }
        let card = |e| failed("opening the card", e);
        let device = result::device::get(ordinal as c_int).map_err(card)?;
        // SAFETY: `device` is a valid card; released in `Context::drop`.
        let context = unsafe { result::primary_ctx::retain(device) }.map_err(card)?;
        // SAFETY: just retained.
        unsafe { result::ctx::set_current(context) }.map_err(card)?;
        // What waits for nothing must not keep the chain of a step from a multiprocessor.
        let (low, high) = priorities().map_err(card)?;
        let (stream, beside) = match stream {
            Some(address) => (std::ptr::with_exposed_provenance_mut(address), Vec::new()),
            None => {
                let beside =
                    (1..LANES).map(|_| stream_of(low)).collect::<std::result::Result<_, _>>();
                (stream_of(high).map_err(card)?, beside.map_err(card)?)
            }
        };
        let inner = Arc::new(Context { device, context, stream, beside });
        let (mut arch, own) = arch_of(device, sm)?;
        if let Some((problem, remedy)) = images::why_not(own) {
            return Err(refused(problem, &remedy));
        }
        let modules = load_modules(own)?;
        let blas = open_blas(inner.stream)?;
        arch.blas = blas.is_some();
        Ok(Self {
            name: result::device::get_name(device).map_err(card)?,
            driver_version: driver_version()?,
            starts_early: matches!(own, Machine::Cuda { sm } if sm >= 90)
                && images::of(own).into_iter().all(Image::waits)
                && std::env::var("ENGINE_CUDA_EARLY").as_deref() != Ok("0"),
            lanes: match std::env::var("ENGINE_CUDA_LANES").as_deref() {
                Ok("1") => 1,
                _ => 1 + inner.beside.len(),
            },
            lane: AtomicUsize::new(0),
            has_waited: AtomicBool::new(false),
            inner,
            arch,
            modules,
            blas,
            resources: Arc::default(),
        })
    }

    /// The card's name: "NVIDIA H200".
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The newest CUDA its driver knows: "13.0".
    pub fn driver_words(&self) -> String {
        version_words(self.driver_version)
    }

    /// The queue that kernels go to.
    fn lane(&self) -> sys::CUstream {
        let beside = self.lane.load(Relaxed).checked_sub(1).and_then(|i| self.inner.beside.get(i));
        beside.copied().unwrap_or(self.inner.stream)
    }

    /// Version of cuBLAS, where it is there.
    pub fn cublas_version(&self) -> Option<String> {
        let blas = self.blas.as_ref()?;
        let mut version = 0;
        // SAFETY: a live handle; writes one integer.
        let status = unsafe { blas_sys::cublasGetVersion_v2(blas.0, &mut version) };
        let known = status == blas_sys::cublasStatus_t::CUBLAS_STATUS_SUCCESS;
        known.then(|| format!("{}.{}.{}", version / 10000, version / 100 % 100, version % 100))
    }
}

/// The least and the greatest priority of a stream.
fn priorities() -> std::result::Result<(c_int, c_int), DriverError> {
    let (mut low, mut high) = (0, 0);
    // SAFETY: writes two integers.
    unsafe { sys::cuCtxGetStreamPriorityRange(&mut low, &mut high) }.result()?;
    Ok((low, high))
}

/// A stream that does not wait for the default one.
fn stream_of(priority: c_int) -> std::result::Result<sys::CUstream, DriverError> {
    let mut stream = std::ptr::null_mut();
    let flags = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
    // SAFETY: writes one handle, in the current context.
    unsafe { sys::cuStreamCreateWithPriority(&mut stream, flags, priority) }.result()?;
    Ok(stream)
}

fn load_modules(card: Machine) -> Result<Vec<Module>> {
    let load = |image: &Image| {
        // SAFETY: a whole cubin, or PTX with its NUL, made by nvcc and aligned by `images`.
        let module = unsafe { result::module::load_data(image.bytes.as_ptr().cast()) };
        let what = format!("the kernels of {} for {}", image.source, image.arch);
        let handle = module.map_err(|e| failed(&what, e))?;
        Ok(Module { handle, kernels: image.kernels })
    };
    images::of(card).into_iter().map(load).collect()
}

/// A recorded graph.
#[derive(Debug)]
pub struct Graph {
    inner: Arc<Context>,
    exec: sys::CUgraphExec,
}
// SAFETY: see `Context`.
unsafe impl Send for Graph {}
// SAFETY: as above.
unsafe impl Sync for Graph {}

impl Drop for Graph {
    fn drop(&mut self) {
        if self.inner.enter().is_ok() {
            // SAFETY: instantiated in `end_capture`, destroyed once.
            let _ = unsafe { result::graph::exec_destroy(self.exec) };
        }
    }
}

/// A moment of the queue.
#[derive(Debug)]
pub struct Event {
    inner: Arc<Context>,
    event: sys::CUevent,
}
// SAFETY: see `Context`.
unsafe impl Send for Event {}
// SAFETY: as above.
unsafe impl Sync for Event {}

impl Drop for Event {
    fn drop(&mut self) {
        if self.inner.enter().is_ok() {
            // SAFETY: created in `stamp`, destroyed once.
            let _ = unsafe { result::event::destroy(self.event) };
        }
    }
}

impl Driver for Cuda {
    type Function = Function;
    type Graph = Graph;
    type Event = Event;
    type Read = Read;

    fn arch(&self) -> &Arch {
        &self.arch
    }

    fn memory(&self) -> Result<(u64, u64)> {
        self.inner.enter()?;
        let (free, total) = result::mem_get_info().map_err(|e| failed("the card's memory", e))?;
        Ok((free as u64, total as u64))
    }

    fn alloc(&self, bytes: usize) -> Result<u64> {
        self.inner.enter()?;
        // SAFETY: the context is current; freed with the driver.
        match unsafe { result::malloc_sync(bytes) } {
            Ok(address) => {
                lock(&self.resources).chunks.push(address);
                Ok(address)
            }
            Err(DriverError(sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY)) => {
                let (free, total) = self.memory()?;
                Err(Error::OutOfMemory {
                    what: format!("a chunk of {}'s memory", self.name),
                    requested: bytes as u64,
                    held: total - free,
                    capacity: total,
                    remedy: "close other programs on the card, or take a smaller batch".into(),
                })
            }
            Err(error) => Err(failed("memory of the card", error)),
        }
    }

    fn use_pinned(&self, pinned: bool) {
        lock(&self.resources).pageable = !pinned;
    }

    fn free(&self, address: u64) -> Result<()> {
        self.inner.enter()?;
        lock(&self.resources).chunks.retain(|&chunk| chunk != address);
        // SAFETY: memory of `alloc`, which nothing uses any more; the call waits for the card.
        unsafe { result::free_sync(address) }.map_err(|e| failed("giving memory back", e))
    }

    fn upload(&self, to: u64, from: &[u8]) -> Result<()> {
        self.inner.enter()?;
        let copy = |e| failed("a copy to the card", e);
        let mut resources = lock(&self.resources);
        for (i, piece) in from.chunks(BUFFER).enumerate() {
            let place = resources.ring.place(piece.len());
            while resources.staging.len() <= place.buffer {
                let fresh = host_buffer(BUFFER, resources.pageable)?;
                resources.staging.push(fresh);
            }
            let staging = &resources.staging[place.buffer];
            // SAFETY: a live event; the copies that used this buffer before are over after it, and
            // no other is of this place. It has as many bytes as the piece, by `Ring::place`, and
            // `to` as many as `from`, by `Gpu::upload`.
            unsafe {
                if place.anew {
                    result::event::synchronize(staging.used).map_err(copy)?;
                }
                let base = staging.base.add(place.offset);
                std::ptr::copy_nonoverlapping(piece.as_ptr(), base, piece.len());
                let staged = std::slice::from_raw_parts(base, piece.len());
                let to = to + (i * BUFFER) as u64;
                result::memcpy_htod_async(to, staged, self.inner.stream).map_err(copy)?;
                result::event::record(staging.used, self.inner.stream).map_err(copy)?;
            }
        }
        Ok(())
    }

    fn download(&self, from: u64, to: &mut [u8]) -> Result<()> {
        self.inner.enter()?;
        let copy = |e| failed("a copy from the card", e);
        // SAFETY: the card's bytes exist by `Gpu::download`; `to` outlives the copy, which is waited
        // for.
        unsafe {
            result::memcpy_dtoh_async(to, from, self.inner.stream).map_err(copy)?;
            result::stream::synchronize(self.inner.stream).map_err(copy)
        }
    }

    fn begin_read(&self, from: u64, bytes: usize) -> Result<Read> {
        self.inner.enter()?;
        let copy = |e| failed("a copy from the card", e);
        let kept = lock(&self.resources).slot_for(bytes);
        let slot = kept.map_or_else(|| host_buffer(bytes.max(READ), false), Ok)?;
        // SAFETY: the slot has so many bytes and is nobody else's until its `Read` is dropped.
        unsafe {
            let to = std::slice::from_raw_parts_mut(slot.base, bytes);
            result::memcpy_dtoh_async(to, from, self.inner.stream).map_err(copy)?;
            result::event::record(slot.used, self.inner.stream).map_err(copy)?;
        }
        Ok(Read { slot: Some(slot), bytes, resources: Arc::clone(&self.resources) })
    }

    fn end_read(&self, read: &Read) -> Result<Vec<u8>> {
        self.inner.enter()?;
        let Some(slot) = &read.slot else { return Ok(Vec::new()) };
        // SAFETY: the event was recorded after the copy; the bytes are whole after it.
        unsafe {
            result::event::synchronize(slot.used).map_err(|e| failed("work on the card", e))?;
            Ok(std::slice::from_raw_parts(slot.base, read.bytes).to_vec())
        }
    }

    fn function(&self, name: &str, shared: u32) -> Result<Option<Function>> {
        self.inner.enter()?;
        let Ok(symbol) = CString::new(name) else { return Ok(None) };
        // Only the module that has it is asked: to a checker of calls a refusal is an error.
        let Some(module) = self.modules.iter().find(|m| m.kernels.contains(&name)) else {
            return Ok(None);
        };
        // SAFETY: a live module.
        let function = unsafe { result::module::get_function(module.handle, symbol) };
        let function = function.map_err(|error| failed(&format!("kernel {name}"), error))?;
        allow_shared(function, shared, name)?;
        Ok(Some(Function(function)))
    }

    fn launch(&self, launch: &Launch<Function>) -> Result<()> {
        self.inner.enter()?;
        let stage = &launch.stage;
        let maps = launch.maps.iter().map(encode).collect::<Result<Vec<_>>>()?;
        let mut arguments: Vec<*mut c_void> = vec![
            launch.params.as_ptr().cast_mut().cast(),
            std::ptr::from_ref(&launch.operands).cast_mut().cast(),
        ];
        arguments.extend(maps.iter().map(|map| std::ptr::from_ref(map).cast_mut().cast()));
        if stage.shared > DEFAULT_SHARED {
            allow_shared(launch.function.0, stage.shared, &stage.kernel)?;
        }
        let mut early = sys::CUlaunchAttribute {
            id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            pad: [0; 4],
            value: sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
        };
        let [x, y, z] = stage.grid;
        let config = sys::CUlaunchConfig {
            gridDimX: x,
            gridDimY: y,
            gridDimZ: z,
            blockDimX: stage.block,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: stage.shared,
            hStream: self.lane(),
            attrs: &mut early,
            numAttrs: u32::from(self.starts_early && !self.has_waited.swap(false, Relaxed)),
        };
        // SAFETY: the function takes these structs by value (kernels/portable.h), and as many maps as
        // its plan has; its operands are live memory of this card, by the arena. It waits for its
        // predecessor before it reads.
        unsafe {
            sys::cuLaunchKernelEx(
                &config,
                launch.function.0,
                arguments.as_mut_ptr(),
                std::ptr::null_mut(),
            )
        }
        .result()
        .map_err(|e| failed(&format!("kernel {}", stage.kernel), e))
    }

    fn product(&self, product: &Product) -> Result<()> {
        self.inner.enter()?;
        let Some(blas) = &self.blas else {
            return Err(refused("cuBLAS is not there", "give --gemm native"));
        };
        multiply(blas, product, self.arch.wishes.tf32)
    }

    fn sync(&self) -> Result<()> {
        self.inner.enter()?;
        // SAFETY: a live stream.
        unsafe { result::stream::synchronize(self.inner.stream) }
            .map_err(|e| failed("work on the card", e))
    }

    fn begin_capture(&self) -> Result<bool> {
        if self.inner.stream.is_null() {
            return Ok(false);
        }
        self.inner.enter()?;
        self.choose_lane(0)?;
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: a live stream.
        unsafe { result::stream::begin_capture(self.inner.stream, mode) }
            .map_err(|e| failed("recording a step", e))?;
        Ok(true)
    }

    fn end_capture(&self) -> Result<Graph> {
        self.inner.enter()?;
        let record = |e| failed("recording a step", e);
        // SAFETY: the capture was begun on this stream; the graph is destroyed once instantiated.
        unsafe {
            let graph = result::stream::end_capture(self.inner.stream).map_err(record)?;
            let exec = result::graph::instantiate(graph, sys::CUgraphInstantiate_flags(0));
            let destroyed = result::graph::destroy(graph);
            let exec = exec.map_err(record)?;
            destroyed.map_err(record)?;
            result::graph::upload(exec, self.inner.stream).map_err(record)?;
            Ok(Graph { inner: Arc::clone(&self.inner), exec })
        }
    }

    fn launch_graph(&self, graph: &Graph) -> Result<()> {
        self.inner.enter()?;
        // SAFETY: a live graph of this context.
        unsafe { result::graph::launch(graph.exec, self.inner.stream) }
            .map_err(|e| failed("a recorded step", e))
    }

    fn stamp(&self) -> Result<Event> {
        self.inner.enter()?;
        let time = |e| failed("timing", e);
        let event = result::event::create(sys::CUevent_flags::CU_EVENT_DEFAULT).map_err(time)?;
        let event = Event { inner: Arc::clone(&self.inner), event };
        // SAFETY: live handles.
        unsafe { result::event::record(event.event, self.lane()) }.map_err(time)?;
        Ok(event)
    }

    fn lanes(&self) -> usize {
        self.lanes
    }

    fn choose_lane(&self, lane: usize) -> Result<()> {
        self.lane.store(lane, Relaxed);
        Ok(())
    }

    fn wait_for(&self, event: &Event) -> Result<()> {
        self.inner.enter()?;
        self.has_waited.store(true, Relaxed);
        let flags = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
        // SAFETY: live handles; the event was recorded.
        unsafe { result::stream::wait_event(self.lane(), event.event, flags) }
            .map_err(|e| failed("recording a step", e))
    }

    fn elapsed(&self, from: &Event, to: &Event) -> Result<f64> {
        self.inner.enter()?;
        let time = |e| failed("timing", e);
        // SAFETY: live events, both recorded.
        unsafe {
            result::event::synchronize(to.event).map_err(time)?;
            Ok(f64::from(result::event::elapsed(from.event, to.event).map_err(time)?))
        }
    }
}

impl Drop for Cuda {
    fn drop(&mut self) {
        if self.inner.enter().is_err() {
            return;
        }
        let mut resources = lock(&self.resources);
        // SAFETY: the queue is waited for first; each handle is freed once and used by nobody after.
        unsafe {
            let _ = result::stream::synchronize(self.inner.stream);
            resources.take_buffers().for_each(buffers::free);
            for address in resources.chunks.drain(..) {
                let _ = result::free_sync(address);
            }
            if let Some(blas) = self.blas.take() {
                let _ = cublas::destroy_handle(blas.0);
            }
            for module in self.modules.drain(..) {
                let _ = result::module::unload(module.handle);
            }
        }
    }
}
