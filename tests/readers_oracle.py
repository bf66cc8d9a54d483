"""What other people's readers find in a recording, for tests/readers.rs to compare with.

    python3 readers_oracle.py libraries             names the readers that can be imported here
    python3 readers_oracle.py dump OUT FILE...      every sample, into the folder OUT
    python3 readers_oracle.py expect ROOT FILE...   readers_expected.tsv, on standard output
    python3 readers_oracle.py write73 OUT SEED      EEGLAB datasets as MATLAB 7.3 files, with h5py

Readers: edfio and pyedflib for EDF and BDF (physical and digital values), mne for BrainVision
(microvolts) and EEGLAB (whose signals mne takes to be microvolts). `dump` writes OUT/index.jsonl,
one line for each pair of file and reader: signals with label, rate and the name of a file of
little-endian f64 values, and annotations as [onset, duration, text]. `expect` needs edfio and mne.
"""

import json
import os
import re
import sys
import warnings
import zlib

import numpy as np

warnings.filterwarnings("ignore")


def edfio_signals(path):
    import edfio

    file = (edfio.read_bdf if path.endswith(".bdf") else edfio.read_edf)(path)
    signals = [
        (s.label, s.sampling_frequency, s.data.astype(np.float64), s.digital.astype(np.int32))
        for s in file.signals
    ]
    return signals, [(a.onset, a.duration or 0.0, a.text) for a in file.annotations]


def pyedflib_signals(path):
    import pyedflib

    with pyedflib.EdfReader(path) as file:
        signals = [
            (
                file.getLabel(i),
                file.getSampleFrequency(i),
                file.readSignal(i),
                file.readSignal(i, digital=True).astype(np.int32),
            )
            for i in range(file.signals_in_file)
        ]
        onsets, durations, texts = file.readAnnotations()
    marks = [(float(o), max(float(d), 0.0), str(t)) for o, d, t in zip(onsets, durations, texts)]
    return signals, marks


def mne_signals(path):
    import mne

    mne.set_log_level("ERROR")
    if path.endswith(".vhdr"):
        raw = mne.io.read_raw_brainvision(path)
    else:
        raw = mne.io.read_raw_eeglab(path)
    # MNE stores SI units; the files' own are the header's, each with the prefix micro or none.
    units = ["uV"] * len(raw.ch_names)
    if path.endswith(".vhdr"):
        lines = open(path, encoding="utf-8", errors="replace").read().split("[Comment]")[0]
        lines = [line for line in lines.splitlines() if re.match(r"Ch\d+=", line)]
        units = [(line.split(",") + [""] * 3)[3] or "uV" for line in lines]
    micro = [unit[0] in "u\u00b5\u03bc" for unit in units]
    signals = [
        (name, raw.info["sfreq"], raw.get_data([i])[0] * (1e6 if micro[i] else 1.0), None)
        for i, name in enumerate(raw.ch_names)
    ]
    marks = [(float(a["onset"]), float(a["duration"]), a["description"]) for a in raw.annotations]
    return signals, marks


READERS = {"edfio": edfio_signals, "pyedflib": pyedflib_signals, "mne": mne_signals}
EDF = (".edf", ".bdf")


def installed():
    names = []
    for name in READERS:
        try:
            __import__(name)
            names.append(name)
        except ImportError:
            pass
    return names


def readers_of(path):
    names = ("edfio", "pyedflib") if path.lower().endswith(EDF) else ("mne",)
    return [name for name in names if name in installed()]


def dump(out, paths):
    with open(os.path.join(out, "index.jsonl"), "w") as index:
        for number, path in enumerate(paths):
            for reader in readers_of(path):
                line = {"path": path, "reader": reader}
                try:
                    signals, marks = READERS[reader](path)
                except Exception as error:  # what one reader refuses, another may take
                    line["refused"] = str(error)
                    index.write(json.dumps(line) + "\n")
                    continue
                line["annotations"] = marks
                line["signals"] = []
                for i, (label, rate, physical, _) in enumerate(signals):
                    values = f"{number}-{reader}-{i}.f64"
                    np.asarray(physical, dtype="<f8").tofile(os.path.join(out, values))
                    line["signals"].append({"label": label, "rate": rate, "values": values})
                index.write(json.dumps(line) + "\n")


