//! The CPU backend: always there, and the reference of every other one.

pub mod host;
pub mod parallel;
pub mod real;
pub mod scratch;
pub mod simd;

use std::fmt::Display;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use half::{bf16, f16};
use host::HostIo;
use rayon::ThreadPool;
use simd::memory::{HostMemory, with_lent};
pub use simd::memory::{Lent, LentMut};

use super::null::check_copy;
use super::route::Wishes;
use super::{
    Arch, Arena, Backend, Io, MAX_OPERANDS, Machine, Mem, MemoryUse, Op, Replay, Timed,
    operand_bytes,
};
use crate::tensor::View;
use crate::{DType, Error, Result};

#[derive(Debug)]
struct Noted {
    op: Box<dyn Op>,
    views: Box<[View]>,
    inputs: usize,
    place: Place,
}

/// What a profile says of an op besides its time.
#[derive(Debug, Default)]
struct Place {
    scope: String,
    live: u64,
}

impl Noted {
    fn new(op: Box<dyn Op>, io: Io<'_>, place: Place) -> Self {
        Self { op, views: [io.inputs, io.outputs].concat().into(), inputs: io.inputs.len(), place }
    }

    fn io(&self) -> Io<'_> {
        let (inputs, outputs) = self.views.split_at(self.inputs);
        Io { inputs, outputs }
    }
}

/// A recorded step.
struct Recorded {
    ops: Vec<Noted>,
    /// Its addresses are in the step's memory.
    _needs_memory: Arc<()>,
}

/// f32 stand-ins for 16-bit operands of one launch.
#[derive(Debug, Default)]
struct Scratch {
    address: u64,
    bytes: usize,
}

/// The host's processor as a backend.
#[derive(Debug)]
pub struct Cpu {
    arch: Arch,
    arena: Arc<Arena>,
    memory: Arc<HostMemory>,
    pool: ThreadPool,
    noted: Mutex<Option<Vec<Noted>>>,
    /// As many as there are recordings, and one.
    recordings: Arc<()>,
    scratch: Mutex<Scratch>,
    scope: Mutex<String>,
    profile: Mutex<Option<Profile>>,
    /// Held by the one caller whose work is in the pool. Taken outside it: a worker that waits for
    /// a piece of its op must never pick up another caller's op.
    turn: Mutex<()>,
}

