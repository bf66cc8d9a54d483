//! Kernels on arrays of the caller's: on the CPU the host's, used in place; on a card the card's,
//! enqueued on the context's stream.

use std::sync::Arc;

use super::array::{Array, EngineArray, expect_apart, read, read_optional};
use super::context::{Context, Device, EngineContext};
use super::handle;
use super::status::{EngineStatus, Failure, Outcome, guard};
use crate::DType;
use crate::backend::{Backend, Io, Op};
use crate::ops::attention::{Attention, AttentionBackward, MAX_HEAD_DIM};
use crate::ops::gemm::{self, Gemm};
use crate::ops::layernorm::{LayerNorm, LayerNormBoth};
use crate::ops::size;
use crate::ops::spectral::{Spectral, SpectralGrad};
use crate::tensor::Tensor;

/// engine_gemm: a is given as `[.., k, m]`.
pub const ENGINE_TRANSPOSE_A: u32 = 1;
/// engine_gemm: b is given as `[.., n, k]`.
pub const ENGINE_TRANSPOSE_B: u32 = 2;
/// engine_gemm: the product is added to what c holds.
pub const ENGINE_ACCUMULATE: u32 = 4;

/// Runs one op on arrays of the caller's.
///
/// # Safety
/// The arrays' pointers hold for their shapes, and nothing else writes the inputs or uses the outputs
/// until the work is done.
unsafe fn run(context: &Context, op: impl Op + 'static, from: &[Array], to: &[Array]) -> Outcome {
    expect_apart(from, to)?;
    match &context.device {
        Device::Cpu(cpu) => {
            let mut inputs = Vec::with_capacity(from.len());
            let mut outputs = Vec::with_capacity(to.len());
            for array in from {
                // SAFETY: by this function's contract.
                inputs.push(unsafe { array.lent()? });
            }
            for array in to {
                // SAFETY: by this function's contract; `expect_apart` saw that they do not overlap.
                outputs.push(unsafe { array.lent_mut()? });
            }
            Ok(cpu.run_lent(&op, &inputs, &mut outputs)?)
        }
        Device::Card(card) => {
            for array in from.iter().chain(to) {
                if !array.on_device {
                    let remedy = "copy it to the card and give memory = ENGINE_DEVICE";
                    return Err(array.refuse("lies in the host's memory", remedy));
                }
                if array.view.dtype == DType::F64 {
                    let remedy = "give f32, bf16 or f16";
                    return Err(array.refuse("is f64: cards have no such kernels", remedy));
                }
            }
            let views = |arrays: &[Array]| arrays.iter().map(|a| a.view).collect::<Vec<_>>();
            let (inputs, outputs) = (views(from), views(to));
            let io = Io { inputs: &inputs, outputs: &outputs };
            let _turn = context.turn();
            Ok(card.run(Box::new(op), io)?)
        }
    }
}

/// A result that the caller left out, in memory of the context's. It is given back when this is
/// dropped: on a card in queue order, so that what was enqueued may still use it.
struct Spare {
    array: Array,
    _host: Option<Vec<f64>>,
    _card: Option<Tensor>,
}

impl Spare {
    fn new(context: &Context, dims: &[usize], dtype: DType, name: &'static str) -> Outcome<Self> {
        let (host, card, address) = match &context.device {
            Device::Cpu(_) => {
                let bytes = dims.iter().product::<usize>() * dtype.size();
                let mut room = vec![0f64; bytes.div_ceil(8)];
                let address = room.as_mut_ptr().expose_provenance() as u64;
                (Some(room), None, address)
            }
            Device::Card(card) => {
                let backend: &dyn Backend = card.as_ref();
                let _turn = context.turn();
                let tensor = backend.empty(dims, dtype, name)?;
                let address = tensor.view().address;
                (None, Some(tensor), address)
            }
        };
        let on_device = card.is_some();
        Ok(Self {
            array: Array::own(address, dims, dtype, on_device, name),
            _host: host,
            _card: card,
        })
    }
}

