//! The backend of a card: ops become launches, steps become graphs.

use std::collections::HashMap;
use std::fmt::Display;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::blas::Product;
use super::chain::{self, Link};
use super::driver::{Driver, Launch, Mapped, Operands};
use super::host::{Host, HostWork, Reads, Span, last_writer, span};
use super::lanes::{self, Touched};
use crate::backend::null::check_copy;
use crate::backend::{
    Arch, Arena, Backend, Io, Later, Mem, MemoryUse, Op, Plan, Replay, Route, Stage, Timed,
    operand_bytes,
};
use crate::ops::gemm::Gemm;
use crate::tensor::View;
use crate::{DType, Error, Result};

/// One op, ready to be enqueued.
#[derive(Debug)]
struct Work<F> {
    name: &'static str,
    scope: String,
    kind: Kind<F>,
    touched: Touched,
    /// Bytes of its operands.
    bytes: u64,
    /// Bytes in use when it was noted.
    live: u64,
    /// The op as a part of a chain, where it can be one.
    link: Option<Link>,
}

#[derive(Debug)]
enum Kind<F> {
    Kernels(Vec<Launch<F>>),
    Product(Product),
    Host(HostWork),
}

/// A stretch of a recorded step: its ops, and the graph that runs them all where there is one. An op
/// of the host is a stretch of its own.
#[derive(Debug)]
struct Segment<D: Driver> {
    graph: Option<D::Graph>,
    ops: Vec<Work<D::Function>>,
    /// Operands of the host's ops that can be read from here on: segment and view.
    then_read: Vec<(usize, usize)>,
}

/// A recorded step.
#[derive(Debug)]
struct Recorded<D: Driver> {
    segments: Vec<Segment<D>>,
    /// As [`Segment::then_read`], before the first.
    read_first: Vec<(usize, usize)>,
    /// Its addresses are in the step's memory.
    _needs_memory: Arc<()>,
}

/// Ops that were enqueued one after the other: the moment before them, and of each the one after it with
/// what is known of it.
#[derive(Debug)]
struct Stretch<D: Driver> {
    begin: D::Event,
    ops: Vec<(D::Event, Timed)>,
}

/// Waits for the moments of ops that were enqueued.
fn timed<D: Driver>(driver: &D, stretches: Vec<Stretch<D>>) -> Result<Vec<Timed>> {
    let mut all = Vec::new();
    let Some(first) = stretches.first().map(|stretch| &stretch.begin) else { return Ok(all) };
    for Stretch { begin, ops } in &stretches {
        let mut start = driver.elapsed(first, begin)?;
        for (end, timed) in ops {
            let end = driver.elapsed(first, end)?;
            all.push(Timed { start_ms: start, ms: (end - start).max(0.0), ..timed.clone() });
            start = end;
        }
    }
    Ok(all)
}

/// A card as a backend.
#[derive(Debug)]
pub struct Gpu<D: Driver> {
    driver: D,
    arch: Arch,
    arena: Arc<Arena>,
    noted: Mutex<Option<Vec<Work<D::Function>>>>,
    functions: Mutex<HashMap<String, D::Function>>,
    host: Host,
    /// As many as there are recordings, and one.
    recordings: Arc<()>,
    scope: Mutex<String>,
    profile: Mutex<Option<Vec<Stretch<D>>>>,
    /// One caller at a time puts work into the queue.
    turn: Mutex<()>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A parameter struct's bytes in whole words.
pub(super) fn words(params: &[u8]) -> Box<[u64]> {
    let mut words = vec![0u64; params.len().div_ceil(8)];
    bytemuck::cast_slice_mut(&mut words)[..params.len()].copy_from_slice(params);
    words.into()
}

/// The plan, or what it names instead, by how the operands lie.
fn fitting(mut plan: Plan, io: Io<'_>) -> Plan {
    let other = plan.otherwise.take();
    let mut needed = plan.stages.iter().flat_map(|stage| &stage.maps).filter(|map| map.needed);
    match other {
        Some(other) if needed.any(|&map| Mapped::of(map, io).is_none()) => *other,
        _ => plan,
    }
}

impl<D: Driver> Gpu<D> {
    /// A backend over `driver` that may use `limit` bytes. `arch` is the driver's, with the user's
    /// wishes.
    pub fn new(driver: D, arch: Arch, limit: u64) -> Self {
        Self {
            driver,
            arch,
            arena: Arena::new(limit),
            noted: Mutex::default(),
            functions: Mutex::default(),
            host: Host::default(),
            recordings: Arc::default(),
            scope: Mutex::default(),
            profile: Mutex::default(),
            turn: Mutex::default(),
        }
    }

