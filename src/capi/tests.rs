//! What a call through C costs over the same call in Rust.

use std::time::Instant;

use super::array::{ENGINE_F32, ENGINE_HOST, EngineArray};
use super::context::{
    Context, Device, EngineContext, EngineOptions, engine_context_free, engine_context_new,
    engine_context_sync,
};
use super::handle;
use super::kernels::engine_gemm;
use super::status::EngineStatus;
use crate::backend::cpu::{Lent, LentMut};
use crate::ops::gemm::Gemm;

/// Side of the smallest product worth a call.
const N: usize = 4;
const CALLS: usize = 50;
const ROUNDS: usize = 400;

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// Nanoseconds a call, for each of several rounds.
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

#[test]
fn a_call_costs_less_than_a_microsecond_more_than_in_rust() {
    let options = EngineOptions { threads: 1, ..EngineOptions::default() };
    let mut context: *mut EngineContext = std::ptr::null_mut();
    // SAFETY: both pointers are to live variables.
    let status = unsafe { engine_context_new(&options, &mut context) };
    assert_eq!(status, EngineStatus::Ok);
    let object = handle::find::<Context>(context).expect("it was just made");
    let Device::Cpu(cpu) = &object.device else { panic!("the default is the CPU") };

    let (mut a, mut b, mut c) = ([1.0f32; N * N], [2.0f32; N * N], [0.0f32; N * N]);
    let (mut by_c, mut by_rust, mut empty) = (Vec::new(), Vec::new(), Vec::new());
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
        empty.push(time(&mut || assert_eq!(engine_context_sync(context), EngineStatus::Ok)));
    }
    assert_eq!(c, [2.0 * N as f32; N * N]);
    let (by_c, by_rust, empty) = (median(by_c), median(by_rust), median(empty));
    eprintln!(
        "a {N} x {N} product: {by_rust:.0} ns in Rust, {by_c:.0} ns through C, {:.0} ns more; a call \
         that does nothing: {empty:.0} ns",
        by_c - by_rust
    );
    assert!(by_c - by_rust < 1000.0, "{} ns more", by_c - by_rust);
    assert_eq!(engine_context_free(context), EngineStatus::Ok);
}
