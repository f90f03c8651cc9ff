"""llama.cpp through ctypes: as much of its C API as a capture needs, from any recent build.

The parameter structs change with almost every release. They are passed by value as oversize blobs
that llama.cpp itself filled with its defaults, and the few fields that matter are found by the
values around them; a build where that fails is refused, never guessed at.
"""

from __future__ import annotations

import ctypes as C
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from traces.capture.find_library import LibraryFile
from traces.capture.llama_structs import (
    Parameters,
    expert_overrides,
    find_cb_eval,
    find_moe_cache,
    find_n_gpu_layers,
    find_swa_full,
    set_no_mmap,
    set_overrides,
    set_vocab_only,
)
from traces.capture.moe_cache_log import MoeCacheCounts, concerns_moe_cache, read_counts
from traces.errors import InputError

_PTR = C.c_void_p
EVAL_CALLBACK = C.CFUNCTYPE(C.c_bool, _PTR, C.c_bool, _PTR)
"""``bool (struct ggml_tensor *, bool ask, void * user_data)``"""
_LOG_CALLBACK = C.CFUNCTYPE(None, C.c_int, C.c_char_p, _PTR)
_LOG_ERROR = 4  # GGML_LOG_LEVEL_ERROR


class Batch(C.Structure):
    """`struct llama_batch`, unchanged since 2024."""

    _fields_ = (
        ("n_tokens", C.c_int32),
        ("token", _PTR),
        ("embd", _PTR),
        ("pos", _PTR),
        ("n_seq_id", _PTR),
        ("seq_id", _PTR),
        ("logits", _PTR),
    )


_PROTOTYPES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "llama_backend_init": (None, ()),
    "llama_log_set": (None, (_PTR, _PTR)),
    "llama_print_system_info": (C.c_char_p, ()),
    "llama_supports_gpu_offload": (C.c_bool, ()),
    "llama_model_default_params": (Parameters, ()),
    "llama_context_default_params": (Parameters, ()),
    "llama_model_load_from_file": (_PTR, (C.c_char_p, Parameters)),
    "llama_init_from_model": (_PTR, (_PTR, Parameters)),
    "llama_model_free": (None, (_PTR,)),
    "llama_free": (None, (_PTR,)),
    "llama_model_get_vocab": (_PTR, (_PTR,)),
    "llama_model_n_ctx_train": (C.c_int32, (_PTR,)),
    "llama_vocab_n_tokens": (C.c_int32, (_PTR,)),
    "llama_vocab_type": (C.c_int, (_PTR,)),
    "llama_vocab_is_eog": (C.c_bool, (_PTR, C.c_int32)),
    "llama_tokenize": (
        C.c_int32, (_PTR, C.c_char_p, C.c_int32, _PTR, C.c_int32, C.c_bool, C.c_bool),
    ),
    "llama_set_n_threads": (None, (_PTR, C.c_int32, C.c_int32)),
    "llama_decode": (C.c_int32, (_PTR, Batch)),
    "llama_synchronize": (None, (_PTR,)),
    "llama_get_logits_ith": (C.POINTER(C.c_float), (_PTR, C.c_int32)),
}  # fmt: skip


