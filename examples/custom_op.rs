//! An op of one's own with its gradient and its kernel (docs/guide/softsign.cu): y = x / (1 + |x|).
//! `custom_op` runs it on the CPU; `custom_op hip` on an AMD card (or the emulator) whose image
//! ENGINE_HIP_IMAGE names, and compares.

use std::sync::Arc;

use bytemuck::{Pod, Zeroable};
use engine::backend::cpu::host::{HostIo, HostKernel};
use engine::backend::cpu::{Cpu, real::Real};
use engine::backend::gpu::{Gpu, driver::Driver, hip::Hip};
use engine::backend::{Arch, Backend, Machine, Op, Plan, Route};
use engine::nn::params::{Builder, Init, Params};
use engine::{DType, Result, Tape, Var};

/// Parameters of both kernels, as `Softsign` of softsign.cu.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
struct Extents {
    n: u32,
    accumulate: u32,
}

/// y = x / (1 + |x|). Input: x; output: y.
#[derive(Debug)]
struct Softsign(Extents);

/// dx (+)= dy / (1 + |x|)². Inputs: dy, x; output: dx.
#[derive(Debug)]
struct SoftsignBackward(Extents);

impl HostKernel for Softsign {
    fn host_in<T: Real>(&self, io: &mut HostIo<'_>) -> Result<()> {
        let n = self.0.n as usize;
        let (x, y) = (io.input_n::<T>(0, n)?, io.output_n::<T>(0, n)?);
        y.iter_mut().zip(x).for_each(|(y, &x)| *y = x / (T::ONE + x.larger(-x)));
        Ok(())
    }
}

impl HostKernel for SoftsignBackward {
    fn host_in<T: Real>(&self, io: &mut HostIo<'_>) -> Result<()> {
        let (n, add) = (self.0.n as usize, self.0.accumulate != 0);
        let (dy, x) = (io.input_n::<T>(0, n)?, io.input_n::<T>(1, n)?);
        for ((dx, &dy), &x) in io.output_n::<T>(0, n)?.iter_mut().zip(dy).zip(x) {
            let below = T::ONE + x.larger(-x);
            let grad = dy / (below * below);
            *dx = if add { *dx + grad } else { grad };
        }
        Ok(())
    }
}

/// On the CPU the host's function, on a card the kernel `NAME_TYPE`, 256 elements a block.
fn route(name: &str, n: u32, arch: &Arch, dtype: DType) -> Route {
    match arch.machine {
        Machine::Cpu => Route::Host,
        _ => Route::Kernel(Plan::blocks(
            format!("{name}_{}", dtype.name()),
            (n as usize).div_ceil(256),
            256,
        )),
    }
}

macro_rules! op {
    ($type:ty, $name:literal) => {
        impl Op for $type {
            fn name(&self) -> &'static str {
                $name
            }
            fn params(&self) -> &[u8] {
                bytemuck::bytes_of(&self.0)
            }
            fn host(&self, io: &mut HostIo<'_>) -> Result<()> {
                self.host_any(io)
            }
            fn plan(&self, arch: &Arch, dtype: DType) -> Route {
                route($name, self.0.n, arch, dtype)
            }
        }
    };
}
op!(Softsign, "softsign");
op!(SoftsignBackward, "softsign_backward");

/// x / (1 + |x|), element by element, on a tape.
fn softsign(tape: &Tape<'_>, x: &Var) -> Result<Var> {
    let n = x.tensor().numel() as u32;
    let y = tape.empty(*x.shape(), x.dtype(), "softsign")?;
    tape.run(Softsign(Extents { n, accumulate: 0 }), &[x.tensor()], &[&y])?;
    let input = x.clone();
    Ok(tape.push(y, &[x], move |grads, dy| {
        let Some(to) = grads.target(&input)? else { return Ok(()) };
        let op = SoftsignBackward(Extents { n, accumulate: to.accumulate.into() });
        grads.tape().run(op, &[&dy, input.tensor()], &[&to.tensor])
    }))
}

/// The sum of softsign(x) over a parameter x of `n` values, and its gradient.
fn run(params: &Params) -> Result<(Vec<f32>, Vec<f32>)> {
    let id = params.find("x").expect("the parameter was added under this name");
    let tape = Tape::training(params, None);
    let y = softsign(&tape, &tape.param(id))?;
    let ones = vec![1.0f32; y.tensor().numel()];
    tape.backward_from(&y, params.backend().tensor(*y.shape(), &ones, "ones")?)?;
    let grad = params.grad(id).expect("it is trained");
    Ok((params.backend().read(y.tensor())?, params.read_floats(&grad)?))
}

fn params_on(backend: Arc<dyn Backend>) -> Result<Params> {
    let mut builder = Builder::default();
    builder.param("x", [1000], Init::Normal { deviation: 2.0 });
    builder.build(backend, DType::F32, 1)
}

fn main() -> Result<()> {
    let cpu = params_on(Arc::new(Cpu::new(1, 64 << 20)?))?;
    let (y, grad) = run(&cpu)?;
    let x = cpu.read(cpu.find("x").expect("it was added"))?;
    for ((&x, &y), &grad) in x.iter().zip(&y).zip(&grad) {
        let below = 1.0 + x.abs();
        assert!((y - x / below).abs() < 1e-6 && (grad - below.powi(-2)).abs() < 1e-6, "{x}");
    }
    println!("softsign and its gradient on the CPU: right");
    if std::env::args().nth(1).as_deref() == Some("hip") {
        let driver = Hip::open(0, false)?;
        let arch = driver.arch().clone();
        let name = arch.name.clone();
        let (on_card, slope) = run(&params_on(Arc::new(Gpu::new(driver, arch, 64 << 20)))?)?;
        let close = |a: &[f32], b: &[f32]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-6);
        assert!(close(&on_card, &y) && close(&slope, &grad), "the kernel differs");
        println!("the kernel on {name}: the same");
    }
    Ok(())
}