/// What was timed so far.
#[derive(Debug)]
struct Profile {
    start: Option<Instant>,
    timed: Vec<Timed>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Cpu {
    /// A backend of `threads` threads (0: one per core) that may use `limit` bytes.
    ///
    /// # Errors
    /// [`Error::Device`] when the threads cannot be started.
    pub fn new(threads: usize, limit: u64) -> Result<Self> {
        let threads = match threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            n => n,
        };
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|i| format!("engine-cpu-{i}"))
            .build()
            .map_err(|error| Error::Device {
                device: "cpu".into(),
                problem: error.to_string(),
                remedy: "ask for fewer `--threads`".into(),
            })?;
        let arch = Arch {
            name: format!("cpu {}", instruction_set()),
            machine: Machine::Cpu,
            wave: 1,
            units: threads as u32,
            memory: limit,
            shared: 0,
            matrix_cores: false,
            bf16: false,
            blas: false,
            wishes: Wishes::default(),
        };
        Ok(Self {
            arch,
            arena: Arena::new(limit),
            memory: Arc::default(),
            pool,
            noted: Mutex::default(),
            recordings: Arc::default(),
            scratch: Mutex::default(),
            scope: Mutex::default(),
            profile: Mutex::default(),
            turn: Mutex::default(),
        })
    }

    fn grow(&self, bytes: usize) -> Result<u64> {
        self.memory.grow(bytes)
    }

    /// Runs an op on arrays of the caller's, without a copy. The op decides how long each must be.
    ///
    /// # Errors
    /// [`Error::Shape`] for operands that do not fit the op.
    pub fn run_lent(
        &self,
        op: &dyn Op,
        inputs: &[Lent<'_>],
        outputs: &mut [LentMut<'_>],
    ) -> Result<()> {
        let _turn = lock(&self.turn);
        self.pool
            .install(|| with_lent(inputs, outputs, |operands| op.host(&mut HostIo::new(operands))))
    }

    /// Runs `work` on a thread of the pool, where the calls in it need no hand-over.
    #[cfg(test)]
    pub(crate) fn inside<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        self.pool.install(work)
    }

    /// Runs an op that somebody else keeps.
    pub(in crate::backend) fn run_ref(&self, op: &dyn Op, io: Io<'_>) -> Result<()> {
        let _turn = lock(&self.turn);
        self.pool.install(|| self.execute_plain(op, io))
    }

    fn execute(&self, op: &dyn Op, io: Io<'_>, place: &Place) -> Result<()> {
        let begun = Instant::now();
        let done = self.execute_plain(op, io);
        if let Some(profile) = lock(&self.profile).as_mut() {
            let ms = begun.elapsed().as_secs_f64() * 1e3;
            let first = *profile.start.get_or_insert(begun);
            profile.timed.push(Timed {
                op: op.name(),
                scope: place.scope.clone(),
                start_ms: (begun - first).as_secs_f64() * 1e3,
                ms,
                bytes: operand_bytes(io),
                live: place.live,
            });
        }
        done
    }

    /// Where an op stands that is noted or run now.
    fn place(&self) -> Place {
        Place { scope: lock(&self.scope).clone(), live: self.arena.usage().live() }
    }

    fn execute_plain(&self, op: &dyn Op, io: Io<'_>) -> Result<()> {
        let narrow = |view: &View| matches!(view.dtype, DType::Bf16 | DType::F16);
        if io.inputs.iter().chain(io.outputs).any(narrow) {
            return self.execute_widened(op, io);
        }
        self.memory.with(io, |operands| op.host(&mut HostIo::new(operands)))
    }

    /// Runs `op` on f32 copies of its 16-bit operands and rounds the results back.
    fn execute_widened(&self, op: &dyn Op, io: Io<'_>) -> Result<()> {
        if io.inputs.len() + io.outputs.len() > 2 * MAX_OPERANDS {
            return Err(Error::shape(op.name(), "too many operands"));
        }
        let mut scratch = lock(&self.scratch);
        let wide_bytes = |view: &View| (view.span_bytes() * 2).next_multiple_of(64);
        let needed = io.inputs.iter().chain(io.outputs).map(wide_bytes).sum();
        if needed > scratch.bytes {
            let bytes = usize::max(needed, 2 * scratch.bytes);
            *scratch = Scratch { address: self.memory.grow(bytes)?, bytes };
        }
        let mut next = scratch.address;
        let mut widen = |view: &View| {
            if !matches!(view.dtype, DType::Bf16 | DType::F16) {
                return *view;
            }
            let wide = View { address: next, dtype: DType::F32, ..*view };
            next += wide_bytes(view) as u64;
            wide
        };
        let Some(&first) = io.inputs.first().or(io.outputs.first()) else { return Ok(()) };
        let mut flat = [first; 2 * MAX_OPERANDS];
        for (slot, view) in flat.iter_mut().zip(io.inputs.iter().chain(io.outputs)) {
            *slot = widen(view);
        }
        let count = io.inputs.len() + io.outputs.len();
        let (inputs, outputs) = flat[..count].split_at(io.inputs.len());
        for (narrow, wide) in io.inputs.iter().chain(io.outputs).zip(&flat) {
            self.convert(narrow, wide)?;
        }
        let wide_io = Io { inputs, outputs };
        self.memory.with(wide_io, |operands| op.host(&mut HostIo::new(operands)))?;
        for (narrow, wide) in io.outputs.iter().zip(outputs) {
            self.convert(wide, narrow)?;
        }
        Ok(())
    }

    /// Copies between a 16-bit view and its f32 stand-in; nothing to do for other types.
    fn convert(&self, from: &View, to: &View) -> Result<()> {
        if from.dtype == to.dtype {
            return Ok(());
        }
        let io = Io { inputs: &[*from], outputs: &[*to] };
        self.memory.with(io, |mut operands| {
            match (from.dtype, to.dtype) {
                (DType::Bf16, DType::F32) => {
                    let pairs =
                        operands.output::<f32>(0)?.iter_mut().zip(operands.input::<bf16>(0)?);
                    pairs.for_each(|(to, from)| *to = from.to_f32());
                }
                (DType::F16, DType::F32) => {
                    let pairs =
                        operands.output::<f32>(0)?.iter_mut().zip(operands.input::<f16>(0)?);
                    pairs.for_each(|(to, from)| *to = from.to_f32());
                }
                (DType::F32, DType::Bf16) => {
                    let pairs =
                        operands.output::<bf16>(0)?.iter_mut().zip(operands.input::<f32>(0)?);
                    pairs.for_each(|(to, from)| *to = bf16::from_f32(*from));
                }
                (DType::F32, DType::F16) => {
                    let pairs =
                        operands.output::<f16>(0)?.iter_mut().zip(operands.input::<f32>(0)?);
                    pairs.for_each(|(to, from)| *to = f16::from_f32(*from));
                }
                _ => {}
            }
            Ok(())
        })
    }
}

