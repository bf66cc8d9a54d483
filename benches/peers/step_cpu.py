"""PyTorch's eager training step on the CPU: forward, MSE, backward, clip to 1.0, AdamW, in f32.

    python benches/peers/step_cpu.py --threads 2 --profile rx5600xt
"""

import torch
import torch.nn.functional as F

import common


def options(parser):
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.set_defaults(batch=8, seconds=20.0)


def main() -> None:
    arguments = common.parse(__doc__.splitlines()[0], options, cpu=True)
    torch.set_num_threads(arguments.threads)
    for profile, sizes in common.profiles(arguments):
        model, x, y = common.build(sizes, "cpu", arguments.dropout)
        optimizer = common.adamw(model)

        def step():
            optimizer.zero_grad(set_to_none=True)
            F.mse_loss(model(x), y).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()

        times = common.measure(step, arguments)
        common.report(
            "step_cpu",
            arguments,
            profile=profile,
            threads=arguments.threads,
            dropout=arguments.dropout,
            parameters=sum(p.numel() for p in model.parameters()),
            **sizes,
            **times,
            windows_per_s=round(1e3 * sizes["batch"] / times["median_ms"], 1),
        )


if __name__ == "__main__":
    main()
