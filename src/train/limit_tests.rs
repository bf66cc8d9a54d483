//! A limit on memory, held against a card that has no byte more; and a step's profile by such a card's
//! clock.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::planner::{plan_batch, plan_exactly};
use super::profile::layer_of;
use super::recipe::eval_batch;
use super::resident::{Resident, tests::cache};
use super::step::{Objective, Step, StepSpec};
use crate::backend::gpu::Gpu;
use crate::backend::gpu::paper::Paper;
use crate::backend::{Arch, Backend, Timed};
use crate::data::rng::Rng;
use crate::data::window::Window;
use crate::model::{EegFormerConfig, ModelConfig};
use crate::nn::params::Part;
use crate::ops::loss::Pointwise;
use crate::optim::{Control, Rates, Rule};
use crate::{DType, Result};

/// Channels and samples of the windows of `cache`.
const CHANNELS: usize = 7;
const TIME: usize = 45;

fn spec(rng: &mut Rng, card: &Arch) -> StepSpec {
    let n_heads = 1 + rng.below(3);
    StepSpec {
        model: ModelConfig::EegFormer(EegFormerConfig {
            n_channels: CHANNELS,
            window: TIME,
            d_model: 8 * n_heads,
            n_heads,
            n_layers: 1 + rng.below(3),
            patch: [1, 3, 5][rng.below(3)],
            recompute: rng.below(2) == 0,
            ..EegFormerConfig::default()
        }),
        batch: 0,
        accumulation: 1 + rng.below(3),
        eval_batch: 1,
        objective: Objective::Pointwise(Pointwise::Mse),
        rule: Rule::AdamW { beta1: 0.9, beta2: 0.95, epsilon: 1e-8 },
        average: rng.below(2) == 0,
        dtype: DType::F32,
        compute: (card.bf16 && rng.below(2) == 0).then_some(DType::Bf16),
        seed: 1,
    }
}

fn train(step: &Step, number: u64) -> Result<()> {
    let control = Control { step: number, clip: 1.0, loss_scale: 1.0, average: 0.9 };
    step.train(1, control, |_| Rates { lr: 1e-3, decay: 0.0, trained: true })
}

/// What `engine train --batch auto` does with memory, on a card of exactly `limit` bytes; gives the
/// planned peak, and whether the recordings found room beside the step.
fn trained(card: &Arch, limit: u64, spec: &StepSpec) -> Result<(u64, bool)> {
    let (batch, found) = plan_batch(card, limit, spec)?;
    let eval_batch = eval_batch(batch, spec.accumulation);
    let spec = StepSpec { batch, eval_batch, ..spec.clone() };
    let planned = plan_exactly(card, limit, &spec)?;
    assert!(planned == found && planned.peak() <= limit);
    let gpu = Arc::new(Gpu::new(Paper::new(card.clone(), limit), card.clone(), limit));
    let backend = Arc::clone(&gpu) as Arc<dyn Backend>;
    backend.reserve(&planned)?;
    let mut step = Step::new(Arc::clone(&backend), spec)?;
    assert_eq!(gpu.driver().taken(), planned.peak(), "nothing but what was planned");
    let window = |recording, start| Window { recording, start, event: 0 };
    let windows = [window(1, 0), window(0, 7)];
    let rows = step.rows().max(eval_batch);
    let resident = Resident::load(backend.as_ref(), &cache(), &windows, rows)?;
    for number in 1..4 {
        if let Some(resident) = &resident {
            let some = &windows[..step.rows().min(2)];
            resident.fill(backend.as_ref(), some, None, step.windows())?;
        }
        train(&step, number)?;
        Arc::clone(&backend).download_later(step.params().grads().view())?.wait()?;
        step.evaluate(&vec![0.0; 3 * CHANNELS * TIME])?;
        // Recordings share the step's memory: a new one takes no more.
        step.freeze(|part| part == Part::Embedding && number == 2)?;
    }
    let fits = resident.is_some();
    drop((step, resident));
    backend.trim()?;
    assert_eq!(gpu.driver().taken(), 0);
    Ok((planned.peak(), fits))
}

#[test]
fn a_card_with_no_byte_more_than_the_limit_is_enough() {
    let mut rng = Rng::new(12, 0);
    let mut beside = [0, 0];
    for name in ["sm_90", "sm_80", "gfx1010", "gfx1100"].into_iter().cycle().take(20) {
        let card = Arch::claim(name).expect("known");
        let spec = spec(&mut rng, &card);
        let eval_batch = eval_batch(1, spec.accumulation);
        let one = StepSpec { batch: 1, eval_batch, ..spec.clone() };
        let one = plan_exactly(&card, u64::MAX, &one).expect("no limit").peak();
        let limit = one + rng.below(12 * one as usize) as u64;
        let (peak, _) = trained(&card, limit, &spec).expect("it never fails");
        for limit in [limit, peak, peak + rng.below(20_000) as u64] {
            let (_, fits) = trained(&card, limit, &spec).expect("it never fails");
            beside[usize::from(fits)] += 1;
        }
        // Less than one window takes is refused, with the tensor, before anything is taken.
        let error = trained(&card, one - 1, &spec).expect_err("too little").to_string();
        assert!(error.contains("], with a batch of 1"), "{name}: {error}");
    }
    assert!(beside.iter().all(|&n| n > 5), "recordings beside the step: {beside:?}");
}

/// By a clock that goes on with each launch, ops follow each other without gap, each in its layer.
#[test]
fn a_cards_profile_knows_ops_layers_and_memory() {
    let card = Arch::claim("sm_90").expect("known");
    let spec = StepSpec { batch: 4, eval_batch: 4, ..spec(&mut Rng::new(3, 0), &card) };
    let gpu = Arc::new(Gpu::new(Paper::new(card.clone(), 1 << 30), card, 1 << 30));
    let step = Step::new(Arc::clone(&gpu) as Arc<dyn Backend>, spec).expect("fits");
    train(&step, 1).expect("runs");
    gpu.timings(true).expect("starts");
    train(&step, 2).expect("runs");
    train(&step, 3).expect("runs");
    let ops = gpu.timings(false).expect("reads").expect("was on");
    assert!(gpu.timings(false).expect("reads").is_none());
    let (mut at, peak) = (0.0, gpu.memory().peak());
    for op in &ops {
        assert!(op.start_ms == at && op.ms >= 1.0 && op.bytes > 0, "{op:?} at {at}");
        assert!(op.live > 0 && op.live <= peak, "{op:?}");
        at += op.ms;
    }
    let half = ops.len() / 2;
    let names = |ops: &[Timed]| ops.iter().map(|op| (op.op, op.scope.clone())).collect::<Vec<_>>();
    assert_eq!(names(&ops[..half]), names(&ops[half..]), "two equal steps");
    let layers: BTreeSet<(&str, bool)> = ops.iter().map(|op| layer_of(&op.scope)).collect();
    for layer in [("layers.0.self_attn", false), ("layers.0.mlp", true), ("patch_embed", false)] {
        assert!(layers.contains(&layer), "{layer:?} of {layers:?}");
    }
    assert_eq!(ops.last().map(|op| op.scope.as_str()), Some("optimizer"));
}