class Library:
    """A loaded libllama. Several models may use one."""

    def __init__(self, file: LibraryFile, *, passive: bool = True) -> None:
        """``passive``: let OpenMP threads sleep at barriers; False: as llama.cpp's own programs run."""
        self.file = file
        # OpenMP threads that spin at every barrier starve each other as soon as anything else runs
        # on the machine (measured: 1.4 instead of 630 tokens/s); sleeping costs next to nothing.
        # Read by the OpenMP run-time library when it is loaded.
        if passive:
            os.environ.setdefault("OMP_WAIT_POLICY", "passive")
        try:
            # Local symbols: two libllamas in one process must not see each other's.
            self.c = C.CDLL(str(file.path), mode=os.RTLD_LOCAL | os.RTLD_NOW)
        except OSError as e:
            hint = "; apt-get install libgomp1" if "libgomp" in str(e) else ""
            raise InputError(f"{file.path}: cannot be loaded: {e}{hint}") from None
        for name, (result, arguments) in _PROTOTYPES.items():
            try:
                function = getattr(self.c, name)
            except AttributeError:
                raise InputError(
                    f"{file.path}: has no function {name} (too old, or not libllama); use the one "
                    "of the capture extra: pip install 'uvmsim[capture]'"
                ) from None
            function.restype, function.argtypes = result, arguments
        self._errors: list[str] = []
        self._moe_cache: list[str] = []
        self._log = _LOG_CALLBACK(self._on_log)
        _KEEP.append(self._log)  # the library may log until the process ends
        self.c.llama_log_set(C.cast(self._log, _PTR), None)
        self._load_plug_ins()
        self.c.llama_backend_init()

    def _on_log(self, level: int, text: bytes, _: Any) -> None:
        if level == _LOG_ERROR and text:
            self._errors = [*self._errors[-4:], text.decode("utf-8", "replace").strip()]
        elif text and concerns_moe_cache(line := text.decode("utf-8", "replace")):
            self._moe_cache.append(line)

    def _load_plug_ins(self) -> None:
        """Some builds keep every back end, the CPU's too, in a library of its own."""
        folder = self.file.path.parent
        if any(folder.glob("libggml-cpu-*")):
            load = self.c.ggml_backend_load_all_from_path
            load.restype, load.argtypes = None, (C.c_char_p,)
            load(str(folder).encode())

    def last_error(self) -> str:
        """What the library logged last as an error, on one line; empty where nothing."""
        return " ".join(self._errors[-1:]).replace("\n", " ")

    def take_moe_cache(self) -> MoeCacheCounts | None:
        """llama.cpp's own counters of its expert cache, as logged since the last call. A context
        logs its slots when it is made and its counts when it is closed."""
        lines, self._moe_cache = self._moe_cache, []
        return read_counts(lines)

    @property
    def build(self) -> str:
        """Package or ggml version, and the CPU features it uses."""
        versions = [self.file.package] if self.file.package else []
        for name in ("ggml_version", "ggml_commit"):
            function = getattr(self.c, name, None)
            if function is not None:
                function.restype, function.argtypes = C.c_char_p, ()
                versions.append(f"{name.replace('_', ' ')} {function().decode()}")
        versions.append(self.c.llama_print_system_info().decode().strip(" |"))
        return "; ".join(versions)


_KEEP: list[Any] = []


