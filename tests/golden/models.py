"""The engine's two models in PyTorch: the reference its numbers are checked and timed against.

Parameter names, shapes and order of operations are the engine's; a `state_dict` of either class is
a checkpoint the engine reads, and the reverse (docs/weights.md).
"""

import torch
from torch import nn


class SpectralGain(nn.Module):
    """A learned complex gain per frequency and feature, applied along time.

    `y = irfft(rfft(x, dim=1) * gain, n=n_tokens, dim=1)`, without residual (the global filter of
    Rao et al. 2021, arXiv:2107.00645). The inverse transform ignores the imaginary part at 0 Hz
    and, for an even n_tokens, at the Nyquist frequency, so those gains have gradient zero.
    """

    def __init__(self, n_tokens: int, d_model: int):
        super().__init__()
        gain = torch.zeros(n_tokens // 2 + 1, d_model, 2)
        gain[..., 0] = 1.0
        self.gain = nn.Parameter(gain)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x and result: [batch, n_tokens, d_model]."""
        # Written with time last and contiguous: torch.compile mistakes the strides of a transform
        # along another axis (pytorch/pytorch#106623), and the layers after it want theirs in order.
        spectrum = torch.fft.rfft(x.transpose(1, 2).contiguous())
        spectrum = spectrum * torch.view_as_complex(self.gain).transpose(0, 1)
        return torch.fft.irfft(spectrum, n=x.shape[1]).transpose(1, 2).contiguous()


class EegFormer(nn.Module):
    """A pre-norm transformer over time tokens: input [batch, n_channels, window], output
    [batch, num_classes]."""

    def __init__(
        self,
        n_channels=129,
        num_classes=1,
        d_model=128,
        n_heads=8,
        n_layers=6,
        window=200,
        patch=1,
        dropout=0.1,
        n_spectral=1,
    ):
        super().__init__()
        n_tokens = window // patch
        self.patch_embed = nn.Conv1d(n_channels, d_model, kernel_size=patch, stride=patch)
        self.pos_embed = nn.Parameter(torch.randn(n_tokens, d_model) * 0.02)
        self.spectral = nn.ModuleList(SpectralGain(n_tokens, d_model) for _ in range(n_spectral))
        self.layers = nn.ModuleList(
            encoder_layer(d_model, n_heads, dropout) for _ in range(n_layers)
        )
        self.norm = nn.LayerNorm(d_model, eps=1e-5)
        self.head = nn.Linear(d_model, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patch_embed(x).transpose(1, 2) + self.pos_embed
        for block in self.spectral:
            x = block(x)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x).mean(dim=1))


def encoder_layer(d_model: int, n_heads: int, dropout: float) -> nn.TransformerEncoderLayer:
    """PyTorch's own layer with dropout on the two residual branches only, as in the engine."""
    layer = nn.TransformerEncoderLayer(
        d_model,
        n_heads,
        dim_feedforward=4 * d_model,
        dropout=dropout,
        activation="gelu",
        batch_first=True,
        norm_first=True,
    )
    layer.dropout.p = 0.0
    layer.self_attn.dropout = 0.0
    return layer


class CombinedConv(nn.Module):
    """Convolution over time, then over channels, with nothing in between."""

    def __init__(self, n_channels: int):
        super().__init__()
        self.conv_time = nn.Conv2d(1, 40, (25, 1))
        self.conv_spat = nn.Conv2d(40, 40, (1, n_channels), bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv_spat(self.conv_time(x))


class Shallow(nn.Module):
    """ShallowFBCSPNet (Schirrmeister et al. 2017, doi:10.1002/hbm.23730) under braindecode's
    parameter names: input [batch, n_channels, window], output [batch, num_classes]."""

    def __init__(self, n_channels=129, num_classes=1, window=200, dropout=0.5):
        super().__init__()
        n_time_out = (window - 24 - 75) // 15 + 1
        self.conv_time_spat = CombinedConv(n_channels)
        self.bnorm = nn.BatchNorm2d(40, momentum=0.1, eps=1e-5)
        self.pool = nn.AvgPool2d((75, 1), stride=(15, 1))
        self.drop = nn.Dropout(dropout)
        self.final_layer = nn.Sequential()
        classifier = nn.Conv2d(40, num_classes, (n_time_out, 1))
        self.final_layer.add_module("conv_classifier", classifier)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.transpose(1, 2).unsqueeze(1)  # [batch, 1, window, n_channels]
        x = self.bnorm(self.conv_time_spat(x)).square()
        x = self.pool(x).clamp(min=1e-6).log()
        return self.final_layer(self.drop(x)).flatten(1)


MODELS = {"eegformer": EegFormer, "shallow": Shallow}


def decays(name: str, parameter: torch.Tensor) -> bool:
    """Whether the engine's default groups decay this parameter: matrices and kernels do; biases,
    norms, positions and spectral gains do not."""
    return parameter.ndim >= 2 and name != "pos_embed" and not name.startswith("spectral.")


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """The two parameter groups that reproduce `decays` in a PyTorch optimizer."""
    named = list(model.named_parameters())
    return [
        {"params": [p for n, p in named if decays(n, p)], "weight_decay": weight_decay},
        {"params": [p for n, p in named if not decays(n, p)], "weight_decay": 0.0},
    ]
