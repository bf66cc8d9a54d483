"""A trained model and a recording in, predictions out: what `engine predict RUN --data FILE --windows`
prints, as lines of start (s) and numbers.
"""

import sys

import engine


def main() -> None:
    if len(sys.argv) != 3:
        raise SystemExit("usage: predict.py RUN RECORDING")
    context = engine.Context(log=lambda warning, message: print(message, file=sys.stderr))
    found = context.load(sys.argv[1]).predict_file(sys.argv[2])
    for start, values in zip(found.starts_s, found.values):
        print(start, *values)


if __name__ == "__main__":
    main()