    /// The card's driver.
    pub fn driver(&self) -> &D {
        &self.driver
    }

    fn function(&self, kernel: &str, shared: u32) -> Result<D::Function> {
        let mut known = lock(&self.functions);
        if let Some(&function) = known.get(kernel) {
            return Ok(function);
        }
        let Some(function) = self.driver.function(kernel, shared)? else {
            return Err(Error::Device {
                device: self.arch.name.clone(),
                problem: format!("the program has no kernel {kernel}"),
                remedy: "build it with the GPU's compiler (`engine devices` says how)".into(),
            });
        };
        known.insert(kernel.into(), function);
        Ok(function)
    }

    fn prepare(
        &self,
        op: Box<dyn Op>,
        io: Io<'_>,
        link: Option<Link>,
    ) -> Result<Work<D::Function>> {
        let name = op.name();
        let float = io.inputs.iter().chain(io.outputs).find(|view| view.dtype.is_float());
        let route = op.plan(&self.arch, float.map_or(DType::F32, |view| view.dtype));
        let mut touched = Touched {
            reads: io.inputs.iter().map(span).collect(),
            writes: io.outputs.iter().map(span).collect(),
            // The vendor's library has one workspace, and one queue at a time.
            first_lane: !matches!(route, Route::Kernel(_)),
        };
        let kind = match route {
            Route::Kernel(plan) => {
                let plan = fitting(plan, io);
                let launches = self.launches(op.as_ref(), &plan, io)?;
                let at = launches.first().map_or(0, |launch| launch.operands.workspace);
                touched.writes.push((at, at + plan.workspace as u64));
                Kind::Kernels(launches)
            }
            Route::Blas => {
                let gemm = bytemuck::pod_read_unaligned::<Gemm>(op.params());
                match Product::of(&gemm, io)? {
                    Some(product) => Kind::Product(product),
                    None => return Err(Error::shape("gemm", "strides no library takes")),
                }
            }
            Route::Host => Kind::Host(self.host.work(op, io)?),
        };
        let (bytes, live) = (operand_bytes(io), self.arena.usage().live());
        Ok(Work { name, scope: lock(&self.scope).clone(), kind, touched, bytes, live, link })
    }

    fn launches(&self, op: &dyn Op, plan: &Plan, io: Io<'_>) -> Result<Vec<Launch<D::Function>>> {
        let mut operands = Operands::of(op.name(), io)?;
        if plan.workspace > 0 {
            // Given back at once: the queue runs in order, so later work may use the same bytes.
            let what = format_args!("workspace of {} u8[{}]", op.name(), plan.workspace);
            operands.workspace = self.alloc(plan.workspace, &what)?.address();
        }
        let launch = |stage: &Stage| {
            let function = self.function(&stage.kernel, stage.shared)?;
            let maps = stage.maps.iter().map(|&map| Mapped::of(map, io)).collect();
            let (stage, params) = (stage.clone(), words(op.params()));
            Ok(Launch { function, stage, params, operands, maps })
        };
        plan.stages.iter().map(launch).collect()
    }

    fn execute(&self, work: &Work<D::Function>) -> Result<()> {
        match &work.kind {
            Kind::Kernels(launches) => launches.iter().try_for_each(|l| self.driver.launch(l)),
            Kind::Product(product) => self.driver.product(product),
            Kind::Host(host) => self.host.finish(&self.driver, host, host.read_all(&self.driver)?),
        }
    }

