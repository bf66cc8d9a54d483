"""Builds the wheel (PEP 517): the package `engine` with the shared library inside. It needs nothing but
Python and, unless ENGINE_LIBRARY names a libengine.so that is there already, cargo.
"""

import base64
import hashlib
import os
import re
import subprocess
import sysconfig
import zipfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
PROJECT = HERE / "pyproject.toml"


def _field(name):
    found = re.search(rf'^{name} = "(.*)"$', PROJECT.read_text(), re.MULTILINE)
    if not found:
        raise SystemExit(f"{PROJECT}: no {name}")
    return found.group(1)


def _library():
    """The shared library, built where none is given."""
    given = os.environ.get("ENGINE_LIBRARY")
    if given:
        if not Path(given).is_file():
            raise SystemExit(
                f"ENGINE_LIBRARY={given}: is no file\n"
                "  remedy: name a libengine.so, or unset it to have it built by cargo"
            )
        return Path(given)
    source = HERE.parent
    if not (source / "capi" / "Cargo.toml").is_file():
        raise SystemExit(
            f"{HERE}: the engine's source is not around it\n"
            "  remedy: install from a clone, or let ENGINE_LIBRARY name a libengine.so"
        )
    command = ["cargo", "build", "--release", "-p", "engine-c"]
    try:
        subprocess.run(command, cwd=source, check=True)
    except FileNotFoundError:
        raise SystemExit(
            "cargo: is not there\n"
            "  remedy: install Rust (https://rustup.rs), or let ENGINE_LIBRARY name a libengine.so"
        ) from None
    target = Path(os.environ.get("CARGO_TARGET_DIR", source / "target"))
    return source / target / "release" / "libengine_c.so"


def _tag():
    platform = re.sub(r"[-.]", "_", sysconfig.get_platform())
    return f"py3-none-{platform}"


def _metadata():
    lines = [
        "Metadata-Version: 2.1",
        f"Name: {_field('name')}",
        f"Version: {_field('version')}",
        f"Summary: {_field('description')}",
        f"Requires-Python: {_field('requires-python')}",
        "License: MIT OR Apache-2.0",
        "Requires-Dist: numpy>=1.23",
    ]
    return "\n".join(lines) + "\n"


def _wheel_file():
    return f"Wheel-Version: 1.0\nGenerator: engine\nRoot-Is-Purelib: false\nTag: {_tag()}\n"


def _stem():
    return f"{_field('name').replace('-', '_')}-{_field('version')}"


def _write(folder, files):
    name = f"{_stem()}-{_tag()}.whl"
    info = f"{_stem()}.dist-info"
    files = {**files, f"{info}/METADATA": _metadata().encode(), f"{info}/WHEEL": _wheel_file().encode()}
    rows = []
    with zipfile.ZipFile(Path(folder) / name, "w", zipfile.ZIP_DEFLATED) as wheel:
        for path, data in files.items():
            entry = zipfile.ZipInfo(path, (1980, 1, 1, 0, 0, 0))
            entry.external_attr = (0o755 if path.endswith(".so") else 0o644) << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            wheel.writestr(entry, data)
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            rows.append(f"{path},sha256={digest},{len(data)}\n")
        rows.append(f"{info}/RECORD,,\n")
        wheel.writestr(zipfile.ZipInfo(f"{info}/RECORD", (1980, 1, 1, 0, 0, 0)), "".join(rows))
    return name


def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    files = {
        f"engine/{path.name}": path.read_bytes()
        for path in sorted((HERE / "engine").iterdir())
        if path.suffix in (".py", ".typed") or path.name == "py.typed"
    }
    files["engine/libengine.so"] = _library().read_bytes()
    return _write(wheel_directory, files)


def build_editable(wheel_directory, config_settings=None, metadata_directory=None):
    """The package stays where it is; the library is put beside it."""
    (HERE / "engine" / "libengine.so").write_bytes(_library().read_bytes())
    return _write(wheel_directory, {"engine_eeg.pth": f"{HERE}\n".encode()})


def build_sdist(sdist_directory, config_settings=None):
    raise SystemExit("a source package of the Python part alone would hold no library: build a wheel")
