"""PyTorch's eager training step on the CPU: forward, MSE, backward, clip to 1.0, AdamW, in f32.

    python benches/peers/step_cpu.py --threads 2 --profile rx5600xt

`--turns` takes a number of steps from each line of the input and prints their milliseconds as a list,
for whoever measures something else in between.
"""

import json
import sys
import time

import torch
import torch.nn.functional as F

import common


def options(parser):
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--turns", action="store_true", help="as many steps as each line says")
    parser.set_defaults(batch=8, seconds=20.0)


def take_turns(step) -> None:
    for _ in range(3):
        step()
    print("ready", flush=True)
    for line in sys.stdin:
        times = []
        for _ in range(int(line)):
            start = time.perf_counter()
            step()
            times.append(1e3 * (time.perf_counter() - start))
        print(json.dumps(times), flush=True)


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

        if arguments.turns:
            return take_turns(step)
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
