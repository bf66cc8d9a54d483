//! What runs in processes of its own, started by the tests of `main.rs` with the stand-in runtime.

use std::sync::Arc;
use std::time::Instant;

use engine::backend::cpu::Cpu;
use engine::backend::gpu::Gpu;
use engine::backend::gpu::driver::{Driver, Launch, Operands};
use engine::backend::gpu::hip::{self, Hip};
use engine::backend::gpu::self_test;
use engine::backend::route;
use engine::backend::{Arch, Backend, Stage};
use engine::config::{Gemm, Route as Wish};
use engine::data::rng::Rng;
use engine::nn::params::Params;
use engine::ops::elementwise::{self, Axpy, Fill};
use engine::{DType, Tape};

use crate::cases;
use crate::compare::{PRECISIONS, draw, errors, params_on};

/// True in a process that `main.rs` started; the tests do nothing elsewhere.
fn is_child() -> bool {
    std::env::var_os("ENGINE_EMULATOR_CHILD").is_some()
}

fn card() -> Arc<Gpu<Hip>> {
    let driver = Hip::open(0, false).unwrap_or_else(|error| panic!("{error}"));
    let arch = driver.arch().clone();
    Arc::new(Gpu::new(driver, arch, 256 << 20))
}

fn reference() -> Params {
    params_on(Arc::new(Cpu::new(1, 1 << 30).expect("starts")))
}

/// Compares the cases whose names `wanted` likes; all problems are told at the end.
fn compare_cases(wanted: impl Fn(&str) -> bool) {
    let (exact, gpu) = (reference(), card());
    let name = gpu.arch().name.clone();
    assert_eq!(Some(gpu.arch().units), Arch::claim(&name).map(|arch| arch.units));
    let found = params_on(gpu);
    let wish = std::env::var("ENGINE_EMULATOR_CASES").ok();
    let mut rng = Rng::new(2026, 3);
    let (mut problems, mut compared, start) = (Vec::new(), 0, Instant::now());
    for case in cases::table().iter().filter(|case| wanted(&case.name)) {
        let drawn = draw(case, &mut rng);
        for (types, limit) in PRECISIONS {
            if wish.as_ref().is_some_and(|wish| !wish.split(',').any(|name| name == types.name())) {
                continue;
            }
            compared += 1;
            let what = format!("{} in {}", case.name, types.name());
            match errors(&exact, &found, case, types, &drawn) {
                Err(error) => problems.push(format!("{what}: {error}")),
                Ok(errors) => problems.extend(
                    errors
                        .into_iter()
                        .filter(|(_, error)| error.is_nan() || *error >= limit)
                        .map(|(part, error)| format!("{what}: {part} off by {error:.1e}")),
                ),
            }
        }
    }
    eprintln!("emulated {name}: {compared} cases in {:.1?}", start.elapsed());
    assert!(problems.is_empty(), "{} problems\n{}", problems.len(), problems.join("\n"));
    assert!(compared > 0, "no case was compared");
}

#[test]
#[ignore = "started by the others"]
fn op_table() {
    if is_child() {
        compare_cases(|_| true);
    }
}

#[test]
#[ignore = "started by the others"]
fn vendor_products() {
    if !is_child() {
        return;
    }
    let driver = Hip::open(0, false).expect("opens");
    assert!(driver.arch().blas && driver.blas_files().is_some());
    assert_eq!(std::env::var("ROCBLAS_USE_HIPBLASLT").as_deref(), Ok("0"));
    drop(driver);
    compare_cases(|name| ["linear", "matmul", "mlp"].iter().any(|kind| name.contains(kind)));
}

#[test]
#[ignore = "started by the others"]
fn no_vendor() {
    if is_child() {
        let driver = Hip::open(0, true).expect("opens");
        assert!(!driver.arch().blas && driver.blas_files().is_none());
    }
}

