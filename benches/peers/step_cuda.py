"""PyTorch's training step on CUDA: forward, MSE, backward, clip to 1.0, AdamW, in several modes.

    python benches/peers/step_cuda.py --profile rtx4090                  # every mode and precision
    python benches/peers/step_cuda.py --mode compile-graph --precision bf16

Modes: `eager`; `compile` (torch.compile of forward, loss and backward); `compile-reduce-overhead`
(the same with CUDA graphs around each); `compile-graph` (compiled, then the whole step with clip
and optimizer captured as one CUDA graph: the strongest of them).
Precisions: `fp32` (IEEE products), `tf32`, `bf16` (autocast, f32 master weights, TF32 elsewhere).
"""

import gc

import torch
import torch.nn.functional as F

import common

MODES = ("eager", "compile", "compile-reduce-overhead", "compile-graph")


def options(parser):
    parser.add_argument("--mode", choices=[*MODES, "all"], default="all")
    parser.add_argument("--precision", choices=[*common.PRECISIONS, "all"], default="all")
    parser.add_argument("--dropout", type=float, default=0.1)


def training_step(mode: str, precision: str, sizes: dict, arguments):
    """A function that trains on one batch; building it compiles and captures."""
    device = arguments.device
    common.set_precision(precision)
    model, x, y = common.build(sizes, device, arguments.dropout)
    optimizer = common.adamw(model, capturable=device == "cuda")
    parameters = list(model.parameters())

    def loss():
        with common.autocast(precision, device):
            return F.mse_loss(model(x).float(), y)

    if mode != "eager":
        torch._dynamo.reset()
        compiler_mode = "reduce-overhead" if mode == "compile-reduce-overhead" else "default"
        loss = torch.compile(loss, mode=compiler_mode)

    def step():
        optimizer.zero_grad(set_to_none=True)
        loss().backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()

    return common.graphed(step) if mode == "compile-graph" and device == "cuda" else step


def run(mode: str, precision: str, sizes: dict, arguments) -> dict:
    """Times and peak memory of one mode; what went wrong where PyTorch cannot do it."""
    cuda = arguments.device == "cuda"
    if cuda:
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    try:
        step = training_step(mode, precision, sizes, arguments)
        result = common.measure(step, arguments)
    except Exception as error:  # the other modes are still worth their time on the card
        return {"failed": f"{type(error).__name__}: {error}".splitlines()[0]}
    if cuda:
        result["peak_mib"] = round(torch.cuda.max_memory_allocated() / 2**20, 1)
    return result | {"windows_per_s": round(1e3 * sizes["batch"] / result["median_ms"], 1)}


def main() -> None:
    arguments = common.parse(__doc__.splitlines()[0], options)
    modes = MODES if arguments.mode == "all" else [arguments.mode]
    precisions = common.PRECISIONS if arguments.precision == "all" else [arguments.precision]
    for profile, sizes in common.profiles(arguments):
        for mode in modes:
            for precision in precisions:
                what = {"mode": mode, "precision": precision, "dropout": arguments.dropout}
                result = run(mode, precision, sizes, arguments)
                common.report("step_cuda", arguments, profile=profile, **what, **sizes, **result)


if __name__ == "__main__":
    main()
