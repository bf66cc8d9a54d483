//! `engine data prepare`.

use serde_json::json;

use super::args::PrepareArgs;
use crate::console::Console;
use crate::train::{dataset, signal};
use crate::{Result, config};

/// Runs the command.
///
/// # Errors
/// Whatever is wrong with settings, data or the cache's folder.
pub fn run(args: &PrepareArgs, console: &Console) -> Result<()> {
    signal::install()?;
    let file = args.settings.config.as_deref();
    let settings = config::resolve(file, &args.assignments()?, None)?.settings;
    let prepared = dataset::prepared(&settings, console, signal::stop_flag())?;
    for skipped in &prepared.skipped {
        console.warn(&format!("skipped {}: {}", skipped.path, skipped.reason));
    }
    let cache = &prepared.cache;
    let seconds: f64 =
        cache.recordings().iter().map(|r| r.n_samples as f64).sum::<f64>() / cache.sample_rate();
    let text = format!(
        "{} recordings, {:.1} hours of {} channels at {} Hz in {}",
        cache.recordings().len(),
        seconds / 3600.0,
        cache.channels().len(),
        cache.sample_rate(),
        cache.path().display()
    );
    let fields = json!({ "cache": cache.path(), "recordings": cache.recordings().len() });
    console.finish(&text, &fields);
    Ok(())
}
