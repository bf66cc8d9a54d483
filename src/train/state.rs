//! What a checkpoint holds: the weights under their bare names (what PyTorch loads), what is
//! needed to use them, and, in the last one, everything a run needs to go on.

use std::path::Path;

use safetensors::Dtype;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::Xxh3;

use super::checkpoint_file::{Checkpoint, StoredTensor};
use super::early_stop::EarlyStop;
use super::loss_scale::LossScale;
use super::snapshot::{OPTIMIZER, Saved};
use super::step::Step;
use super::target::Standard;
use crate::metrics::Task;
use crate::model::ModelConfig;
use crate::nn::params::{ParamId, Params};
use crate::{Error, Result};

/// Metadata key of [`About`].
const ABOUT: &str = "engine";
/// Metadata key of [`Progress`].
const PROGRESS: &str = "progress";
/// Metadata key of the checksum over everything else.
const CHECKSUM: &str = "xxh3";

/// What is needed to use a model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct About {
    /// Shape of the model.
    pub model: ModelConfig,
    /// What it predicts.
    pub task: Task,
    /// How its output becomes a number in the label's unit; None for classes.
    pub standard: Option<Standard>,
    /// Channels of a window, in order.
    pub channels: Vec<String>,
    /// Sampling rate of a window, Hz.
    pub sample_rate: f64,
    /// Predictions are aggregated by recording, not by subject.
    pub by_recording: bool,
}

/// Where a run stands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Optimizer steps done.
    pub step: u64,
    /// Epoch the next step belongs to.
    pub epoch: u64,
    /// Steps of that epoch done.
    pub step_in_epoch: u64,
    /// Sum of the losses of those steps.
    pub loss_sum: f64,
    /// Early stopping.
    pub early_stop: EarlyStop,
    /// Nothing is left to train.
    pub finished: bool,
    /// Windows of one forward pass: where memory decided it, it must stay what it was.
    pub batch: usize,
    /// What the loss is multiplied by.
    #[serde(default)]
    pub scale: LossScale,
}

fn json(value: &impl Serialize) -> Result<String> {
    serde_json::to_string(value).map_err(|error| Error::shape("checkpoint", error))
}