    /// Enqueues ops one by one with a moment of the queue after each. Nothing is waited for, so that
    /// the card need not wait for the host between them.
    fn execute_timed<'w>(
        &self,
        works: impl Iterator<Item = &'w Work<D::Function>>,
        profile: &mut Vec<Stretch<D>>,
    ) -> Result<()>
    where
        D: 'w,
    {
        let (begin, mut ops) = (self.driver.stamp()?, Vec::new());
        for work in works {
            self.execute(work)?;
            let &Work { name: op, bytes, live, .. } = work;
            let scope = work.scope.clone();
            let timed = Timed { op, scope, start_ms: 0.0, ms: 0.0, bytes, live };
            ops.push((self.driver.stamp()?, timed));
        }
        profile.push(Stretch { begin, ops });
        Ok(())
    }

    /// Cuts a step at the ops that run on the host, and makes graphs of what lies between.
    fn segments(&self, noted: Vec<Work<D::Function>>) -> Result<Recorded<D>> {
        let _turn = lock(&self.turn);
        let mut segments = Vec::new();
        let mut stretch = Vec::new();
        for work in noted {
            if !matches!(work.kind, Kind::Host(_)) {
                stretch.push(work);
                continue;
            }
            segments.extend(self.captured(std::mem::take(&mut stretch))?);
            segments.push(Segment { graph: None, ops: vec![work], then_read: Vec::new() });
        }
        segments.extend(self.captured(stretch)?);
        Ok(self.with_reads(segments))
    }

    /// Notes after which segment each operand of the host's ops can be read.
    fn with_reads(&self, mut segments: Vec<Segment<D>>) -> Recorded<D> {
        let of = |segment: &Segment<D>| {
            segment.ops.iter().flat_map(|w| w.touched.writes.iter().copied()).collect()
        };
        let writes: Vec<Vec<Span>> = segments.iter().map(of).collect();
        let mut read_first = Vec::new();
        for at in 0..segments.len() {
            let Some(host) = segments[at].host() else { continue };
            let reads = (0..host.views.len()).filter(|&view| host.reads(view));
            let reads: Vec<_> =
                reads.map(|i| (i, last_writer(&writes, at, span(&host.views[i])))).collect();
            for (view, after) in reads {
                let list = after.map_or(&mut read_first, |i| &mut segments[i].then_read);
                list.push((at, view));
            }
        }
        Recorded { segments, read_first, _needs_memory: Arc::clone(&self.recordings) }
    }

    fn replay_segments(&self, recorded: &Recorded<D>) -> Result<()> {
        let segments = &recorded.segments;
        let views = |segment: &Segment<D>| segment.host().map_or(0, |host| host.views.len());
        let mut reads: Vec<Reads<D>> =
            segments.iter().map(|s| (0..views(s)).map(|_| None).collect()).collect();
        let begin = |list: &[(usize, usize)], reads: &mut Vec<Reads<D>>| -> Result<()> {
            for &(at, i) in list {
                let view = segments[at].host().map(|host| host.views[i]);
                let begin = |view: View| self.driver.begin_read(view.address, view.span_bytes());
                reads[at][i] = view.map(begin).transpose()?;
            }
            Ok(())
        };
        begin(&recorded.read_first, &mut reads)?;
        for (at, segment) in segments.iter().enumerate() {
            match (&segment.graph, segment.host()) {
                (_, Some(host)) => {
                    self.host.finish(&self.driver, host, std::mem::take(&mut reads[at]))?;
                }
                (Some(graph), _) => self.driver.launch_graph(graph)?,
                (None, None) => segment.ops.iter().try_for_each(|work| self.execute(work))?,
            }
            begin(&segment.then_read, &mut reads)?;
        }
        Ok(())
    }

