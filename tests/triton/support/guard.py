"""What Triton's interpreter lacks: bounds, races between programs, a shuffled order of programs, bf16 arithmetic.

Import it before the kernels, in a process with TRITON_INTERPRET=1. Every active lane's address must lie inside a tensor
argument and be aligned; no two lanes of a store, and no two programs, may touch one address unless all only read it.
bf16 operands are computed in fp32 and rounded to nearest even, as hardware does; the interpreter alone computes on
their bit patterns and cuts fp32 off to bf16.
It replaces methods of triton's interpreter, whose names `install` checks.
"""

from __future__ import annotations

import numpy as np
import triton.language as tl
import triton.runtime.interpreter as interpreter

from hhmpn_fast.kernels import runtime

_Builder, _Handle = interpreter.InterpreterBuilder, interpreter.TensorHandle


class KernelError(AssertionError):
    """An access that hardware would not survive, or not answer the same every time."""


class _State:
    buffers: np.ndarray = np.zeros((0, 2), np.uint64)  # first and one-past-last address of each tensor argument
    owners: dict[int, np.ndarray] = {}  # buffer -> the program that wrote each byte, 0 for none
    readers: dict[int, np.ndarray] = {}  # buffer -> the program that read each byte, -1 for several
    program = 0
    order = 0
    step = 0
    grid = (1, 1, 1)
    permutation = np.zeros(1, np.int64)
    patched: set[frozenset[int]] = set()  # language modules this launch has patched


def _tensors(value: object) -> list:
    if hasattr(value, "untyped_storage"):
        return [value]
    if isinstance(value, (tuple, list)):
        return [t for v in value for t in _tensors(v)]
    return []


def _extent(tensor: object) -> tuple[int, int]:
    first = tensor.data_ptr()
    if tensor.numel() == 0:
        return first, first
    last = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride()))
    return first, first + (last + 1) * tensor.element_size()


def _touch(pointers: object, mask: object, write: bool) -> None:
    size = pointers.get_element_ty().primitive_bitwidth // 8 or 1
    shape = np.asarray(pointers.data).shape
    lanes = np.asarray(pointers.data).astype(np.uint64).ravel()
    lanes = lanes[np.broadcast_to(mask.data, shape).ravel().astype(bool)]
    if not lanes.size:
        return
    unique = np.unique(lanes)
    if write and unique.size != lanes.size:
        raise KernelError("two lanes of one store write the same address")
    low, high = _State.buffers[:, 0], _State.buffers[:, 1]
    at = np.searchsorted(low, unique, "right").astype(np.int64) - 1
    inside = (at >= 0) & (unique + np.uint64(size) <= high[np.maximum(at, 0)])
    what = "store" if write else "load"
    if not inside.all():
        raise KernelError(f"{what} of {int((~inside).sum())} elements outside every tensor argument")
    if (unique % np.uint64(size)).any():
        raise KernelError(f"misaligned {what}")
    for buffer in set(at.tolist()):
        place = (unique[at == buffer] - low[buffer]).astype(np.int64)
        length = int(high[buffer] - low[buffer])
        owner = _State.owners.setdefault(buffer, np.zeros(length, np.int32))
        reader = _State.readers.setdefault(buffer, np.zeros(length, np.int32))
        me, wrote, read = _State.program, owner[place], reader[place]
        if ((wrote != 0) & (wrote != me)).any():
            raise KernelError(f"{what} at an address that another program wrote")
        if write:
            if ((read != 0) & (read != me)).any():
                raise KernelError("store at an address that another program read")
            owner[place] = me
        else:
            reader[place] = np.where((read == 0) | (read == me), me, -1)


def _wide(handle: object) -> object:
    if not isinstance(handle, _Handle) or handle.dtype.scalar != tl.bfloat16:
        return handle
    return _Handle((handle.data.astype(np.uint32) << 16).view(np.float32), tl.float32)


def _narrow(handle: object) -> object:
    values = np.ascontiguousarray(handle.data, np.float32)
    bits = values.view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + (bits >> 16 & 1)) >> 16
    return _Handle(np.where(np.isnan(values), 0x7FC0, rounded).astype(np.uint16), tl.bfloat16)


