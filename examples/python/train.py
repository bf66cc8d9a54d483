"""Training step by step, with the engine's loss and with one of the host's own; then saved and loaded.
The same numbers as examples/c/train.c.
"""

import sys
from typing import Iterator, Tuple

import numpy as np

import engine

BATCH, CHANNELS, WINDOW = 8, 4, 32


def draws(state: int) -> Iterator[np.float32]:
    """Numbers between -1 and 1 that are the same everywhere."""
    while True:
        state = (state * 1664525 + 1013904223) % 2**32
        yield np.float32((state >> 8) / 2**23 - 1)


def make(numbers: Iterator[np.float32]) -> Tuple[np.ndarray, np.ndarray]:
    """Windows whose label is the strength of a sine in the first channel."""
    windows = np.empty((BATCH, CHANNELS, WINDOW), np.float32)
    targets = np.empty((BATCH, 1), np.float32)
    wave = np.sin(np.float32(0.6) * np.arange(WINDOW, dtype=np.float32))
    for i in range(BATCH):
        targets[i] = next(numbers)
        noise = [next(numbers) for _ in range(CHANNELS * WINDOW)]
        windows[i] = np.float32(0.1) * np.reshape(noise, (CHANNELS, WINDOW))
        windows[i, 0] += targets[i] * wave
    return windows, targets


def main() -> None:
    if len(sys.argv) != 2:
        raise SystemExit("usage: train.py CHECKPOINT")
    context = engine.Context()
    definition = {
        "model": {
            "name": "eegformer",
            "n_channels": CHANNELS,
            "window": WINDOW,
            "d_model": 16,
            "n_heads": 2,
            "n_layers": 1,
            "patch": 4,
        }
    }
    trainer = context.trainer(definition, batch=BATCH, clip=1.0, seed=7)
    numbers = draws(5)
    for i in range(60):
        windows, targets = make(numbers)

        def log_cosh(outputs: np.ndarray, _: int) -> Tuple[float, np.ndarray]:
            error = outputs.astype(np.float64) - targets
            return np.log(np.cosh(error)).mean(), np.tanh(error) / error.size

        step = trainer.step(windows, targets if i < 40 else log_cosh, lr=3e-3)
        if i % 10 == 9:
            print(f"step {step.step} loss {step.loss:.9g}")

    outputs = trainer.forward(windows)
    trainer.save(sys.argv[1])
    again = context.load(sys.argv[1]).forward(windows)
    np.testing.assert_array_equal(outputs, again)


if __name__ == "__main__":
    main()
