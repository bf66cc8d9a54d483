"""Matrix products of the transformer layer through PyTorch (cuBLAS): out = x @ weight.T + bias.

    python benches/peers/gemm.py --profile rtx4090
"""

import torch
import torch.nn.functional as F

import common


def products(sizes: dict):
    """(name, rows, inner, columns) of the layer's four products."""
    rows, d = sizes["batch"] * common.WINDOW, sizes["d_model"]
    yield "qkv", rows, d, 3 * d
    yield "out_proj", rows, d, d
    yield "linear1", rows, d, 4 * d
    yield "linear2", rows, 4 * d, d


def main() -> None:
    arguments = common.parse(__doc__.splitlines()[0])
    for profile, sizes in common.profiles(arguments):
        for name, m, k, n in products(sizes):
            for precision in common.PRECISIONS:
                common.set_precision(precision)
                dtype = torch.bfloat16 if precision == "bf16" else torch.float32
                make = {"device": arguments.device, "dtype": dtype}
                x, weight = torch.randn(m, k, **make), torch.randn(n, k, **make)
                bias = torch.randn(n, **make)
                times = common.measure_op(lambda: F.linear(x, weight, bias), arguments)
                common.report(
                    "gemm",
                    arguments,
                    profile=profile,
                    product=name,
                    m=m,
                    n=n,
                    k=k,
                    precision=precision,
                    **times,
                    tflops=round(2e-9 * m * n * k / times["median_ms"], 3),
                )


if __name__ == "__main__":
    main()