/// The caller's array, or a spare one where it was left out.
///
/// # Safety
/// As [`read`].
unsafe fn or_spare(
    context: &Context,
    array: *const EngineArray,
    (dims, dtype): (&[usize], DType),
    (name, form): (&'static str, &str),
) -> Outcome<(Array, Option<Spare>)> {
    // SAFETY: by this function's contract.
    match unsafe { read_optional(array, name)? } {
        Some(array) => {
            array.shaped(dims, form)?;
            array.expect_type(dtype)?;
            Ok((array, None))
        }
        None => {
            let spare = Spare::new(context, dims, dtype, name)?;
            Ok((spare.array, Some(spare)))
        }
    }
}

/// The type of weights and statistics beside activations of `dtype`.
fn beside(dtype: DType) -> DType {
    if dtype.size() == 2 { DType::F32 } else { dtype }
}

fn expect_float(array: &Array) -> Outcome {
    if array.view.dtype.is_float() {
        return Ok(());
    }
    Err(array.refuse("is i32", "give an array of floats"))
}

fn find(context: *const EngineContext) -> Outcome<Arc<Context>> {
    handle::find::<Context>(context)
}

/// c = A B, or c += A B, then the row `bias` `[n]` added to every row where it is given (null: none).
/// a is `[m, k]`, b `[k, n]`, c `[m, n]`, or all three with the number of products in front. `flags`
/// are ENGINE_TRANSPOSE_A, ENGINE_TRANSPOSE_B and ENGINE_ACCUMULATE. All of one type; sums in f32 (f64
/// for f64).
///
/// # Safety
/// The arrays are null or engine_arrays whose pointers hold for their shapes; nothing else writes the
/// inputs or uses the outputs meanwhile.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn engine_gemm(
    context: *const EngineContext,
    a: *const EngineArray,
    b: *const EngineArray,
    bias: *const EngineArray,
    c: *const EngineArray,
    flags: u32,
) -> EngineStatus {
    guard(|| {
        let context = find(context)?;
        // SAFETY: by this function's contract.
        let (a, b, bias, c) =
            unsafe { (read(a, "a")?, read(b, "b")?, read_optional(bias, "bias")?, read(c, "c")?) };
        let op = product((&a, &b, bias.as_ref(), &c), flags)?;
        let mut inputs = vec![a, b];
        inputs.extend(bias);
        // SAFETY: by this function's contract; the op's extents are those of the arrays.
        unsafe { run(&context, op, &inputs, &[c]) }
    })
}

/// The op of a product, its operands' shapes checked.
fn product((a, b, bias, c): (&Array, &Array, Option<&Array>, &Array), flags: u32) -> Outcome<Gemm> {
    let (a_t, b_t) = (flags & ENGINE_TRANSPOSE_A != 0, flags & ENGINE_TRANSPOSE_B != 0);
    if flags & !(ENGINE_TRANSPOSE_A | ENGINE_TRANSPOSE_B | ENGINE_ACCUMULATE) != 0 {
        let remedy = "combine ENGINE_TRANSPOSE_A, ENGINE_TRANSPOSE_B and ENGINE_ACCUMULATE";
        return Err(Failure::argument("flags", format!("{flags:#x} has unknown bits"), remedy));
    }
    let form = "give c as [m, n] or [products, m, n]";
    let (batch, [m, n]) = match *c.dims() {
        [m, n] => (None, [m, n]),
        [batch, m, n] => (Some(batch), [m, n]),
        _ => return Err(c.refuse(format!("has shape {:?}", c.dims()), form)),
    };
    let k = match (a.dims(), a_t) {
        ([.., k, _], true) | ([.., _, k], false) => *k,
        _ => return Err(a.refuse(format!("has shape {:?}", a.dims()), "give it 2 or 3 axes")),
    };
    let with_batch = |dims: [usize; 2]| -> Vec<usize> { batch.into_iter().chain(dims).collect() };
    let (for_a, for_b) = (if a_t { [k, m] } else { [m, k] }, if b_t { [n, k] } else { [k, n] });
    a.shaped(&with_batch(for_a), "a is [m, k], or [k, m] with ENGINE_TRANSPOSE_A")?;
    b.shaped(&with_batch(for_b), "b is [k, n], or [n, k] with ENGINE_TRANSPOSE_B")?;
    expect_float(a)?;
    b.expect_type(a.view.dtype)?;
    c.expect_type(a.view.dtype)?;
    let mut op_flags = if flags & ENGINE_ACCUMULATE != 0 { gemm::ACCUMULATE } else { 0 };
    if let Some(bias) = bias {
        bias.shaped(&[n], "bias is [n]")?;
        bias.expect_type(beside(a.view.dtype))?;
        op_flags |= gemm::BIAS;
    }
    let dense = Gemm::dense((m, n, k), a_t, b_t, op_flags);
    Ok(match batch {
        None => dense,
        Some(batch) => Gemm { batch: size(batch), a_bs: size(m * k), b_bs: size(k * n), ..dense },
    })
}