def _repair_bf16() -> None:
    dot = _Builder.create_dot
    _Builder.create_dot = lambda self, a, b, d, *rest: dot(self, _wide(a), _wide(b), d, *rest)
    cast = _Builder.cast_impl

    def rounding_cast(self: object, source: object, kind: object) -> object:
        if kind.scalar == tl.bfloat16 and source.dtype.scalar == tl.float32:
            return _narrow(source)
        return cast(self, source, kind)

    _Builder.cast_impl = rounding_cast
    for name in ("binary_op", "unary_op"):
        original = getattr(_Builder, name)

        def repaired(self: object, *args: object, original: object = original) -> object:
            if not any(isinstance(a, _Handle) and a.dtype.scalar == tl.bfloat16 for a in args):
                return original(self, *args)
            result = original(self, *map(_wide, args))
            return _narrow(result) if result.data.dtype.kind == "f" else result

        setattr(_Builder, name, repaired)


def _watch_launches() -> None:
    executor = interpreter.GridExecutor
    init, set_dim, set_index = executor._init_args_hst, _Builder.set_grid_dim, _Builder.set_grid_idx

    def start(self: object, args: tuple, kwargs: dict) -> tuple:
        args, kwargs = init(self, args, kwargs)
        extents = sorted({_extent(t) for a in (*args, *kwargs.values()) for t in _tensors(a)})
        _State.buffers = np.array(extents, np.uint64).reshape(-1, 2)
        _State.owners, _State.readers, _State.step, _State.patched = {}, {}, 0, set()
        return args, kwargs

    def dim(self: object, *grid: int) -> object:
        _State.grid, count = grid, int(np.prod(grid))
        _State.order += 1
        _State.permutation = np.random.default_rng(_State.order).permutation(count)
        return set_dim(self, *grid)

    def index(self: object, *_: int) -> object:
        program = int(_State.permutation[_State.step])
        _State.step, _State.program = _State.step + 1, program + 1
        return set_index(self, *map(int, np.unravel_index(program, _State.grid)))

    executor._init_args_hst, _Builder.set_grid_dim, _Builder.set_grid_idx = start, dim, index


def _watch_memory() -> None:
    load, store = _Builder.create_masked_load, _Builder.create_masked_store

    def checked_load(self: object, pointers: object, mask: object, *rest: object) -> object:
        _touch(pointers, mask, False)
        return load(self, pointers, mask, *rest)

    def checked_store(self: object, pointers: object, value: object, mask: object, *rest: object) -> object:
        _touch(pointers, mask, True)
        return store(self, pointers, value, mask, *rest)

    def refuse(self: object, *args: object) -> object:
        raise KernelError("an atomic: the kernels promise none")

    _Builder.create_masked_load, _Builder.create_masked_store = checked_load, checked_store
    _Builder.create_atomic_rmw = _Builder.create_atomic_cas = refuse


def _patch_once_a_launch() -> None:
    """Every call of a device function patches triton.language anew, a quarter of the interpreter's time."""
    patch = interpreter._patch_lang

    def once(function: object) -> object:
        modules = frozenset(id(v) for v in function.__globals__.values() if v is tl or v is tl.core)
        if modules in _State.patched:
            return interpreter._LangPatchScope()
        _State.patched.add(modules)
        return patch(function)

    interpreter._patch_lang = once


def install() -> None:
    """Puts the guard into this process's interpreter, once."""
    if getattr(_Builder, "guarded", False):
        return
    needed = "create_dot binary_op unary_op cast_impl create_masked_load create_masked_store set_grid_idx"
    for name in needed.split():
        if not hasattr(_Builder, name):
            raise RuntimeError(f"this triton's interpreter has no {name}; the guard needs an update")
    _repair_bf16()
    runtime.INTERPRETED_WRONG.clear()
    _watch_launches()
    _watch_memory()
    _patch_once_a_launch()
    # numpy warns of -inf - -inf, of x / 0 and of casts of NaN where hardware is silent.
    np.seterr(divide="ignore", invalid="ignore", over="ignore", under="ignore")
    _Builder.guarded = True
