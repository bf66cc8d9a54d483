//! The one table of op cases, for every backend: what is computed, on which operands.

use engine::data::rng::Rng;
use engine::ops::batchnorm::{Norm, batchnorm};
use engine::ops::conv::{Steps, conv1d};
use engine::ops::elementwise::{self, Function};
use engine::ops::filters::compose;
use engine::ops::gemm::{After, linear, matmul};
use engine::ops::loss::{Pointwise, cross_entropy, pointwise};
use engine::ops::mlp::{Mlp, mlp as mlp_of};
use engine::ops::pool::{Kind, mean_time, pool};
use engine::ops::{attention, dropout, layernorm, patch, positions, softmax, spectral, window};
use engine::{Result, Tape, Var};

/// How an operand is drawn.
#[derive(Clone, Copy, PartialEq)]
pub enum Draw {
    /// Standard normal, differentiated.
    Normal,
    /// As normal, but nothing within 0.05 of 0, where a function has a kink.
    OffZero,
    /// As normal; a weight of a product.
    Weight,
    /// As normal; any other parameter.
    Parameter,
    /// Normal around 1; a parameter.
    NearOne,
    /// Normal, not differentiated.
    Target,
    /// 0 or 1, not differentiated.
    Binary,
    /// In 0.2..3, not differentiated.
    Positive,
    /// Integers below this, not differentiated.
    Label(usize),
}

impl Draw {
    pub fn differentiated(self) -> bool {
        !matches!(self, Self::Target | Self::Binary | Self::Positive | Self::Label(_))
    }

    pub fn values(self, n: usize, rng: &mut Rng) -> Vec<f64> {
        let one = |rng: &mut Rng| match self {
            Self::Normal | Self::Weight | Self::Parameter | Self::Target => rng.normal(),
            Self::OffZero => {
                let x = rng.normal();
                x + 0.05 * x.signum()
            }
            Self::NearOne => 1.0 + 0.3 * rng.normal(),
            Self::Binary => f64::from(rng.uniform() < 0.4),
            Self::Positive => rng.range(0.2, 3.0),
            Self::Label(classes) => rng.below(classes) as f64,
        };
        // Rounded to f32, so that every precision starts from the same numbers.
        (0..n).map(|_| f64::from(one(rng) as f32)).collect()
    }
}