/// Sums that grow with each replay, against the same on the CPU.
#[test]
#[ignore = "started by the others"]
fn replay() {
    if !is_child() {
        return;
    }
    let mut rng = Rng::new(8, 1);
    let values: Vec<f32> = (0..5003).map(|_| rng.normal() as f32).collect();
    let run = |params: &Params| {
        let backend = params.backend();
        let x = backend.tensor([values.len()], &values, "x").expect("fits");
        let sum = backend.tensor([values.len()], &values, "sum").expect("fits");
        let recorded = backend.record(&mut || {
            let tape = Tape::inference(params);
            let bf16 = backend.empty([values.len()], DType::Bf16, "rounded")?;
            elementwise::copy(&tape, &x, &bf16)?;
            tape.run(Axpy::adding(values.len(), 0.5), &[&bf16], &[&sum])
        });
        let recorded = recorded.expect("records").expect("can record");
        for i in 0..3 {
            let shifted: Vec<f32> = values.iter().map(|x| x + i as f32).collect();
            backend.write(&x, &shifted).expect("fits");
            backend.replay(&recorded).expect("replays");
        }
        backend.read::<f32>(&sum).expect("reads")
    };
    assert_eq!(run(&params_on(card())), run(&reference()));
}

#[test]
#[ignore = "started by the others"]
fn opens_not() {
    if is_child() {
        println!("{}", Hip::open(0, false).expect_err("a fault was asked for"));
    }
}

#[test]
#[ignore = "started by the others"]
fn allocates_not() {
    if !is_child() {
        return;
    }
    let driver = Hip::open(0, false).expect("opens");
    println!("{}", driver.alloc(1 << 30).expect_err("a fault was asked for"));
    // The card goes on.
    let address = driver.alloc(1 << 20).expect("fits");
    driver.upload(address, &[7; 100]).expect("copies");
    let mut bytes = [0; 100];
    driver.download(address, &mut bytes).expect("copies");
    assert_eq!(bytes, [7; 100]);
}

/// A loop of fills until an error comes, and then more calls: all are errors, none ends the process.
#[test]
#[ignore = "started by the others"]
fn fails_in_work() {
    if !is_child() {
        return;
    }
    let params = params_on(card());
    let backend = params.backend();
    let x = backend.tensor([300], &[0.0f32; 300], "x").expect("fits");
    let tape = Tape::inference(&params);
    let work = || -> engine::Result<()> {
        for i in 0..9 {
            tape.run(Fill::new(300, i as f32), &[], &[&x])?;
        }
        backend.sync()
    };
    println!("{}", work().expect_err("a fault was asked for"));
    let _ = (work(), backend.read::<f32>(&x), backend.sync());
}

#[test]
#[ignore = "started by the others"]
fn fill_is_wrong() {
    if !is_child() {
        return;
    }
    let params = params_on(card());
    let x = params.backend().tensor([300], &[0.0f32; 300], "x").expect("fits");
    let tape = Tape::inference(&params);
    tape.run(Fill::new(300, 3.0), &[], &[&x]).expect("enqueues");
    if params.backend().read::<f32>(&x).expect("reads") != [3.0; 300] {
        println!("fill is off");
    }
}

/// The self-test of one kind of op, all others being on the CPU.
#[test]
#[ignore = "started by the others"]
fn family() {
    if !is_child() {
        return;
    }
    let wanted = std::env::var("ENGINE_EMULATOR_KIND").expect("a kind of op");
    let driver = Hip::open(0, false).unwrap_or_else(|error| panic!("{error}"));
    let wish = |kind: &str| Wish {
        op: kind.into(),
        device: if kind == wanted { "gpu" } else { "cpu" }.into(),
    };
    let wishes: Vec<Wish> = route::kinds().map(wish).collect();
    let arch = route::with_wishes(driver.arch(), Gemm::Auto, &wishes).expect("possible");
    let device: Arc<dyn Backend> = Arc::new(Gpu::new(driver, arch.clone(), 64 << 20));
    let tests = self_test::run(&device, None).expect("runs");
    assert!(tests.iter().all(|test| test.kind == wanted) && !tests.is_empty());
    self_test::check(&arch, tests).unwrap_or_else(|error| panic!("{error}"));
}

