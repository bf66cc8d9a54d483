"""PyTorch's scaled dot-product attention at the profiles' shapes, per backend and dtype.

    python benches/peers/attention.py --profile rtx4090
"""

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

import common

BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "math": SDPBackend.MATH,
}


def run(backend: str, dtype: torch.dtype, sizes: dict, arguments) -> dict:
    """Times of forward, and of forward with backward; the reason where a backend cannot."""
    n_heads = sizes["n_heads"]
    shape = (sizes["batch"], n_heads, common.WINDOW, sizes["d_model"] // n_heads)
    q, k, v, upstream = torch.randn(4, *shape, device=arguments.device, dtype=dtype)
    inputs = [t.clone().requires_grad_() for t in (q, k, v)]

    def forward():
        with sdpa_kernel(BACKENDS[backend]):
            return F.scaled_dot_product_attention(*inputs)

    def both():
        return torch.autograd.grad(forward(), inputs, upstream)

    try:
        both()
    except RuntimeError as error:
        return {"unsupported": str(error).splitlines()[0]}
    return {
        "shape": list(shape),
        "forward": common.measure_op(forward, arguments),
        "forward_backward": common.measure_op(both, arguments),
    }


def main() -> None:
    arguments = common.parse(__doc__.splitlines()[0])
    common.set_precision("tf32")
    for profile, sizes in common.profiles(arguments):
        for dtype in (torch.float32, torch.bfloat16):
            for backend in BACKENDS:
                result = run(backend, dtype, sizes, arguments)
                name = str(dtype).removeprefix("torch.")
                common.report(
                    "attention", arguments, profile=profile, dtype=name, backend=backend, **result
                )


if __name__ == "__main__":
    main()
