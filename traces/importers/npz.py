"""NPZ dumps: ``expert_ids [tokens, layers, k]`` and what goes with it.

``probs`` or ``weights`` (same shape): router weights. ``token_pos`` [tokens]: position in the
sequence, prompt included. ``seq_offsets`` [sequences + 1]: bounds of the sequences.
``layers`` [layers]: block indices.
"""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np

from traces.errors import InputError
from traces.importers.dump import Dump, ImportOptions
from traces.importers.format import Format

IDS = ("expert_ids", "experts", "ids")
WEIGHTS = ("probs", "weights")
# What zipfile and NumPy raise for a broken archive; RuntimeError covers an unknown compression.
DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, KeyError, RuntimeError)


def load(path: Path, options: ImportOptions) -> Dump:
    """Read an NPZ dump of decoded tokens (one step a token)."""
    arrays = _arrays(path)
    name = next((n for n in IDS if n in arrays), None)
    if name is None:
        raise InputError(
            f"{path}: no array 'expert_ids' [tokens, layers, k] in it (it has "
            f"{', '.join(arrays) or 'nothing'}); rename or export it"
        )
    ids = arrays[name]
    if ids.ndim != 3 or 0 in ids.shape:
        raise InputError(
            f"{path}: {name} has shape {ids.shape}, not [tokens, layers, k]; reshape it"
        )
    _integers(path, name, ids)
    n = len(ids)
    notes: list[str] = []
    weights = next((arrays[w] for w in WEIGHTS if w in arrays), None)
    if weights is not None:
        if weights.shape != ids.shape or weights.dtype.kind != "f":
            raise InputError(
                f"{path}: weights have shape {weights.shape} and type {weights.dtype}, "
                f"not floats of shape {ids.shape}; export both for the same tokens"
            )
        weights = weights.astype(np.float32)
    seq, start = _sequences(path, arrays, n, notes)
    if "token_pos" in arrays:
        pos = _vector(path, "token_pos", arrays["token_pos"], n)
    else:
        pos = np.arange(n) - start
        notes.append("no token_pos: positions are counted from 0 in each sequence")
    layers = None
    if "layers" in arrays:
        layers = tuple(_vector(path, "layers", arrays["layers"], ids.shape[1]).tolist())
    if ids.dtype.kind == "u":
        ids = ids.astype(np.int64)
    return Dump(ids, seq, pos, weights, layers=layers, notes=notes)


def _arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as z:
            if not hasattr(z, "files"):
                raise InputError(f"{path}: a single array, not an NPZ archive; use numpy.savez")
            out = {}
            for name in z.files:
                try:
                    out[name] = z[name]
                except ValueError as e:
                    if "allow_pickle" in str(e):
                        raise InputError(
                            f"{path}: array {name!r} holds Python objects (pickled), which are "
                            "refused; save it as a plain numeric array"
                        ) from None
                    raise
            return out
    except DAMAGE as e:
        why = str(e).splitlines()[0] if str(e) else type(e).__name__
        if "pickle" in why:
            why = "not an NPZ archive"
        raise InputError(
            f"{path}: cannot be read as NPZ ({why}); it is cut off or damaged: copy it again"
        ) from None


def _integers(path: Path, name: str, a: np.ndarray) -> None:
    if a.dtype.kind not in "iu":
        raise InputError(f"{path}: {name} is {a.dtype}, not integers; convert it")


def _vector(path: Path, name: str, a: np.ndarray, n: int) -> np.ndarray:
    if a.shape != (n,):
        raise InputError(
            f"{path}: {name} has shape {a.shape}, not ({n},): one entry a token; mend it"
        )
    _integers(path, name, a)
    return a.astype(np.int64)


def _sequences(
    path: Path, arrays: dict[str, np.ndarray], n: int, notes: list[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Sequence number and index of its first token, for each token."""
    if "seq_offsets" in arrays:
        bounds = arrays["seq_offsets"]
        _integers(path, "seq_offsets", bounds)
        bounds = bounds.astype(np.int64).reshape(-1)
        if len(bounds) < 2 or bounds[0] != 0 or bounds[-1] != n or (np.diff(bounds) < 0).any():
            raise InputError(
                f"{path}: seq_offsets must rise from 0 to the number of tokens ({n}); it goes "
                f"from {bounds[0] if len(bounds) else 'nothing'} to "
                f"{bounds[-1] if len(bounds) else 'nothing'}; export it again"
            )
    elif "token_pos" in arrays:
        pos = _vector(path, "token_pos", arrays["token_pos"], n)
        bounds = np.concatenate(([0], np.flatnonzero(np.diff(pos) <= 0) + 1, [n]))
        notes.append("no seq_offsets: a sequence starts wherever token_pos does not rise")
    else:
        bounds = np.array([0, n])
        notes.append("no seq_offsets: taken as one sequence")
    length = np.diff(bounds)
    return np.repeat(np.arange(len(length)), length), np.repeat(bounds[:-1], length)


FORMATS = (Format("npz", load, (".npz",)),)