/// Memory goes back when nothing needs it, and not before.
#[test]
#[ignore = "started by the others"]
fn trims() {
    if !is_child() {
        return;
    }
    let gpu = card();
    let free = || gpu.driver().memory().expect("known").0;
    let before = free();
    let backend: Arc<dyn Backend> = Arc::clone(&gpu) as _;
    let params = params_on(Arc::clone(&backend));
    let x = backend.tensor([300], &[1.0f32; 300], "x").expect("fits");
    let recorded = backend.record(&mut || {
        let tape = Tape::inference(&params);
        let twice = backend.empty([300], DType::F32, "twice")?;
        tape.run(Axpy::scaling(300, 2.0), &[&x], &[&twice])?;
        tape.run(Axpy::scaling(300, 2.0), &[&twice], &[&x])
    });
    let recorded = recorded.expect("records").expect("can record");
    backend.trim().expect("trims");
    backend.replay(&recorded).expect("its memory is there");
    assert_eq!(backend.read::<f32>(&x).expect("reads"), [4.0; 300]);
    // Timed, a step runs op by op.
    backend.timings(true).expect("starts");
    backend.replay(&recorded).expect("runs");
    let timed = backend.timings(false).expect("runs").expect("was on");
    assert!(timed.len() == 2 && timed.iter().all(|t| t.op == "axpy" && t.ms >= 0.0), "{timed:?}");
    assert_eq!(backend.read::<f32>(&x).expect("reads"), [16.0; 300]);
    let held = before - free();
    drop(recorded);
    backend.trim().expect("trims");
    assert!(before - free() < held, "the step's memory went back");
    drop((x, params));
    backend.trim().expect("trims");
    assert_eq!(free(), before);
}

#[test]
#[ignore = "started by the others"]
fn warns() {
    if is_child() {
        println!("{}", hip::warnings().join("\n"));
    }
}

/// Launches the kernel ENGINE_EMULATOR_PLANTED of planted.cu: 2 blocks, 256 elements.
#[test]
#[ignore = "started by the others"]
fn planted() {
    if !is_child() {
        return;
    }
    let driver = Hip::open(0, false).expect("opens");
    let name = std::env::var("ENGINE_EMULATOR_PLANTED").expect("a kernel's name");
    let kernel = format!("{name}_f32");
    let function = driver.function(&kernel, 512).expect("looks").expect("is there");
    let (x, y) = (driver.alloc(1024).expect("fits"), driver.alloc(1024).expect("fits"));
    let numbers: Vec<f32> = (0..256).map(|i| i as f32).collect();
    driver.upload(x, bytemuck::cast_slice(&numbers)).expect("copies");
    let mut at = [0; 12];
    (at[0], at[1]) = (x, y);
    let operands = Operands { at, workspace: 0, kinds: 0, count: 2 };
    let stage = Stage { kernel, grid: [2, 1, 1], block: 128, shared: 512, maps: Vec::new() };
    let params = vec![256 | u64::from(0.5f32.to_bits()) << 32].into();
    let launch = Launch { function, stage, params, operands, maps: Box::default() };
    driver.launch(&launch).expect("enqueues");
    let mut bytes = vec![0; 1024];
    driver.download(y, &mut bytes).expect("runs");
    let found: Vec<f32> = bytes.chunks_exact(4).map(bytemuck::pod_read_unaligned).collect();
    let wave = driver.arch().wave as f32;
    match name.as_str() {
        "clean" => assert!((0..256).all(|i| found[i] == (i ^ 127) as f32 + 0.5 * wave)),
        "in_wave_right" => assert!(found.iter().all(|&y| y == 0.5)),
        // Nobody has set it: it must not be 0 by chance.
        "unset_shared" => assert!(found.iter().all(|y| y.is_nan())),
        _ => {}
    }
}
