"""PyTorch's layer normalisation over d_model, eager and compiled.

    python benches/peers/layernorm.py --profile rtx4090
"""

import torch
import torch.nn.functional as F

import common


def run(mode: str, dtype: torch.dtype, sizes: dict, arguments) -> dict:
    rows, d_model = sizes["batch"] * common.WINDOW, sizes["d_model"]
    make = {"device": arguments.device, "dtype": dtype}
    x = torch.randn(rows, d_model, **make, requires_grad=True)
    weight, bias = (torch.randn(d_model, **make, requires_grad=True) for _ in range(2))
    upstream = torch.randn(rows, d_model, **make)

    def forward():
        return F.layer_norm(x, (d_model,), weight, bias, 1e-5)

    if mode == "compile":
        torch._dynamo.reset()
        forward = torch.compile(forward)

    def both():
        return torch.autograd.grad(forward(), [x, weight, bias], upstream)

    return {
        "shape": [rows, d_model],
        "forward": common.measure_op(forward, arguments),
        "forward_backward": common.measure_op(both, arguments),
    }


def main() -> None:
    arguments = common.parse(__doc__.splitlines()[0])
    for profile, sizes in common.profiles(arguments):
        for dtype in (torch.float32, torch.bfloat16):
            for mode in ("eager", "compile"):
                result = run(mode, dtype, sizes, arguments)
                name = str(dtype).removeprefix("torch.")
                common.report(
                    "layernorm", arguments, profile=profile, dtype=name, mode=mode, **result
                )


if __name__ == "__main__":
    main()
