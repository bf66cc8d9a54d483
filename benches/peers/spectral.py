"""The spectral gain in PyTorch: irfft(rfft(x) * gain) along time, through cuFFT, in f32.

    python benches/peers/spectral.py --profile rtx4090
"""

import torch

import common
from models import SpectralGain


def main() -> None:
    arguments = common.parse(__doc__.splitlines()[0])
    for profile, sizes in common.profiles(arguments):
        shape = (sizes["batch"], common.WINDOW, sizes["d_model"])
        block = SpectralGain(common.WINDOW, sizes["d_model"]).to(arguments.device)
        x = torch.randn(shape, device=arguments.device, requires_grad=True)
        upstream = torch.randn(shape, device=arguments.device)

        def forward():
            return block(x)

        def both():
            return torch.autograd.grad(block(x), [x, block.gain], upstream)

        common.report(
            "spectral",
            arguments,
            profile=profile,
            shape=list(shape),
            forward=common.measure_op(forward, arguments),
            forward_backward=common.measure_op(both, arguments),
        )


if __name__ == "__main__":
    main()
