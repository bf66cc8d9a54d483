//! A trained model and a recording in, predictions out: what `engine predict RUN --data FILE --windows`
//! prints, as lines of start (s) and numbers.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use engine::backend::cpu::Cpu;
use engine::train::inference::{Predictor, find};
use engine::{Error, Result};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [run, recording] = arguments.as_slice() else {
        return Err(Error::input("predict", "takes 2 arguments", "give RUN RECORDING"));
    };
    let (checkpoint, settings) = find(Path::new(run))?;
    let settings = settings.ok_or_else(|| Error::input(run, "is in no run", "name a run"))?;
    let model = Predictor::open(Arc::new(Cpu::new(0, 4 << 30)?), &checkpoint, 0)?;
    let cache = std::env::temp_dir().join(format!("engine-example-{}", std::process::id()));
    let (recording, running) = (Path::new(recording), AtomicBool::new(false));
    let data = model.windows_of(&settings, recording, &cache, &|_| {}, &running)?;
    let found = model.predict(&data)?;
    let width = found.output.len() / data.windows.len().max(1);
    for (window, values) in data.windows.iter().zip(found.output.chunks(width.max(1))) {
        print!("{}", f64::from(window.start) / model.about.sample_rate);
        values.iter().for_each(|value| print!(" {value}"));
        println!();
    }
    std::fs::remove_dir_all(&cache).map_err(Error::io(&cache, "remove"))
}
