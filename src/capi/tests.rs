//! What a call through C costs over the same call in Rust.

use std::time::Instant;

use super::array::{ENGINE_F32, ENGINE_HOST, EngineArray};
use super::buffer::engine_copy;
use super::context::{
    Context, Device, EngineContext, EngineOptions, engine_context_free, engine_context_new,
    engine_context_sync,
};
use super::handle;
use super::kernels::engine_gemm;
use super::status::EngineStatus;
use crate::backend::cpu::{Cpu, Lent, LentMut};
use crate::ops::gemm::Gemm;

/// Side of the smallest product worth a call.
const N: usize = 4;
const CALLS: usize = 10;
const ROUNDS: usize = 2000;

/// The least of many rounds: what else the machine does only adds to it.
fn least(times: &[f64]) -> f64 {
    times.iter().copied().fold(f64::INFINITY, f64::min)
}

/// Nanoseconds a call, over a round.
fn time(call: &mut dyn FnMut()) -> f64 {
    let start = Instant::now();
    (0..CALLS).for_each(|_| call());
    start.elapsed().as_secs_f64() * 1e9 / CALLS as f64
}

fn array(data: &mut [f32]) -> EngineArray {
    let shape = [N, N, 0, 0, 0];
    let data = data.as_mut_ptr().cast();
    EngineArray { data, shape, rank: 2, dtype: ENGINE_F32, memory: ENGINE_HOST }
}

/// The four calls' nanoseconds, each the least of its rounds.
struct Costs {
    by_c: f64,
    by_rust: f64,
    copy: f64,
    empty: f64,
}

fn measure(cpu: &Cpu, context: *mut EngineContext) -> Costs {
    let (mut a, mut b, mut c) = ([1.0f32; N * N], [2.0f32; N * N], [0.0f32; N * N]);
    let (mut by_c, mut by_rust) = (Vec::new(), Vec::new());
    let (mut copy, mut empty) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        by_rust.push(time(&mut || {
            let op = Gemm::dense((N, N, N), false, false, 0);
            let outputs = &mut [LentMut::F32(&mut c)];
            cpu.run_lent(&op, &[Lent::F32(&a), Lent::F32(&b)], outputs).expect("it fits");
        }));
        let arrays = [array(&mut a), array(&mut b), array(&mut c)];
        by_c.push(time(&mut || {
            let [a, b, c] = &arrays;
            // SAFETY: the arrays outlive the call, and nothing else uses them.
            let status = unsafe { engine_gemm(context, a, b, std::ptr::null(), c, 0) };
            assert_eq!(status, EngineStatus::Ok);
        }));
        copy.push(time(&mut || {
            let [a, b, _] = &arrays;
            // SAFETY: as above.
            let status = unsafe { engine_copy(context, a, b) };
            assert_eq!(status, EngineStatus::Ok);
        }));
        b.fill(2.0);
        empty.push(time(&mut || assert_eq!(engine_context_sync(context), EngineStatus::Ok)));
    }
    assert_eq!(c, [2.0 * N as f32; N * N]);
    let (by_c, by_rust, copy, empty) = (least(&by_c), least(&by_rust), least(&copy), least(&empty));
    Costs { by_c, by_rust, copy, empty }
}

#[test]
fn a_call_costs_less_than_a_microsecond_more_than_in_rust() {
    let options = EngineOptions { threads: 1, ..EngineOptions::default() };
    let mut context: *mut EngineContext = std::ptr::null_mut();
    // SAFETY: both pointers are to live variables.
    let status = unsafe { engine_context_new(&options, &mut context) };
    assert_eq!(status, EngineStatus::Ok);
    let object = handle::find::<Context>(context).expect("it was just made");
    let Device::Cpu(cpu) = &object.device else { panic!("the default is the CPU") };

    // From the context's own thread: to wake it costs microseconds, in Rust as through C, and varies
    // by more than what is measured here.
    let address = context as usize;
    let costs = cpu.inside(|| measure(cpu, address as *mut EngineContext));
    let more = costs.by_c - costs.by_rust;
    // A copy of so little is nothing in Rust: this is the handle's look-up and the arrays' checks.
    eprintln!(
        "a {N} x {N} product: {:.0} ns in Rust, {:.0} ns through C, {more:.0} ns more; a copy through \
         C: {:.0} ns; a call that does nothing: {:.0} ns",
        costs.by_rust, costs.by_c, costs.copy, costs.empty
    );
    assert!(more < 1000.0 && costs.copy < 1000.0, "{more} and {} ns more", costs.copy);
    assert_eq!(engine_context_free(context), EngineStatus::Ok);
}