/// The extents of an attention by its qkv.
fn attention_extents(qkv: &Array, heads: u32) -> Outcome<[usize; 4]> {
    let form = "qkv is [batch, time, 3 * heads * head_dim]: queries, keys, values, each by heads";
    let [batch, time, packed] = qkv.axes(form)?;
    let heads = heads as usize;
    expect_float(qkv)?;
    if heads == 0 || !packed.is_multiple_of(3 * heads) || packed / (3 * heads) > MAX_HEAD_DIM {
        let problem = format!("has {packed} channels for {heads} heads");
        let remedy = "give 3 * heads * head_dim channels, head_dim at most 128";
        return Err(qkv.refuse(problem, remedy));
    }
    Ok([batch, time, heads, packed / (3 * heads)])
}

/// out = softmax(Q Kᵀ / √head_dim) V by heads. qkv is `[batch, time, 3 * heads * head_dim]` (queries,
/// keys, values, each head by head, as PyTorch's in_proj gives them), out `[batch, time, heads *
/// head_dim]` of its type, lse `[batch, time, heads]` (the logarithms of the sums of exponentials, in
/// f32, or f64 for f64), which the backward pass wants; null: not wanted.
///
/// # Safety
/// As engine_gemm.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn engine_attention(
    context: *const EngineContext,
    qkv: *const EngineArray,
    heads: u32,
    out: *const EngineArray,
    lse: *const EngineArray,
) -> EngineStatus {
    guard(|| {
        let context = find(context)?;
        // SAFETY: by this function's contract.
        let (qkv, out) = unsafe { (read(qkv, "qkv")?, read(out, "out")?) };
        let [batch, time, heads, d] = attention_extents(&qkv, heads)?;
        out.shaped(&[batch, time, heads * d], "out is [batch, time, heads * head_dim]")?;
        out.expect_type(qkv.view.dtype)?;
        let kind = (&[batch, time, heads][..], beside(qkv.view.dtype));
        let words = ("lse", "lse is [batch, time, heads]");
        // SAFETY: by this function's contract.
        let (lse, _spare) = unsafe { or_spare(&context, lse, kind, words)? };
        let op = Attention::new(batch, time, heads, d);
        // SAFETY: by this function's contract; the op's extents are those of the arrays.
        unsafe { run(&context, op, &[qkv], &[out, lse]) }
    })
}

/// The gradient of engine_attention: d_qkv, of the shape of qkv, from the gradient d_out of its result,
/// its argument qkv and its results out and lse.
///
/// # Safety
/// As engine_gemm.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn engine_attention_backward(
    context: *const EngineContext,
    d_out: *const EngineArray,
    qkv: *const EngineArray,
    out: *const EngineArray,
    lse: *const EngineArray,
    heads: u32,
    d_qkv: *const EngineArray,
) -> EngineStatus {
    guard(|| {
        let context = find(context)?;
        // SAFETY: by this function's contract.
        let [d_out, qkv, out, lse, d_qkv] = unsafe {
            [
                read(d_out, "d_out")?,
                read(qkv, "qkv")?,
                read(out, "out")?,
                read(lse, "lse")?,
                read(d_qkv, "d_qkv")?,
            ]
        };
        let [batch, time, heads, d] = attention_extents(&qkv, heads)?;
        let dtype = qkv.view.dtype;
        for array in [&d_out, &out] {
            array.shaped(&[batch, time, heads * d], "it is [batch, time, heads * head_dim]")?;
            array.expect_type(dtype)?;
        }
        lse.shaped(&[batch, time, heads], "lse is [batch, time, heads]")?;
        lse.expect_type(beside(dtype))?;
        d_qkv.shaped(qkv.dims(), "d_qkv has the shape of qkv")?;
        d_qkv.expect_type(dtype)?;
        let op = AttentionBackward::new(batch, time, heads, d);
        // SAFETY: by this function's contract; the op's extents are those of the arrays.
        unsafe { run(&context, op, &[d_out, qkv, out, lse], &[d_qkv]) }
    })
}

