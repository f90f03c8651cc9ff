"""Words of memory, at any alignment, little-endian as x86 is."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic


def _load(bits: int) -> Any:
    @intrinsic
    def load(typingctx, mem, at):  # type: ignore[no-untyped-def]
        def generate(context, builder, signature, args):  # type: ignore[no-untyped-def]
            word = builder.load(_pointer(context, builder, signature, args, bits))
            word.align = 1
            return word if bits == 64 else builder.zext(word, ir.IntType(64))

        return types.uint64(mem, types.int64), generate

    return load


def _store(bits: int) -> Any:
    @intrinsic
    def store(typingctx, mem, at, value):  # type: ignore[no-untyped-def]
        def generate(context, builder, signature, args):  # type: ignore[no-untyped-def]
            word = args[2] if bits == 64 else builder.trunc(args[2], ir.IntType(bits))
            made = builder.store(word, _pointer(context, builder, signature, args, bits))
            made.align = 1
            return context.get_dummy_value()

        return types.void(mem, types.int64, types.uint64), generate

    return store


def _pointer(context: Any, builder: Any, signature: Any, args: Any, bits: int) -> Any:
    array = context.make_array(signature.args[0])(context, builder, args[0])
    byte = builder.gep(array.data, [args[1]])
    return builder.bitcast(byte, ir.IntType(bits).as_pointer())


get_u8, get_u16, get_u32, get_u64 = _load(8), _load(16), _load(32), _load(64)
put_u8, put_u16, put_u32, put_u64 = _store(8), _store(16), _store(32), _store(64)
