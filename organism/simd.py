"""Vectors of float32 that stay in registers, for kernels whose sums no compiler keeps there.

A ``Vector`` exists in compiled code only: ``LANES`` numbers, as many as a register of this
processor holds. Each operation is done lane by lane, so that a column's numbers do not depend on
how many others are beside it. Loads and stores take how many lanes are real; the others are 0.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic, models, overload, register_model

from organism.jit import HAS_512_BITS

LANES = 16 if HAS_512_BITS else 8
_LANE_BYTES = 4

_FLOATS = ir.VectorType(ir.FloatType(), LANES)
_INDEX = ir.IntType(32)
_INDICES, _MASK = ir.VectorType(_INDEX, LANES), ir.VectorType(ir.IntType(1), LANES)

Vector = Any
"""``LANES`` float32 of compiled code."""


class VectorType(types.Type):  # type: ignore[misc]  # numba has no types
    """numba's type of a ``Vector``."""

    def __init__(self) -> None:
        super().__init__(name=f"float32x{LANES}")


@register_model(VectorType)
class _VectorModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, numba_type: Any) -> None:
        super().__init__(manager, numba_type, _FLOATS)


_VECTOR = VectorType()


def _spread(builder: Any, scalar: Any) -> Any:
    """Repeat a scalar in each lane."""
    undefined = ir.Constant(ir.VectorType(scalar.type, LANES), ir.Undefined)
    first = builder.insert_element(undefined, scalar, ir.Constant(_INDEX, 0))
    return builder.shuffle_vector(first, undefined, ir.Constant(_INDICES, [0] * LANES))


def _place(context: Any, builder: Any, signature: Any, arguments: Any) -> tuple[Any, Any]:
    """Where lanes of an array lie, and which of them are real: of (array, index, count, ...)."""
    array_type, index_type, count_type, *_ = signature.args
    array, index, count, *_ = arguments
    view = context.make_array(array_type)(context, builder, array)
    indices = cgutils.unpack_tuple(builder, index) if array_type.ndim > 1 else [index]
    inner = list(index_type) if array_type.ndim > 1 else [index_type]
    indices = [
        context.cast(builder, i, t, types.intp) for i, t in zip(indices, inner, strict=True)
    ]
    first = cgutils.get_item_pointer(context, builder, array_type, view, indices)
    lanes = ir.Constant(_INDICES, list(range(LANES)))
    real = _spread(builder, context.cast(builder, count, count_type, types.int32))
    return builder.bitcast(first, _FLOATS.as_pointer()), builder.icmp_signed("<", lanes, real)


def _masked(builder: Any, name: str, result: Any, arguments: list[Any]) -> Any:
    """Call an LLVM intrinsic that leaves memory alone where a lane is not real."""
    signature = ir.FunctionType(result, [argument.type for argument in arguments])
    function = cgutils.get_or_insert_function(builder.module, signature, name)
    return builder.call(function, arguments)


@intrinsic
def load(_: Any, array: Any, index: Any, count: Any) -> Any:
    """Read up to ``LANES`` numbers of an array's last axis, contiguous, from an index on."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place, real = _place(context, builder, signature, arguments)
        parts = [place, ir.Constant(_INDEX, _LANE_BYTES), real, ir.Constant(_FLOATS, None)]
        return _masked(builder, f"llvm.masked.load.v{LANES}f32.p0", _FLOATS, parts)

    return _VECTOR(array, index, count), generate


@intrinsic
def store(_: Any, array: Any, index: Any, count: Any, vector: Any) -> Any:
    """Write the first lanes of a vector to where ``load`` reads them."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place, real = _place(context, builder, signature, arguments)
        parts = [arguments[3], place, ir.Constant(_INDEX, _LANE_BYTES), real]
        _masked(builder, f"llvm.masked.store.v{LANES}f32.p0", ir.VoidType(), parts)
        return context.get_dummy_value()

    return types.none(array, index, count, vector), generate


@intrinsic
def spread(_: Any, scalar: Any) -> Any:
    """Repeat a number in each lane."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        number = context.cast(builder, arguments[0], signature.args[0], types.float32)
        return _spread(builder, number)

    return _VECTOR(scalar), generate


@intrinsic
def multiply_add(_: Any, a: Any, b: Any, c: Any) -> Any:
    """a·b + c, rounded once."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _masked(builder, f"llvm.fma.v{LANES}f32", _FLOATS, list(arguments))

    return _VECTOR(a, b, c), generate


@intrinsic
def larger(_: Any, a: Any, b: Any) -> Any:
    """Lane by lane a where it is larger, else b: b too where one of them is not a number."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        first, second = arguments
        return builder.select(builder.fcmp_ordered(">", first, second), first, second)

    return _VECTOR(a, b), generate


def _define(operation: Callable[..., Any], instruction: str) -> None:
    """Give vectors an operator."""

    @intrinsic
    def of_lanes(_: Any, a: Any, b: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return getattr(builder, instruction)(*arguments)

        return _VECTOR(a, b), generate

    @overload(operation)
    def of_vectors(a: Any, b: Any) -> Any:
        if isinstance(a, VectorType) and isinstance(b, VectorType):
            return lambda a, b: of_lanes(a, b)
        return None


_define(operator.add, "fadd")
_define(operator.sub, "fsub")
_define(operator.mul, "fmul")
_define(operator.truediv, "fdiv")