def expect(root, paths):
    """Signals of one file that follow each other at one rate share a line, so that the table
    stays short; the checksum and the sums run over all of them."""
    print("# Written by tests/readers_oracle.py. A line for each run of signals at one rate:")
    print("# file, reader, first signal, signals, rate, samples each, crc32 of the digital values")
    print("# (i32), sum, sum of squares, first value, last value; and one for each annotation:")
    print("# file, annotation, onset, duration, text")
    for path in paths:
        reader = "edfio" if path.lower().endswith(EDF) else "mne"
        signals, marks = READERS[reader](path)
        name = os.path.relpath(path, root)
        runs = []
        for i, (_, rate, values, digital) in enumerate(signals):
            if not runs or (runs[-1][1], len(runs[-1][2][0])) != (rate, len(values)):
                runs.append((i, rate, [], []))
            runs[-1][2].append(values)
            runs[-1][3].append(digital)
        for first, rate, values, digital in runs:
            count, samples = len(values), len(values[0])
            values = np.concatenate(values)
            crc = "-"
            if digital[0] is not None:
                crc = f"{zlib.crc32(np.concatenate(digital).astype('<i4').tobytes()):08x}"
            numbers = (values.sum(), (values**2).sum(), values[0], values[-1])
            numbers = "\t".join(f"{v:.12g}" for v in numbers)
            print(f"{name}\t{reader}\t{first}\t{count}\t{rate:.10g}\t{samples}\t{crc}\t{numbers}")
        for onset, duration, text in marks:
            print(f"{name}\tannotation\t{onset:.9g}\t{duration:.9g}\t{text}")


def write73(out, seed):
    """OUT/<storage>.set and the samples in OUT/<storage>.f64, `[time, channels]`."""
    import h5py

    rng = np.random.default_rng(seed)
    layouts = {
        "contiguous": {},
        "deflated": {"compression": "gzip", "chunks": (100, 3), "shuffle": True},
        "checked": {"chunks": (64, 7), "fletcher32": True},
    }
    for name, storage in layouts.items():
        path = os.path.join(out, name + ".set")
        data = rng.normal(0, 50, (1001, 7)).astype("f4" if name == "deflated" else "f8")
        data.astype("<f8").tofile(os.path.join(out, name + ".f64"))
        with h5py.File(path, "w", userblock_size=512) as file:
            root = file if name == "checked" else file.create_group("EEG")

            def put(group, key, values, kind):
                group[key] = values
                group[key].attrs["MATLAB_class"] = np.bytes_(kind)
                return group[key]

            def text(group, key, words):
                units = np.array([[ord(c)] for c in words], dtype="u2")
                return put(group, key, units, "char")

            def structs(key, fields):
                group = root.create_group(key)
                group.attrs["MATLAB_class"] = np.bytes_("struct")
                for field, targets in fields.items():
                    references = np.array([[t.ref] for t in targets], dtype=h5py.ref_dtype)
                    group.create_dataset(field, data=references, dtype=h5py.ref_dtype)

            root.create_dataset("data", data=data, **storage)
            root["data"].attrs["MATLAB_class"] = np.bytes_("double")
            for key, value in {"nbchan": 7, "pnts": 1001, "trials": 1, "srate": 250}.items():
                put(root, key, np.array([[float(value)]]), "double")
            pool = file.create_group("#refs#")
            labels = [text(pool, f"l{i}", f"E{i + 1}") for i in range(7)]
            structs("chanlocs", {"labels": labels})
            kinds = [text(pool, f"t{i}", f"mark {i}") for i in range(40)]
            times = [put(pool, f"s{i}", np.array([[25.0 * i + 1]]), "double") for i in range(40)]
            structs("event", {"type": kinds, "latency": times})
            empty = put(root, "ref", np.array([0, 0], dtype="u8"), "char")
            empty.attrs["MATLAB_empty"] = np.uint8(1)
        with open(path, "r+b") as file:
            file.write(b"MATLAB 7.3 MAT-file, written by a test")


if __name__ == "__main__":
    if sys.argv[1] == "libraries":
        print(" ".join(installed()))
    elif sys.argv[1] == "dump":
        dump(sys.argv[2], sys.argv[3:])
    elif sys.argv[1] == "write73":
        write73(sys.argv[2], int(sys.argv[3]))
    else:
        expect(sys.argv[2], sys.argv[3:])