/// Rows and columns of what is normalised.
fn rows_of(x: &Array) -> Outcome<(usize, usize)> {
    expect_float(x)?;
    match x.dims() {
        [.., cols] => Ok((x.view.shape.numel() / cols, *cols)),
        [] => Err(x.refuse("has no axis", "give it one axis or more")),
    }
}

fn expect_row(array: &Array, cols: usize, dtype: DType) -> Outcome {
    array.shaped(&[cols], "it is as long as the last axis of x")?;
    array.expect_type(beside(dtype))
}

/// y = (x - mean) / √(variance + epsilon) * gamma + beta over the last axis of x `[.., cols]`. y has
/// the shape and type of x; gamma and beta are `[cols]`, in f32 (f64 for f64), as are mean and rstd
/// `[rows]`, which the backward pass wants; null: not wanted.
///
/// # Safety
/// As engine_gemm.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn engine_layernorm(
    context: *const EngineContext,
    x: *const EngineArray,
    gamma: *const EngineArray,
    beta: *const EngineArray,
    epsilon: f32,
    y: *const EngineArray,
    mean: *const EngineArray,
    rstd: *const EngineArray,
) -> EngineStatus {
    guard(|| {
        let context = find(context)?;
        // SAFETY: by this function's contract.
        let [x, gamma, beta, y] =
            unsafe { [read(x, "x")?, read(gamma, "gamma")?, read(beta, "beta")?, read(y, "y")?] };
        let (rows, cols) = rows_of(&x)?;
        let dtype = x.view.dtype;
        expect_row(&gamma, cols, dtype)?;
        expect_row(&beta, cols, dtype)?;
        y.shaped(x.dims(), "y has the shape of x")?;
        y.expect_type(dtype)?;
        if !(epsilon >= 0.0 && epsilon.is_finite()) {
            let remedy = "give 1e-5, as PyTorch does";
            return Err(Failure::argument("epsilon", format!("is {epsilon}"), remedy));
        }
        let kind = (&[rows][..], beside(dtype));
        let words = |name| (name, "mean and rstd are [rows]");
        // SAFETY: by this function's contract.
        let ((mean, _first), (rstd, _second)) = unsafe {
            (
                or_spare(&context, mean, kind, words("mean"))?,
                or_spare(&context, rstd, kind, words("rstd"))?,
            )
        };
        let op = LayerNorm::new(rows, cols, epsilon);
        // SAFETY: by this function's contract; the op's extents are those of the arrays.
        unsafe { run(&context, op, &[x, gamma, beta], &[y, mean, rstd]) }
    })
}

