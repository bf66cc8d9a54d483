"""PyTorch's AdamW over each profile's parameters, with and without the gradient clip before it.

    python benches/peers/adamw.py --profile rtx4090
"""

import torch

import common

KINDS = {"fused": {"fused": True}, "foreach": {"foreach": True}}


def run(kind: str, clip: bool, sizes: dict, arguments) -> dict:
    model, _, _ = common.build(sizes, arguments.device, dropout=0.0)
    parameters = list(model.parameters())
    for p in parameters:
        p.grad = torch.randn_like(p)
    groups = common.decay_groups(model, weight_decay=0.01)
    capturable = arguments.device == "cuda"
    optimizer = torch.optim.AdamW(groups, lr=1e-3, capturable=capturable, **KINDS[kind])

    def step():
        if clip:
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()

    return {
        "parameters": sum(p.numel() for p in parameters),
        "tensors": len(parameters),
        **common.measure_op(step, arguments, inner=5),
    }


def main() -> None:
    arguments = common.parse(__doc__.splitlines()[0])
    for profile, sizes in common.profiles(arguments):
        for kind in KINDS:
            for clip in (False, True):
                result = run(kind, clip, sizes, arguments)
                common.report("adamw", arguments, profile=profile, kind=kind, clip=clip, **result)


if __name__ == "__main__":
    main()
