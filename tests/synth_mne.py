"""Opens a generated dataset with MNE, edfio and pyedflib and compares them with its sidecars.

    python synth_mne.py DATASET MIXED.edf POSITIONS.json

MIXED.edf has signals at 250 Hz and 2 Hz and annotations. POSITIONS.json maps electrode names to this engine's unit vectors; they are compared with MNE's
template montages. Exits with 77 where a package is missing, with an assertion otherwise.
"""
import csv
import json
import pathlib
import sys
import warnings

try:
    import edfio
    import mne
    import numpy as np
    import pyedflib
except ImportError as missing:
    print(missing)
    sys.exit(77)

warnings.simplefilter("error", RuntimeWarning)  # MNE warns so about malformed headers
mne.set_log_level("WARNING")


def table(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def check_recording(bdf):
    stem = str(bdf)[: -len("_eeg.bdf")]
    sidecar = json.loads(pathlib.Path(stem + "_eeg.json").read_text())
    channels = table(stem + "_channels.tsv")
    events = table(stem + "_events.tsv")
    names = [c["name"] for c in channels]

    raw = mne.io.read_raw_bdf(bdf, preload=True)
    assert raw.ch_names == names, raw.ch_names
    assert len(names) == sidecar["EEGChannelCount"]
    assert raw.info["sfreq"] == sidecar["SamplingFrequency"]
    assert raw.times.size / raw.info["sfreq"] == sidecar["RecordingDuration"]
    assert set(raw._orig_units.values()) == {"µV"}, raw._orig_units
    found = sorted(zip(raw.annotations.onset, raw.annotations.duration, raw.annotations.description))
    said = sorted((float(e["onset"]), float(e["duration"]), e["value"]) for e in events)
    for f, s in zip(found, said, strict=True):
        assert f[2] == s[2] and np.allclose(f[:2], s[:2], atol=1e-6), (f, s)

    other = edfio.read_bdf(bdf)
    assert [s.label for s in other.signals] == names
    assert {s.physical_dimension for s in other.signals} == {"uV"}
    assert {s.sampling_frequency for s in other.signals} == {sidecar["SamplingFrequency"]}
    assert sorted((a.onset, a.duration or 0.0, a.text) for a in other.annotations) == said
    volts = np.array([s.data for s in other.signals]) * 1e-6
    assert np.allclose(volts, raw.get_data(), atol=1e-9, rtol=0)
    assert other.patient.name == "X" and other.patient.code == "X"

    with pyedflib.EdfReader(str(bdf)) as third:
        assert third.getSignalLabels() == names
        onsets, durations, texts = third.readAnnotations()
        # pyedflib says -1 where a mark has no duration.
        durations = np.maximum(durations.astype(float), 0.0)
        assert sorted(zip(onsets, durations, texts)) == said
        assert np.allclose(third.readSignal(3) * 1e-6, volts[3], atol=1e-9, rtol=0)


def check_mixed(path):
    raw = mne.io.read_raw_edf(path, preload=True)
    edf = edfio.read_edf(path)
    assert raw.ch_names == ["fast", "slow"] == [s.label for s in edf.signals]
    assert [s.sampling_frequency for s in edf.signals] == [250.0, 2.0]
    assert np.allclose(raw.get_data("fast")[0], edf.signals[0].data * 1e-6, atol=1e-12, rtol=0)
    marks = [(0.5, 0.0, "early"), (1.25, 0.75, "Größe µ")]
    assert [(a.onset, a.duration or 0.0, a.text) for a in edf.annotations] == marks
    assert list(raw.annotations.description) == ["early", "Größe µ"]
    with pyedflib.EdfReader(str(path)) as third:
        assert third.getSampleFrequencies().tolist() == [250.0, 2.0]
        assert np.allclose(third.readSignal(1), edf.signals[1].data, atol=1e-9, rtol=0)
    print("EDF+ with mixed rates agrees")


def degrees(a, b):
    cosine = np.dot(a, b) / np.linalg.norm(a) / np.linalg.norm(b)
    return float(np.degrees(np.arccos(np.clip(cosine, -1, 1))))


def check_positions(ours):
    net = mne.channels.make_standard_montage("GSN-HydroCel-129").get_positions()["ch_pos"]
    worst = max((degrees(ours[name], p), name) for name, p in net.items())
    assert worst[0] < 1.0, worst
    print("geodesic net: at most %.2f degrees (%s)" % worst)
    # MNE's sphere counts a tenth of the way from nasion to inion as 18 degrees, ours as 22.5: on
    # the midline and on the ring only the inclination differs.
    sphere = mne.channels.make_standard_montage("spherical_1005").get_positions()["ch_pos"]
    midline = ["Fpz", "AFz", "Fz", "FCz", "CPz", "Pz", "POz", "Oz"]
    ring = "Fp1 AF7 F7 FT7 T7 TP7 P7 PO7 O1 Fp2 AF8 F8 FT8 T8 TP8 P8 PO8 O2 P9 TP10".split()
    for name in midline + ring:
        x, y, z = sphere[name] / np.linalg.norm(sphere[name])
        inclination, azimuth = np.arccos(z) * 22.5 / 18, np.arctan2(y, x)
        flat = np.sin(inclination)
        expected = [flat * np.cos(azimuth), flat * np.sin(azimuth), np.cos(inclination)]
        assert degrees(ours[name], expected) < 0.01, (name, ours[name], expected)
    # A cap maker's whole-degree list, its ring at 92 degrees, with rows of its own rounding.
    cap = mne.channels.make_standard_montage("easycap-M1").get_positions()["ch_pos"]
    worst = max((degrees(ours[name], p), name) for name, p in cap.items())
    assert worst[0] < 6.0, worst
    print("10-10 cap of %d sites: at most %.2f degrees (%s)" % (len(cap), *worst))


def main():
    root, mixed, positions = map(pathlib.Path, sys.argv[1:])
    subjects = [row["participant_id"] for row in table(root / "participants.tsv")]
    recordings = sorted(root.glob("sub-*/eeg/*_eeg.bdf"))
    assert [r.parts[-3] for r in recordings] == subjects
    for recording in recordings:
        check_recording(recording)
    print(f"{len(recordings)} recordings agree")
    check_mixed(mixed)
    check_positions(json.loads(positions.read_text()))


main()