    /// The ops with those that make a chain as one.
    fn chained(&self, ops: Vec<Work<D::Function>>) -> Result<Vec<Work<D::Function>>> {
        let touched: Vec<Touched> = ops.iter().map(|work| work.touched.clone()).collect();
        let links: Vec<Option<Link>> = ops.iter().map(|work| work.link.clone()).collect();
        let groups = chain::groups(&links, &touched, &self.arch);
        let mut ops: Vec<Option<Work<D::Function>>> = ops.into_iter().map(Some).collect();
        let mut take = |group: chain::Group| -> Result<Vec<Work<D::Function>>> {
            let parts = group.ops.iter().filter_map(|&at| ops[at].take()).collect::<Vec<_>>();
            if parts.len() < 2 {
                return Ok(parts);
            }
            let function = |stage: &Stage| self.function(&stage.kernel, stage.shared);
            let Some(launch) = group.launch(function)? else { return Ok(parts) };
            let scope = parts[0].scope.clone();
            let all = |of: fn(&Touched) -> &[Span]| {
                parts.iter().flat_map(|work| of(&work.touched).iter().copied()).collect()
            };
            let touched =
                Touched { reads: all(|t| &t.reads), writes: all(|t| &t.writes), first_lane: false };
            let kind = Kind::Kernels(vec![launch]);
            let bytes = parts.iter().map(|work| work.bytes).sum();
            let live = parts.iter().map(|work| work.live).max().unwrap_or(0);
            Ok(vec![Work { name: "chain", scope, kind, touched, bytes, live, link: None }])
        };
        let mut all = Vec::new();
        for group in groups {
            all.extend(take(group)?);
        }
        Ok(all)
    }

    fn captured(&self, ops: Vec<Work<D::Function>>) -> Result<Option<Segment<D>>> {
        if ops.is_empty() {
            return Ok(None);
        }
        let ops = self.chained(ops)?;
        let mut graph = None;
        if self.driver.begin_capture()? {
            let enqueued = self.execute_in_lanes(&ops);
            let ended = self.driver.end_capture();
            enqueued?;
            graph = Some(ended?);
        }
        Ok(Some(Segment { graph, ops, then_read: Vec::new() }))
    }
}

impl<D: Driver> Segment<D> {
    /// The op of the host that the segment is.
    fn host(&self) -> Option<&HostWork> {
        self.ops.first().and_then(|work| match &work.kind {
            Kind::Host(host) => Some(host),
            _ => None,
        })
    }
}

impl<D: Driver> Gpu<D> {
    /// Enqueues ops where they may run side by side; everything has joined the first lane at the end.
    fn execute_in_lanes(&self, ops: &[Work<D::Function>]) -> Result<()> {
        if self.driver.lanes() < 2 {
            return ops.iter().try_for_each(|work| self.execute(work));
        }
        let touched: Vec<Touched> = ops.iter().map(|work| work.touched.clone()).collect();
        lanes::side_by_side(&self.driver, &touched, |i| self.execute(&ops[i]))
    }
}

impl<D: Driver> Backend for Gpu<D> {
    fn arch(&self) -> &Arch {
        &self.arch
    }

    fn alloc(&self, bytes: usize, what: &dyn Display) -> Result<Mem> {
        self.arena.alloc(bytes, what, &|bytes| self.driver.alloc(bytes))
    }

    fn upload(&self, to: &View, from: &[u8]) -> Result<()> {
        check_copy("upload", to, from.len())?;
        let _turn = lock(&self.turn);
        self.driver.upload(to.address, from)
    }

    fn download(&self, from: &View, to: &mut [u8]) -> Result<()> {
        check_copy("download", from, to.len())?;
        let _turn = lock(&self.turn);
        self.driver.download(from.address, to)
    }

    fn download_later(self: Arc<Self>, from: &View) -> Result<Later> {
        let read = {
            let _turn = lock(&self.turn);
            self.driver.begin_read(from.address, from.span_bytes())?
        };
        Ok(Later::new(move || self.driver.end_read(&read)))
    }

