//! Layers: parameters by name, and a forward pass.

use super::params::{Builder, Init, ParamId};
use crate::Result;
use crate::ops::gemm::{self, After};
use crate::ops::mlp::{Mlp, mlp};
use crate::ops::{attention, layernorm};
use crate::tape::{Tape, Var};

/// y = x Wᵀ + b, as `torch.nn.Linear`.
#[derive(Debug, Clone)]
pub struct Linear {
    weight: ParamId,
    bias: ParamId,
}

impl Linear {
    /// `[outputs, inputs]` weights and `[outputs]` biases.
    pub fn new(builder: &mut Builder, name: &str, inputs: usize, outputs: usize) -> Self {
        Self::with_names(builder, (name, "weight", "bias"), inputs, outputs)
    }

    fn with_names(
        builder: &mut Builder,
        (scope, weight, bias): (&str, &str, &str),
        inputs: usize,
        outputs: usize,
    ) -> Self {
        let init = Init::fan_in(inputs);
        let make = |builder: &mut Builder| Self {
            weight: builder.param(weight, [outputs, inputs], init),
            bias: builder.param(bias, [outputs], init),
        };
        if scope.is_empty() { make(builder) } else { builder.scoped(scope, make) }
    }

    /// `[.., inputs]` to `[.., outputs]`.
    ///
    /// # Errors
    /// As [`gemm::linear`].
    pub fn forward(&self, tape: &Tape<'_>, x: &Var) -> Result<Var> {
        self.forward_with(tape, x, After::default())
    }

    /// [`Linear::forward`] and what follows; the bias is added by this call.
    ///
    /// # Errors
    /// As [`gemm::linear`].
    pub fn forward_with(&self, tape: &Tape<'_>, x: &Var, after: After<'_>) -> Result<Var> {
        let bias = tape.param(self.bias);
        let weight = tape.weight(self.weight, x.dtype());
        gemm::linear(tape, x, &weight, After { bias: Some(&bias), ..after })
    }
}

/// Layer normalisation, as `torch.nn.LayerNorm`.
#[derive(Debug, Clone)]
pub struct LayerNorm {
    gamma: ParamId,
    beta: ParamId,
}

impl LayerNorm {
    /// PyTorch's default.
    pub const EPSILON: f32 = 1e-5;

    /// Scale and shift of the last axis.
    pub fn new(builder: &mut Builder, name: &str, width: usize) -> Self {
        builder.scoped(name, |builder| Self {
            gamma: builder.param("weight", [width], Init::Constant(1.0)),
            beta: builder.param("bias", [width], Init::Constant(0.0)),
        })
    }

    /// Same shape as `x` `[.., width]`.
    ///
    /// # Errors
    /// As [`layernorm::layernorm`].
    pub fn forward(&self, tape: &Tape<'_>, x: &Var) -> Result<Var> {
        let (gamma, beta) = (tape.param(self.gamma), tape.param(self.beta));
        layernorm::layernorm(tape, x, &gamma, &beta, Self::EPSILON)
    }
}

/// Multi-head self-attention, with the parameters of `torch.nn.MultiheadAttention`.
#[derive(Debug, Clone)]
pub struct SelfAttention {
    input: Linear,
    output: Linear,
    heads: usize,
}

impl SelfAttention {
    /// `heads` heads over `width` channels.
    pub fn new(builder: &mut Builder, name: &str, width: usize, heads: usize) -> Self {
        builder.scoped(name, |builder| {
            let names = ("", "in_proj_weight", "in_proj_bias");
            let input = Self::glorot_input(builder, names, width);
            Self { input, output: Linear::new(builder, "out_proj", width, width), heads }
        })
    }

    /// PyTorch draws these from Glorot's distribution and starts biases at 0.
    fn glorot_input(builder: &mut Builder, names: (&str, &str, &str), width: usize) -> Linear {
        let init = Init::glorot(width, 3 * width);
        Linear {
            weight: builder.param(names.1, [3 * width, width], init),
            bias: builder.param(names.2, [3 * width], Init::Constant(0.0)),
        }
    }

    /// residual + dropout(attention(x)), all `[batch, time, width]`.
    ///
    /// # Errors
    /// As the ops.
    pub fn forward(&self, tape: &Tape<'_>, x: &Var, dropout: f32, residual: &Var) -> Result<Var> {
        let qkv = self.input.forward(tape, x)?;
        let mixed = attention::attention(tape, &qkv, self.heads)?;
        let after = After { dropout, residual: Some(residual), ..After::default() };
        self.output.forward_with(tape, &mixed, after)
    }
}

/// A pre-norm transformer layer (Xiong et al. 2020) with the parameters of
/// `torch.nn.TransformerEncoderLayer(norm_first=True, activation="gelu")`; dropout acts on the two
/// residual branches.
#[derive(Debug, Clone)]
pub struct TransformerLayer {
    attention: SelfAttention,
    linear1: Linear,
    linear2: Linear,
    norm1: LayerNorm,
    norm2: LayerNorm,
    dropout: f32,
}

impl TransformerLayer {
    /// A layer of `width` channels with an MLP of 4 `width`.
    pub fn new(builder: &mut Builder, width: usize, heads: usize, dropout: f32) -> Self {
        Self {
            attention: SelfAttention::new(builder, "self_attn", width, heads),
            linear1: Linear::new(builder, "linear1", width, 4 * width),
            linear2: Linear::new(builder, "linear2", 4 * width, width),
            norm1: LayerNorm::new(builder, "norm1", width),
            norm2: LayerNorm::new(builder, "norm2", width),
            dropout,
        }
    }

    /// Same shape as `x` `[batch, time, width]`.
    ///
    /// # Errors
    /// As the ops.
    pub fn forward(&self, tape: &Tape<'_>, x: &Var) -> Result<Var> {
        let x = tape.scoped("self_attn", || {
            let normal = self.norm1.forward(tape, x)?;
            self.attention.forward(tape, &normal, self.dropout, x)
        })?;
        tape.scoped("mlp", || {
            let normal = self.norm2.forward(tape, &x)?;
            let dtype = normal.dtype();
            let parameters = Mlp {
                weight1: &tape.weight(self.linear1.weight, dtype),
                bias1: &tape.param(self.linear1.bias),
                weight2: &tape.weight(self.linear2.weight, dtype),
                bias2: &tape.param(self.linear2.bias),
                dropout: self.dropout,
            };
            mlp(tape, &normal, &parameters, &x)
        })
    }
}