/// The widest vectors the kernels will use here.
fn instruction_set() -> &'static str {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") {
            return "avx512";
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            return "avx2";
        }
    }
    if cfg!(target_arch = "aarch64") { "neon" } else { "baseline" }
}

impl Backend for Cpu {
    fn arch(&self) -> &Arch {
        &self.arch
    }

    fn alloc(&self, bytes: usize, what: &dyn Display) -> Result<Mem> {
        self.arena.alloc(bytes, what, &|bytes| self.grow(bytes))
    }

    fn upload(&self, to: &View, from: &[u8]) -> Result<()> {
        check_copy("upload", to, from.len())?;
        self.memory.with(Io { inputs: &[], outputs: &[*to] }, |mut operands| {
            operands.output_bytes(0)?.copy_from_slice(from);
            Ok(())
        })
    }

    fn download(&self, from: &View, to: &mut [u8]) -> Result<()> {
        check_copy("download", from, to.len())?;
        self.memory.with(Io { inputs: &[*from], outputs: &[] }, |operands| {
            to.copy_from_slice(operands.input_bytes(0)?);
            Ok(())
        })
    }

    fn run(&self, op: Box<dyn Op>, io: Io<'_>) -> Result<()> {
        if let Some(noted) = lock(&self.noted).as_mut() {
            noted.push(Noted::new(op, io, self.place()));
            return Ok(());
        }
        let place = if lock(&self.profile).is_some() { self.place() } else { Place::default() };
        let _turn = lock(&self.turn);
        self.pool.install(|| self.execute(op.as_ref(), io, &place))
    }

    fn sync(&self) -> Result<()> {
        Ok(())
    }

    fn record(&self, step: &mut dyn FnMut() -> Result<()>) -> Result<Option<Replay>> {
        self.arena.begin_step()?;
        *lock(&self.noted) = Some(Vec::new());
        let done = step();
        let noted = lock(&self.noted).take();
        let ended = self.arena.end_step();
        done.and(ended)?;
        let (ops, _needs_memory) = (noted.unwrap_or_default(), Arc::clone(&self.recordings));
        Ok(Some(Replay(Box::new(Recorded { ops, _needs_memory }))))
    }

    fn replay(&self, replay: &Replay) -> Result<()> {
        let noted = replay.0.downcast_ref::<Recorded>().map(|recorded| &recorded.ops);
        let noted = noted.ok_or_else(|| Error::shape("replay", "recorded by another backend"))?;
        let _turn = lock(&self.turn);
        // One hand-over to the pool for the whole step, not one per op.
        let run = |n: &Noted| self.execute(n.op.as_ref(), n.io(), &n.place);
        self.pool.install(|| noted.iter().try_for_each(run))
    }

    fn reserve(&self, planned: &MemoryUse) -> Result<()> {
        self.arena.reserve(planned, &|bytes| self.grow(bytes))
    }

    fn trim(&self) -> Result<()> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let unrecorded = Arc::strong_count(&self.recordings) == 1;
        self.arena.trim(unrecorded, &|address| {
            self.memory.release(address);
            Ok(())
        })
    }

    fn memory(&self) -> MemoryUse {
        self.arena.usage()
    }

    fn enter(&self, scope: &str) {
        scope.clone_into(&mut lock(&self.scope));
    }

    fn timings(&self, on: bool) -> Result<Option<Vec<Timed>>> {
        let fresh = on.then(|| Profile { start: None, timed: Vec::new() });
        let before = std::mem::replace(&mut *lock(&self.profile), fresh);
        Ok(before.map(|profile| profile.timed))
    }
}