/// Checksum of names, types, shapes, bytes and metadata: a flipped bit anywhere changes it.
fn checksum(file: &Checkpoint<'_>) -> String {
    let mut hash = Xxh3::new();
    let mut field = |bytes: &[u8]| {
        hash.update(&(bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    };
    for (key, text) in file.metadata.iter().filter(|(key, _)| *key != CHECKSUM) {
        field(key.as_bytes());
        field(text.as_bytes());
    }
    for (name, tensor) in &file.tensors {
        field(name.as_bytes());
        field(format!("{} {:?}", tensor.dtype, tensor.shape).as_bytes());
        field(&tensor.bytes);
    }
    format!("{:016x}", hash.digest())
}

fn seal(file: &mut Checkpoint<'_>) {
    file.metadata.insert(CHECKSUM.into(), checksum(file));
}

impl Saved {
    /// Saves weights to use (the averaged ones where the run keeps them).
    ///
    /// # Errors
    /// [`Error::Input`] naming the path; an earlier file there survives.
    pub fn save_model(&self, about: &About, path: &Path) -> Result<()> {
        let mut checkpoint = self.model()?;
        checkpoint.metadata.insert(ABOUT.into(), json(about)?);
        seal(&mut checkpoint);
        checkpoint.save(path)
    }

    /// Saves everything needed to go on.
    ///
    /// # Errors
    /// As [`Saved::save_model`].
    pub fn save_run(&self, about: &About, progress: &Progress, path: &Path) -> Result<()> {
        let mut checkpoint = self.run()?;
        checkpoint.metadata.insert(ABOUT.into(), json(about)?);
        checkpoint.metadata.insert(PROGRESS.into(), json(progress)?);
        seal(&mut checkpoint);
        checkpoint.save(path)
    }
}

/// A checkpoint in memory.
pub struct Loaded {
    file: Checkpoint<'static>,
    path: std::path::PathBuf,
}

impl Loaded {
    /// Reads a checkpoint and checks its checksum, where it has one.
    ///
    /// # Errors
    /// As [`Checkpoint::load`], and [`Error::Input`] where the checksum is another.
    pub fn open(path: &Path) -> Result<Self> {
        let file = Checkpoint::load(path)?;
        if file.metadata.get(CHECKSUM).is_some_and(|told| *told != checksum(&file)) {
            let remedy = format!(
                "use another checkpoint or a whole copy of this one; if it was changed on purpose, \
                 take the key `{CHECKSUM}` out of its metadata"
            );
            return Err(Error::input(path.display(), "is damaged: its checksum differs", remedy));
        }
        Ok(Self { file, path: path.to_path_buf() })
    }

    fn metadata<T: for<'de> Deserialize<'de>>(&self, key: &str, what: &str) -> Result<T> {
        let place = self.path.display().to_string();
        let remedy = "name a checkpoint written by engine train (checkpoints/best.safetensors)";
        let text = self.file.metadata.get(key).ok_or_else(|| {
            Error::input(
                &place,
                format!("does not say {what} (no `{key}` in its metadata)"),
                remedy,
            )
        })?;
        serde_json::from_str(text)
            .map_err(|error| Error::input(&place, format!("`{key}` is damaged: {error}"), remedy))
    }

    /// What it is a model of.
    ///
    /// # Errors
    /// [`Error::Input`] for a file that does not say.
    pub fn about(&self) -> Result<About> {
        self.metadata(ABOUT, "what its model predicts")
    }

    /// Where its run stands.
    ///
    /// # Errors
    /// [`Error::Input`] for a file that does not say.
    pub fn progress(&self) -> Result<Progress> {
        self.metadata(PROGRESS, "where its run stands")
    }

    /// Copies weights into a model. Optimizer state and PyTorch's `num_batches_tracked` are passed
    /// over.
    ///
    /// # Errors
    /// [`Error::Input`] listing the names that differ.
    pub fn restore(&self, params: &Params) -> Result<()> {
        let extra =
            |name: &str| name.starts_with(OPTIMIZER) || name.ends_with("num_batches_tracked");
        let model = Checkpoint {
            metadata: self.file.metadata.clone(),
            tensors: (self.file.tensors.iter())
                .filter(|(name, _)| !extra(name))
                .map(|(name, tensor)| (name.clone(), borrowed(tensor)))
                .collect(),
        };
        let specs = params.specs();
        let expected = specs.iter().map(|s| (s.name.as_str(), Dtype::F32, s.shape.dims()));
        model.expect_model(&self.path, expected)?;
        for id in params.ids() {
            let stored = self.file.tensor(&self.path, &params.spec(id).name)?;
            params.write(id, &floats(stored))?;
        }
        Ok(())
    }

    /// Copies the weights whose name and shape the model has, but for those of `skip`; gives the
    /// names that were left as they are.
    ///
    /// # Errors
    /// [`Error::Input`] when nothing fits.
    pub fn initialise(
        &self,
        params: &Params,
        skip: impl Fn(ParamId) -> bool,
    ) -> Result<Vec<String>> {
        let mut left = Vec::new();
        let mut copied = 0;
        for id in params.ids() {
            let spec = params.spec(id);
            match self.file.tensors.get(&spec.name) {
                Some(stored)
                    if !skip(id)
                        && stored.dtype == Dtype::F32
                        && stored.shape == spec.shape.dims() =>
                {
                    params.write(id, &floats(stored))?;
                    copied += 1;
                }
                _ => left.push(spec.name.clone()),
            }
        }
        if copied == 0 {
            let problem = "has no tensor that fits this model";
            let remedy = "give --init a checkpoint of the same kind of model";
            return Err(Error::input(self.path.display(), problem, remedy));
        }
        Ok(left)
    }

    /// Copies weights and optimizer state.
    ///
    /// # Errors
    /// As [`Loaded::restore`].
    pub fn resume(&self, step: &Step) -> Result<()> {
        self.restore(step.params())?;
        for (name, tensor) in step.optimizer().arrays() {
            let name = format!("{OPTIMIZER}{name}");
            let stored = self.file.tensor(&self.path, &name)?;
            if stored.dtype != Dtype::F32 || stored.shape != tensor.dims() {
                let problem = format!("{name} is {:?}, expected {:?}", stored.shape, tensor.dims());
                let remedy = "go on with the settings the run was started with";
                return Err(Error::input(self.path.display(), problem, remedy));
            }
            let wide: Vec<f64> = floats(stored).into_iter().map(f64::from).collect();
            step.params().write_floats(tensor, &wide)?;
        }
        Ok(())
    }
}

fn borrowed<'a>(tensor: &'a StoredTensor<'static>) -> StoredTensor<'a> {
    StoredTensor {
        dtype: tensor.dtype,
        shape: tensor.shape.clone(),
        bytes: std::borrow::Cow::Borrowed(tensor.bytes.as_ref()),
    }
}

fn floats(stored: &StoredTensor<'_>) -> Vec<f32> {
    let words = stored.bytes.chunks_exact(4);
    words.map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}