type Function1 = Box<dyn Fn(&Tape<'_>, &[Var]) -> Result<Var> + Sync>;

pub struct Case {
    pub name: String,
    pub operands: Vec<(Vec<usize>, Draw)>,
    /// Dropout is on and statistics are the batch's.
    pub training: bool,
    pub run: Function1,
}

use Draw::{Binary, Label, NearOne, Normal, OffZero, Parameter, Positive, Target, Weight};

struct Table(Vec<Case>);

impl Table {
    fn add(
        &mut self,
        name: &str,
        operands: &[(&[usize], Draw)],
        run: impl Fn(&Tape<'_>, &[Var]) -> Result<Var> + Sync + 'static,
    ) {
        let operands = operands.iter().map(|(shape, draw)| (shape.to_vec(), *draw)).collect();
        self.0.push(Case { name: name.into(), operands, training: true, run: Box::new(run) });
    }
}

pub fn table() -> Vec<Case> {
    let mut table = Table(Vec::new());
    products(&mut table);
    transformers(&mut table);
    pointwise_functions(&mut table);
    time(&mut table);
    norms(&mut table);
    losses(&mut table);
    windows(&mut table);
    // Rows that pass one, two or four at a time, with some left over, and queries in two parts.
    add_attention(&mut table, 2, 139, 2, 16);
    add_attention(&mut table, 1, 37, 3, 32);
    table.0
}

/// Products that large cards have kernels of their own for; nothing to be differenced numerically or run on
/// an emulator. The longest sides choose among tiles of 128, 192 and 256 columns, the next fill a card with
/// small tiles, wide ones, and the last have more steps along k than buffers, of either kind of product.
#[allow(dead_code, reason = "not every test has cards")]
pub fn that_fill_cards() -> Vec<Case> {
    let mut table = Table(Vec::new());
    for (m, n, k) in [
        (16_904, 72, 24),
        (72, 16_904, 8),
        (72, 25_352, 8),
        (1608, 1032, 24),
        (72, 136, 1000),
        (1000, 136, 72),
    ] {
        for (a_t, b_t) in [(false, false), (false, true), (true, false)] {
            let a: &[usize] = &if a_t { [1, k, m] } else { [1, m, k] };
            let b: &[usize] = &if b_t { [1, n, k] } else { [1, k, n] };
            let name = format!("matmul {a_t} {b_t} {m}x{n}x{k}");
            table.add(&name, &[(a, Normal), (b, Normal)], move |tape, v| {
                matmul(tape, &v[0], &v[1], a_t, b_t)
            });
        }
        let linear_of: [(&[usize], Draw); 4] =
            [(&[m, k], Normal), (&[n, k], Weight), (&[n], Parameter), (&[m, n], Normal)];
        table.add(&format!("linear gelu {m}x{n}x{k}"), &linear_of[..3], |t, v| {
            linear(t, &v[0], &v[1], After { bias: Some(&v[2]), gelu: true, ..After::default() })
        });
        table.add(&format!("linear dropout residual {m}x{n}x{k}"), &linear_of, |tape, v| {
            let (bias, residual) = (Some(&v[2]), Some(&v[3]));
            linear(tape, &v[0], &v[1], After { bias, dropout: 0.3, residual, ..After::default() })
        });
    }
    for rows in [4104, 16_904] {
        onto_what_is_there(&mut table, rows);
    }
    table.0
}

/// Into what C holds, and into f32 that it holds; the slope of a GELU.
fn onto_what_is_there(table: &mut Table, rows: usize) {
    let square: [(&[usize], Draw); 2] = [(&[rows, 72], Normal), (&[72, 72], Weight)];
    table.add(&format!("linear of its residual {rows}"), &square, |tape, v| {
        linear(tape, &v[0], &v[1], After { residual: Some(&v[0]), ..After::default() })
    });
    let many: [(&[usize], Draw); 2] = [(&[24, 72], Normal), (&[rows, 72], Weight)];
    table.add(&format!("linear of {rows} outputs"), &many, |t, v| {
        linear(t, &v[0], &v[1], After::default())
    });
    let mlp: [(&[usize], Draw); 6] = [
        (&[rows, 72], Normal),
        (&[80, 72], Weight),
        (&[80], Parameter),
        (&[72, 80], Weight),
        (&[72], Parameter),
        (&[rows, 72], Normal),
    ];
    table.add(&format!("mlp of {rows} rows"), &mlp, |tape, v| {
        let mlp = Mlp { weight1: &v[1], bias1: &v[2], weight2: &v[3], bias2: &v[4], dropout: 0.3 };
        mlp_of(tape, &v[0], &mlp, &v[5])
    });
}

/// Windows out of recordings on the device, of two blocks with other channels, augmented in every way.
fn windows(table: &mut Table) {
    let (rows, channels, time) = (5, 19, 70);
    let (stored, tiles) = ([23usize, 19], [3usize, 2]);
    let words = stored[0] * tiles[0] * window::TILE / 2 + stored[1] * tiles[1] * window::TILE / 2;
    let operands: [(&[usize], Draw); 3] = [
        (&[words], Label(1 << 24)),
        (&[stored[0] + stored[1]], Positive),
        (&[rows, channels, time], Normal),
    ];
    table.add("window_gather", &operands, move |tape, v| {
        let mut described = Vec::new();
        for i in 0..rows {
            let block = i % 2;
            let source = window::Source {
                block: (block * stored[0] * tiles[0] * window::TILE / 32) as u32,
                scales: (block * stored[0]) as u32,
                stored: stored[block] as u32,
                start: (i * 13) as u32,
                shift: (i * 29 % time) as u32,
                reversed: i % 3 == 1,
                factor: (0.5 - i as f32) / 4096.0,
                mask: if i == 3 { (11, 40) } else { (0, 0) },
            };
            let row = |c: usize| (c != 7 || i == 0).then_some(((c * 5 + i) % stored[block]) as u32);
            window::describe(&mut described, &source, (0..channels).map(row));
        }
        let backend = tape.backend();
        let words = window::HEAD + channels;
        let described = backend.tensor([rows, words], &described, "table")?;
        let windows = tape.empty([rows, channels, time], v[1].dtype(), "windows")?;
        let from = (v[0].tensor(), v[1].tensor(), &described);
        window::gather(backend, from, rows, &windows)?;
        let windows = elementwise::cast(tape, &Var::constant(windows), v[2].dtype())?;
        elementwise::mul(tape, &windows, &v[2])
    });
}

fn products(table: &mut Table) {
    for (m, n, k) in [(1, 1, 1), (7, 5, 3), (33, 65, 17), (130, 31, 70)] {
        let name = format!("linear {m}x{n}x{k}");
        table.add(&name, &[(&[m, k], Normal), (&[n, k], Weight), (&[n], Parameter)], |tape, v| {
            linear(tape, &v[0], &v[1], After { bias: Some(&v[2]), ..After::default() })
        });
    }
    // Rows in whole 16-byte pieces, tiles that fill a card, and sums long enough to be split.
    for (m, n, k) in [(72, 136, 40), (1100, 24, 16), (4100, 72, 48)] {
        let name = format!("linear {m}x{n}x{k}");
        table.add(&name, &[(&[m, k], Normal), (&[n, k], Weight), (&[n], Parameter)], |tape, v| {
            linear(tape, &v[0], &v[1], After { bias: Some(&v[2]), ..After::default() })
        });
    }
    table.add(
        "linear gelu",
        &[(&[3, 11, 9], Normal), (&[13, 9], Weight), (&[13], Parameter)],
        |t, v| linear(t, &v[0], &v[1], After { bias: Some(&v[2]), gelu: true, ..After::default() }),
    );
    let operands: [(&[usize], Draw); 4] =
        [(&[5, 7, 9], Normal), (&[13, 9], Weight), (&[13], Parameter), (&[5, 7, 13], Normal)];
    table.add("linear dropout residual", &operands, |tape, v| {
        let after =
            After { bias: Some(&v[2]), dropout: 0.3, residual: Some(&v[3]), ..After::default() };
        linear(tape, &v[0], &v[1], after)
    });
    table.add("linear of its residual", &[(&[6, 9], Normal), (&[9, 9], Weight)], |tape, v| {
        linear(tape, &v[0], &v[1], After { residual: Some(&v[0]), ..After::default() })
    });
    let operands: [(&[usize], Draw); 6] = [
        (&[3, 7, 8], Normal),
        (&[32, 8], Weight),
        (&[32], Parameter),
        (&[8, 32], Weight),
        (&[8], Parameter),
        (&[3, 7, 8], Normal),
    ];
    for dropout in [0.0, 0.3] {
        table.add(&format!("mlp dropout {dropout}"), &operands, move |tape, v| {
            let mlp = Mlp { weight1: &v[1], bias1: &v[2], weight2: &v[3], bias2: &v[4], dropout };
            mlp_of(tape, &v[0], &mlp, &v[5])
        });
    }
    for (a_t, b_t) in [(false, false), (false, true), (true, false), (true, true)] {
        let a: &[usize] = if a_t { &[3, 6, 5] } else { &[3, 5, 6] };
        let b: &[usize] = if b_t { &[3, 7, 6] } else { &[3, 6, 7] };
        let name = format!("matmul {a_t} {b_t}");
        table.add(&name, &[(a, Normal), (b, Normal)], move |tape, v| {
            matmul(tape, &v[0], &v[1], a_t, b_t)
        });
    }
}

fn add_attention(table: &mut Table, batch: usize, time: usize, heads: usize, d: usize) {
    let name = format!("attention b{batch} t{time} h{heads} d{d}");
    table.add(&name, &[(&[batch, time, 3 * heads * d], Normal)], move |tape, v| {
        attention::attention(tape, &v[0], heads)
    });
}

fn transformers(table: &mut Table) {
    for (batch, time, heads, d) in [
        (1, 1, 1, 1),
        (2, 7, 3, 5),
        (3, 33, 2, 16),
        (1, 131, 1, 8),
        (1, 5, 2, 128),
        (2, 200, 1, 24),
        // Long enough for blocks of 128 rows, rows left over, heads that are padded and not.
        (2, 133, 1, 64),
        (1, 257, 1, 44),
        (1, 130, 2, 99),
        (1, 128, 1, 128),
    ] {
        add_attention(table, batch, time, heads, d);
    }
    for (rows, cols) in [(1, 2), (5, 7), (3, 129), (70, 96)] {
        let name = format!("softmax {rows}x{cols}");
        table.add(&name, &[(&[rows, cols], Normal)], |tape, v| softmax::softmax(tape, &v[0]));
    }
    table.add("positions", &[(&[3, 5, 7], Normal), (&[5, 7], Parameter)], |tape, v| {
        positions::add_positions(tape, &v[0], &v[1])
    });
    for patch in [1, 3, 4] {
        let name = format!("patchify {patch}");
        table.add(&name, &[(&[2, 5, 17], Normal)], move |t, v| {
            patch::patchify(t, &v[0], patch, v[0].dtype())
        });
    }
    for (batch, time, channels) in [(1, 1, 2), (2, 2, 3), (2, 33, 5), (3, 20, 4), (2, 200, 3)] {
        let gain = [time / 2 + 1, channels, 2];
        let name = format!("spectral b{batch} t{time} c{channels}");
        let x = [batch, time, channels];
        table.add(&name, &[(&x, Normal), (&gain, Parameter)], |tape, v| {
            spectral::spectral(tape, &v[0], &v[1])
        });
    }
}

fn pointwise_functions(table: &mut Table) {
    for (name, function, draw) in [
        ("relu", Function::Relu, OffZero),
        ("elu", Function::Elu, OffZero),
        ("square", Function::Square, Normal),
        ("gelu", Function::Gelu, Normal),
    ] {
        table.add(name, &[(&[37, 3], draw)], move |t, v| elementwise::apply(t, function, &v[0]));
    }
    table.add("log of square", &[(&[37, 3], OffZero)], |tape, v| {
        let square = elementwise::apply(tape, Function::Square, &v[0])?;
        elementwise::apply(tape, Function::Log, &square)
    });
    table.add("add", &[(&[5, 67], Normal), (&[5, 67], Normal)], |t, v| {
        elementwise::add(t, &v[0], &v[1])
    });
    table.add("mul", &[(&[5, 67], Normal), (&[5, 67], Normal)], |t, v| {
        elementwise::mul(t, &v[0], &v[1])
    });
    table.add("used four times", &[(&[4, 19], Normal)], |tape, v| {
        let twice = elementwise::add(tape, &v[0], &v[0])?;
        let square = elementwise::mul(tape, &twice, &twice)?;
        elementwise::add(tape, &square, &v[0])
    });
    table.add("dropout", &[(&[7, 67], Normal)], |t, v| dropout::dropout(t, &v[0], 0.4));
}

fn time(table: &mut Table) {
    let shapes = [
        ("conv1d temporal", [2, 1, 31], [4, 1, 7], Steps::default()),
        ("conv1d spatial", [2, 6, 11], [5, 6, 1], Steps::default()),
        ("conv1d depthwise", [3, 6, 17], [6, 1, 5], Steps { groups: 6, ..Steps::default() }),
        ("conv1d grouped", [2, 6, 19], [4, 3, 5], Steps { groups: 2, padding: 2, stride: 3 }),
        ("conv1d padded", [2, 3, 9], [5, 3, 4], Steps { padding: 3, ..Steps::default() }),
        ("conv1d strided", [1, 3, 26], [5, 3, 4], Steps { stride: 4, ..Steps::default() }),
    ];
    for (name, x, w, steps) in shapes {
        let bias = [w[0]];
        table.add(name, &[(&x, Normal), (&w, Normal), (&bias, Normal)], move |tape, v| {
            conv1d(tape, &v[0], &v[1], Some(&v[2]), steps)
        });
    }
    table.add("conv1d no bias", &[(&[2, 3, 9], Normal), (&[5, 3, 4], Normal)], |tape, v| {
        conv1d(tape, &v[0], &v[1], None, Steps::default())
    });
    for (name, kind, kernel, stride) in [
        ("average pool", Kind::Average, 5, 3),
        ("average pool whole", Kind::Average, 23, 1),
        ("max pool", Kind::Max, 4, 3),
        ("max pool overlapping", Kind::Max, 5, 1),
    ] {
        table.add(name, &[(&[2, 3, 23], Normal)], move |t, v| pool(t, &v[0], kind, kernel, stride));
    }
    table.add("mean over time", &[(&[3, 17, 5], Normal)], |t, v| mean_time(t, &v[0]));
    let filters: [(&[usize], Draw); 4] =
        [(&[3, 7], Normal), (&[3], Normal), (&[4, 3, 5], Normal), (&[2, 5, 19], Normal)];
    table.add("composed filters", &filters, |tape, v| {
        let (w, b) = compose(tape, &v[0], &v[1], &v[2])?;
        conv1d(tape, &v[3], &w, Some(&b), Steps::default())
    });
}

fn norms(table: &mut Table) {
    // The last four are held by a block, by a larger one where there is, and by none.
    for (rows, cols) in
        [(1, 3), (7, 5), (65, 33), (9, 257), (5, 1032), (3, 2049), (2, 4104), (2, 8200)]
    {
        let name = format!("layernorm {rows}x{cols}");
        let operands: [(&[usize], Draw); 3] =
            [(&[rows, cols], Normal), (&[cols], NearOne), (&[cols], Parameter)];
        table
            .add(&name, &operands, |tape, v| layernorm::layernorm(tape, &v[0], &v[1], &v[2], 1e-5));
    }
    // One gradient without the others.
    let fixed: [(&[usize], Draw); 3] = [(&[9, 40], Normal), (&[40], Positive), (&[40], Target)];
    let of_params: [(&[usize], Draw); 3] =
        [(&[9, 40], Target), (&[40], NearOne), (&[40], Parameter)];
    for (name, operands) in [("layernorm fixed", fixed), ("layernorm of data", of_params)] {
        table.add(name, &operands, |tape, v| layernorm::layernorm(tape, &v[0], &v[1], &v[2], 1e-5));
    }
    for training in [true, false] {
        let operands: [(&[usize], Draw); 5] = [
            (&[4, 5, 9], Normal),
            (&[5], NearOne),
            (&[5], Parameter),
            (&[5], Target),
            (&[5], Positive),
        ];
        let name = if training { "batchnorm" } else { "batchnorm fixed" };
        table.add(name, &operands, |tape, v| {
            let norm = Norm {
                gamma: v[1].clone(),
                beta: v[2].clone(),
                running_mean: v[3].tensor().clone(),
                running_var: v[4].tensor().clone(),
            };
            batchnorm(tape, &v[0], &norm, 1e-5, 0.1)
        });
        if let Some(case) = table.0.last_mut() {
            case.training = training;
        }
    }
}

fn losses(table: &mut Table) {
    for (name, kind, target) in [
        ("mse", Pointwise::Mse, Target),
        ("l1", Pointwise::L1, Target),
        ("huber", Pointwise::Huber { delta: 0.7 }, Target),
        ("bce", Pointwise::BceWithLogits { positive_weight: 2.5 }, Binary),
    ] {
        table.add(name, &[(&[17, 1], Normal), (&[17, 1], target)], move |tape, v| {
            pointwise(tape, kind, &v[0], v[1].tensor())
        });
    }
    for smoothing in [0.0, 0.1] {
        let operands: [(&[usize], Draw); 3] =
            [(&[11, 5], Normal), (&[11], Label(5)), (&[5], Positive)];
        table.add(&format!("cross entropy {smoothing}"), &operands, move |tape, v| {
            cross_entropy(tape, &v[0], v[1].tensor(), v[2].tensor(), smoothing)
        });
    }
}