/// The gradients of engine_layernorm: dx, of the shape of x, and d_gamma and d_beta `[cols]`, which are
/// added to, from the gradient dy of its result, its arguments x and gamma and its results mean and
/// rstd.
///
/// # Safety
/// As engine_gemm.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn engine_layernorm_backward(
    context: *const EngineContext,
    dy: *const EngineArray,
    x: *const EngineArray,
    gamma: *const EngineArray,
    mean: *const EngineArray,
    rstd: *const EngineArray,
    dx: *const EngineArray,
    d_gamma: *const EngineArray,
    d_beta: *const EngineArray,
) -> EngineStatus {
    guard(|| {
        let context = find(context)?;
        // SAFETY: by this function's contract.
        let (inputs, outputs) = unsafe {
            let inputs = [
                read(dy, "dy")?,
                read(x, "x")?,
                read(gamma, "gamma")?,
                read(mean, "mean")?,
                read(rstd, "rstd")?,
            ];
            let outputs = [read(dx, "dx")?, read(d_gamma, "d_gamma")?, read(d_beta, "d_beta")?];
            (inputs, outputs)
        };
        let ([dy, x, gamma, mean, rstd], [dx, d_gamma, d_beta]) = (&inputs, &outputs);
        let (rows, cols) = rows_of(x)?;
        let dtype = x.view.dtype;
        for array in [dy, dx] {
            array.shaped(x.dims(), "it has the shape of x")?;
            array.expect_type(dtype)?;
        }
        for array in [gamma, d_gamma, d_beta] {
            expect_row(array, cols, dtype)?;
        }
        for array in [mean, rstd] {
            array.shaped(&[rows], "mean and rstd are [rows]")?;
            array.expect_type(beside(dtype))?;
        }
        let op = LayerNormBoth::new(rows, cols);
        // SAFETY: by this function's contract; the op's extents are those of the arrays.
        unsafe { run(&context, op, &inputs, &outputs) }
    })
}

/// The extents of a spectral block, its gain checked.
fn spectral_extents(x: &Array, gain: &Array) -> Outcome<[usize; 3]> {
    expect_float(x)?;
    let [batch, time, channels] = x.axes("x is [batch, time, channels]")?;
    gain.shaped(&[time / 2 + 1, channels, 2], "gain is [time / 2 + 1, channels, 2]")?;
    gain.expect_type(beside(x.view.dtype))?;
    Ok([batch, time, channels])
}

/// y = irfft(rfft(x) * gain) along time. x and y are `[batch, time, channels]`, gain `[time / 2 + 1,
/// channels, 2]` (real, imaginary), in f32 (f64 for f64).
///
/// # Safety
/// As engine_gemm.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn engine_spectral(
    context: *const EngineContext,
    x: *const EngineArray,
    gain: *const EngineArray,
    y: *const EngineArray,
) -> EngineStatus {
    guard(|| {
        let context = find(context)?;
        // SAFETY: by this function's contract.
        let [x, gain, y] = unsafe { [read(x, "x")?, read(gain, "gain")?, read(y, "y")?] };
        let [batch, time, channels] = spectral_extents(&x, &gain)?;
        y.shaped(x.dims(), "y has the shape of x")?;
        y.expect_type(x.view.dtype)?;
        let op = Spectral::new(batch, time, channels);
        // SAFETY: by this function's contract; the op's extents are those of the arrays.
        unsafe { run(&context, op, &[x, gain], &[y]) }
    })
}

/// The gradients of engine_spectral: dx, of the shape of x, and d_gain, of the shape of gain, which is
/// added to, from the gradient dy of its result and its arguments.
///
/// # Safety
/// As engine_gemm.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn engine_spectral_backward(
    context: *const EngineContext,
    dy: *const EngineArray,
    x: *const EngineArray,
    gain: *const EngineArray,
    dx: *const EngineArray,
    d_gain: *const EngineArray,
) -> EngineStatus {
    guard(|| {
        let context = find(context)?;
        // SAFETY: by this function's contract.
        let [dy, x, gain, dx, d_gain] = unsafe {
            [
                read(dy, "dy")?,
                read(x, "x")?,
                read(gain, "gain")?,
                read(dx, "dx")?,
                read(d_gain, "d_gain")?,
            ]
        };
        let [batch, time, channels] = spectral_extents(&x, &gain)?;
        for array in [&dy, &dx] {
            array.shaped(x.dims(), "it has the shape of x")?;
            array.expect_type(x.view.dtype)?;
        }
        d_gain.shaped(gain.dims(), "d_gain has the shape of gain")?;
        d_gain.expect_type(gain.view.dtype)?;
        let op = SpectralGrad::new(batch, time, channels);
        // SAFETY: by this function's contract; the op's extents are those of the arrays.
        unsafe { run(&context, op, &[dy, x, gain], &[d_gain, dx]) }
    })
}