    fn run(&self, op: Box<dyn Op>, io: Io<'_>) -> Result<()> {
        let recording = lock(&self.noted).is_some();
        let link = recording.then(|| Link::of(op.as_ref(), io, &self.arch)).flatten();
        if let Some(holds) = chain::holds_back(op.name(), link.is_some()) {
            self.arena.hold_back(holds);
        }
        let work = self.prepare(op, io, link)?;
        if let Some(noted) = lock(&self.noted).as_mut() {
            noted.push(work);
            return Ok(());
        }
        let _turn = lock(&self.turn);
        match lock(&self.profile).as_mut() {
            Some(profile) => self.execute_timed(std::iter::once(&work), profile),
            None => self.execute(&work),
        }
    }

    fn sync(&self) -> Result<()> {
        self.driver.sync()
    }

    fn record(&self, step: &mut dyn FnMut() -> Result<()>) -> Result<Option<Replay>> {
        self.arena.begin_step()?;
        *lock(&self.noted) = Some(Vec::new());
        let done = step();
        let noted = lock(&self.noted).take();
        let ended = self.arena.end_step();
        done.and(ended)?;
        Ok(Some(Replay(Box::new(self.segments(noted.unwrap_or_default())?))))
    }

    fn replay(&self, replay: &Replay) -> Result<()> {
        let recorded = replay.0.downcast_ref::<Recorded<D>>();
        let recorded =
            recorded.ok_or_else(|| Error::shape("replay", "recorded by another backend"))?;
        let _turn = lock(&self.turn);
        if let Some(profile) = lock(&self.profile).as_mut() {
            let works = recorded.segments.iter().flat_map(|segment| &segment.ops);
            return self.execute_timed(works, profile);
        }
        self.replay_segments(recorded)
    }

    fn reserve(&self, planned: &MemoryUse) -> Result<()> {
        self.arena.reserve(planned, &|bytes| self.driver.alloc(bytes))
    }

    fn trim(&self) -> Result<()> {
        let _turn = lock(&self.turn);
        let unrecorded = Arc::strong_count(&self.recordings) == 1;
        self.arena.trim(unrecorded, &|address| self.driver.free(address))
    }

    fn memory(&self) -> MemoryUse {
        self.arena.usage()
    }

    fn enter(&self, scope: &str) {
        scope.clone_into(&mut lock(&self.scope));
    }

    fn timings(&self, on: bool) -> Result<Option<Vec<Timed>>> {
        let before = std::mem::replace(&mut *lock(&self.profile), on.then(Vec::new));
        before.map(|stretches| timed(&self.driver, stretches)).transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Map;
    use crate::tensor::Shape;

    #[test]
    fn operands_that_lie_elsewhere_get_the_other_plan() {
        let map =
            |operand, needed| Map { operand, rows: 8, cols: 64, pitch: 64, box_rows: 8, needed };
        let plan = Plan::new("by_maps", [1; 3], 32)
            .maps(vec![map(0, true), map(1, false)])
            .or(Plan::new("by_threads", [1; 3], 32));
        let chosen = |addresses: [u64; 2], dtype| {
            let view = |address| View {
                address,
                shape: Shape::from([8, 64]),
                strides: Shape::from([64, 1]),
                dtype,
            };
            let (inputs, outputs) = ([view(addresses[0])], [view(addresses[1])]);
            let io = Io { inputs: &inputs, outputs: &outputs };
            let plan = fitting(plan.clone(), io);
            let stage = &plan.stages[0];
            let made = stage.maps.iter().filter(|&&map| Mapped::of(map, io).is_some()).count();
            (stage.kernel.clone(), made)
        };
        assert_eq!(chosen([4096, 8192], DType::Bf16), ("by_maps".into(), 2));
        assert_eq!(chosen([4096, 8196], DType::F16), ("by_maps".into(), 1));
        assert_eq!(chosen([4104, 8192], DType::Bf16), ("by_threads".into(), 0));
        assert_eq!(chosen([4096, 8192], DType::F32), ("by_threads".into(), 0));
    }
}