class LlamaModel:
    """A model loaded by llama.cpp. Use as a context manager, or `close`."""

    def __init__(
        self,
        library: Library,
        path: str | Path,
        *,
        n_gpu_layers: int = 0,
        n_cpu_moe: int = 0,
        no_mmap: bool = False,
        vocab_only: bool = False,
    ) -> None:
        """``n_cpu_moe``: first blocks whose experts stay in host memory. ``no_mmap``: read the file
        into memory, which is then page-locked for a GPU build, in place of mapping it.
        ``vocab_only``: for `tokenize` alone; no weights are read where the library can leave them."""
        self.library, self._c = library, library.c
        if n_gpu_layers and not self._c.llama_supports_gpu_offload():
            raise InputError(
                f"--n-gpu-layers {n_gpu_layers}: {library.file.path.name} has no GPU back end; "
                "name a CUDA build with --lib"
            )
        parameters = self._c.llama_model_default_params()
        at = find_n_gpu_layers(parameters)
        parameters.int32(at).value = n_gpu_layers
        if n_cpu_moe:
            self._overrides = expert_overrides(library, n_cpu_moe)
            set_overrides(parameters, at, self._overrides)
        if no_mmap:
            set_no_mmap(parameters, at)
        if vocab_only:
            set_vocab_only(parameters, at)
        self.handle = self._c.llama_model_load_from_file(os.fsencode(path), parameters)
        if not self.handle:
            raise InputError(
                f"{path}: llama.cpp cannot load it: {library.last_error() or 'no reason given'}"
            )
        self._vocab = self._c.llama_model_get_vocab(self.handle)
        self.n_vocab = int(self._c.llama_vocab_n_tokens(self._vocab))
        self.n_ctx_train = int(self._c.llama_model_n_ctx_train(self.handle))

    @property
    def window(self) -> int:
        """Positions a block with a sliding window attends to; 0 without such blocks, and for
        libraries that do not tell."""
        function = getattr(self._c, "llama_model_n_swa", None)
        if function is None:
            return 0
        function.restype, function.argtypes = C.c_int32, (_PTR,)
        return int(function(self.handle))

    def tokenize(self, text: str) -> list[int]:
        """Token ids of a prompt, with the model's start token; special tokens are understood."""
        if self._c.llama_vocab_type(self._vocab) == 0:
            raise InputError("the model has no tokenizer; give it one, or pass token ids")
        data = text.encode("utf-8")
        room = len(data) + 16
        out = (C.c_int32 * room)()
        n = self._c.llama_tokenize(self._vocab, data, len(data), out, room, True, True)
        if n < 0:
            raise InputError(f"the prompt cannot be turned into tokens (llama_tokenize: {n})")
        return list(out[:n])

    def ends_generation(self, token: int) -> bool:
        """Whether a token marks the end of a generation."""
        return bool(self._c.llama_vocab_is_eog(self._vocab, token))

    def close(self) -> None:
        if self.handle:
            self._c.llama_model_free(self.handle)
            self.handle = None

    def __enter__(self) -> LlamaModel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class LlamaContext:
    """State of a run: KV cache, threads, and the evaluation callback, which is fixed from here on.

    ``callback`` is a pair of addresses: function (`EVAL_CALLBACK`) and user data. The caller keeps
    both alive. Sequences have a KV cache each (llama.cpp's default), so ``n_ctx`` is shared out
    among ``n_seq``. ``swa_full``: blocks with a sliding window keep the whole context, libllama's
    default; llama-server, llama-cli and llama-bench say False, and such blocks keep the window.
    """

    def __init__(
        self,
        model: LlamaModel,
        *,
        n_ctx: int,
        n_batch: int = 2048,
        n_ubatch: int = 512,
        n_seq: int = 1,
        n_threads: int | None = None,
        callback: tuple[int, int] | None = None,
        moe_cache_bytes: int = 0,
        swa_full: bool = True,
    ) -> None:
        self.model, self._c = model, model.library.c
        parameters = self._c.llama_context_default_params()
        at = find_cb_eval(parameters)
        for i, value in enumerate((n_ctx, n_batch, n_ubatch, n_seq)):
            parameters.int32(4 * i).value = value
        if callback is not None:
            parameters.words[at // 8], parameters.words[at // 8 + 1] = callback
        if not swa_full and model.window:
            parameters.boolean(find_swa_full(parameters, at)).value = False
        if moe_cache_bytes:
            parameters.words[find_moe_cache(model.library, parameters, at) // 8] = moe_cache_bytes
        self.handle = self._c.llama_init_from_model(model.handle, parameters)
        if not self.handle:
            raise InputError(
                f"llama.cpp cannot make a context of {n_ctx} tokens: "
                f"{model.library.last_error() or 'not enough memory?'}"
            )
        threads = n_threads or os.cpu_count() or 1
        self._c.llama_set_n_threads(self.handle, threads, threads)

    def decode(
        self, tokens: Sequence[int], pos: Sequence[int], seq: Sequence[int], logits: Sequence[bool]
    ) -> None:
        """Run one batch; all four are of the same length. Raises `InputError` where it fails."""
        n = len(tokens)
        token, position = np.array(tokens, np.int32), np.array(pos, np.int32)
        sequence, wanted = np.array(seq, np.int32), np.array(logits, np.int8)
        ones = np.ones(n, np.int32)
        pointers = sequence.ctypes.data + 4 * np.arange(n, dtype=np.uint64)
        batch = Batch(
            n,
            token.ctypes.data,
            None,
            position.ctypes.data,
            ones.ctypes.data,
            pointers.ctypes.data,
            wanted.ctypes.data,
        )
        code = self._c.llama_decode(self.handle, batch)
        if code != 0:
            why = (
                "the KV cache is full; raise --n-ctx"
                if code == 1
                else self.model.library.last_error()
            )
            raise InputError(f"llama_decode failed with code {code}: {why}")
        self._c.llama_synchronize(self.handle)

    def forget(self) -> None:
        """Empty the KV cache."""
        c = self._c
        c.llama_get_memory.restype, c.llama_get_memory.argtypes = C.c_void_p, (C.c_void_p,)
        c.llama_memory_clear.restype, c.llama_memory_clear.argtypes = None, (C.c_void_p, C.c_bool)
        c.llama_memory_clear(c.llama_get_memory(self.handle), False)

    def logits(self, i: int) -> np.ndarray:
        """float32 [n_vocab]: a copy of the logits of the i-th token of the last batch."""
        pointer = self._c.llama_get_logits_ith(self.handle, i)
        if not pointer:
            raise ValueError(f"token {i} of the last batch asked for no logits")
        return np.ctypeslib.as_array(pointer, (self.model.n_vocab,)).copy()

    def close(self) -> None:
        if self.handle:
            self._c.llama_free(self.handle)
            self.handle = None

    def __enter__(self) -> LlamaContext:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
