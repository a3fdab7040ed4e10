"""Compiles the C++ of this folder for this machine's processor, once, and loads it."""

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import warnings
from pathlib import Path

SOURCE = Path(__file__).parent
FLAGS = ["-O3", "-march=native", "-std=c++17", "-fopenmp", "-shared", "-fPIC", "-w"]
# Sums may not be put in another order: rows would depend on their neighbours.
FLAGS += ["-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros", "-ffp-contract=fast"]


class Shape(ctypes.Structure):
    """network.h's Shape."""

    _fields_ = [
        *((name, ctypes.c_int32) for name in ("layers", "heads", "kv_heads", "head_size", "width", "hidden", "vocab")),
        *((name, ctypes.c_int32) for name in ("rotary", "norm", "norm_place", "activation", "gated", "parallel")),
        *((name, ctypes.c_int32) for name in ("qk_norm", "value_skip", "embedding_bf16")),
        *((name, ctypes.c_float) for name in ("norm_eps", "scale", "softcap", "logit_softcap")),
        *((name, ctypes.c_float) for name in ("embedding_multiplier", "residual_multiplier")),
    ]


class Step(ctypes.Structure):
    """network.h's Step."""

    _fields_ = [
        *((name, ctypes.c_int32) for name in ("tokens", "spans", "table_length", "wanted", "layers", "threads")),
        *((name, ctypes.c_void_p) for name in ("ids", "positions", "span_of", "tables", "wanted_rows", "embed_rows")),
        *((name, ctypes.c_void_p) for name in ("embeds", "logits")),
        *((name, ctypes.c_int32) for name in ("stored", "block_size")),
        ("cache", ctypes.c_void_p),
    ]


def cache_directory() -> Path:
    """Where compiled libraries are kept: $XDG_CACHE_HOME/lightning_gpt, else ~/.cache/lightning_gpt."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lightning_gpt"


def _processor() -> str:
    """What -march=native looks at."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return "".join(next((line for line in lines if line.startswith(name)), "") for name in ("model name", "flags"))


def _compile(compiler: str, path: Path) -> None:
    """Writes the library to a temporary name and renames it: processes that start together do not meet half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".so")
    os.close(handle)
    try:
        command = [compiler, *FLAGS, str(SOURCE / "network.cpp"), "-o", temporary]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{compiler} failed on {SOURCE / 'network.cpp'}:\n{done.stderr.strip()[-2000:]}")
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)


@functools.cache
def load_library() -> ctypes.CDLL | None:
    """The library, compiled if this machine has not done so yet (about ten seconds); None without a C++ compiler, on
    another system than Linux on x86-64, or with LIGHTNING_GPT_NATIVE=0 in the environment. Warns if the compiler
    ($CXX, else g++) refuses, in its words, and gives None."""
    if os.environ.get("LIGHTNING_GPT_NATIVE") == "0":
        return None
    compiler = shutil.which(os.environ.get("CXX") or "g++")
    if compiler is None or platform.system() != "Linux" or platform.machine() != "x86_64":
        return None
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True).stdout
    sources = [path.read_text() for path in sorted((*SOURCE.glob("*.h"), *SOURCE.glob("*.cpp")))]
    known = "\0".join((*sources, *FLAGS, version, _processor()))
    path = cache_directory() / f"network-{hashlib.sha256(known.encode()).hexdigest()[:16]}.so"
    if not path.exists():
        try:
            _compile(compiler, path)
        except (RuntimeError, OSError) as error:
            warnings.warn(f"generation is computed by PyTorch, which is slower: {error}", stacklevel=2)
            return None
    library = ctypes.CDLL(str(path))
    pointer, number = ctypes.c_void_p, ctypes.c_int
    library.network_new.restype, library.network_new.argtypes = pointer, [pointer]
    library.network_free.restype, library.network_free.argtypes = None, [pointer]
    library.network_uses_tiles.argtypes = [pointer]
    library.network_without_tiles.restype, library.network_without_tiles.argtypes = None, [pointer]
    library.network_vector.restype, library.network_vector.argtypes = None, [pointer, number, number, pointer]
    library.network_window.restype, library.network_window.argtypes = None, [pointer, number, number]
    library.network_matrix.restype = None
    library.network_matrix.argtypes = [pointer, *[number] * 6, *[pointer] * 4, number]
    library.network_forward.restype, library.network_forward.argtypes = None, [pointer, pointer]
    return library
