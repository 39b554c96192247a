"""Vectors of float32 that stay in registers, for kernels whose sums no compiler keeps there.

A ``Vector`` exists in compiled code only: ``LANES`` numbers, as many as a register of this
processor holds. Each operation but ``total_of`` is done lane by lane, so that what a column comes
to does not depend on those beside it. ``load`` and ``store`` take how many lanes are real; the
others are 0.
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

Vector = Any
"""``LANES`` float32 of compiled code."""

_NUMBER_BYTES, _MANTISSA_BITS, _EXPONENT_OF_1 = 4, 23, 127
_INT, _FLOATS = ir.IntType(32), ir.VectorType(ir.FloatType(), LANES)
_INTS = ir.VectorType(_INT, LANES)


class VectorType(types.Type):
    """numba's type of a ``Vector``."""

    def __init__(self) -> None:
        super().__init__(name=f"float32x{LANES}")


@register_model(VectorType)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, numba_type: Any) -> None:
        super().__init__(manager, numba_type, _FLOATS)  # type: ignore[no-untyped-call]


_VECTOR = VectorType()
_compiled: Callable[[Any], Any] = intrinsic
_llvm: Any = cgutils


# Between memory and registers


@_compiled
def load(_: Any, array: Any, index: Any, count: Any) -> Any:
    """Read up to ``LANES`` numbers of an array's last axis, contiguous, from an index on."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place, real = _place(context, builder, signature, arguments)
        parts = [place, ir.Constant(_INT, _NUMBER_BYTES), real, ir.Constant(_FLOATS, None)]
        return _call(builder, f"llvm.masked.load.v{LANES}f32.p0", _FLOATS, parts)

    return _VECTOR(array, index, count), generate


@_compiled
def store(_: Any, array: Any, index: Any, count: Any, vector: Any) -> Any:
    """Write the first lanes of a vector to where ``load`` reads them."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place, real = _place(context, builder, signature, arguments)
        parts = [arguments[3], place, ir.Constant(_INT, _NUMBER_BYTES), real]
        _call(builder, f"llvm.masked.store.v{LANES}f32.p0", ir.VoidType(), parts)
        return context.get_dummy_value()

    return types.none(array, index, count, vector), generate


@_compiled
def spread(_: Any, number: Any) -> Any:
    """Repeat a number in each lane."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        scalar = context.cast(builder, arguments[0], signature.args[0], types.float32)
        return _repeated(builder, scalar)

    return _VECTOR(number), generate


@_compiled
def ramp(_: Any) -> Any:
    """0, 1, 2 and so on, lane by lane."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return ir.Constant(_FLOATS, [float(lane) for lane in range(LANES)])

    return _VECTOR(), generate


@_compiled
def lane(_: Any, vector: Any, number: Any) -> Any:
    """One number of a vector."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        index = context.cast(builder, arguments[1], signature.args[1], types.int32)
        return builder.extract_element(arguments[0], index)

    return types.float32(vector, number), generate


@_compiled
def total_of(_: Any, vector: Any) -> Any:
    """Sum of all lanes, in the order that is quickest: its last bits depend on their number."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        single, nothing = ir.FloatType(), ir.Constant(ir.FloatType(), -0.0)
        parts, name = [nothing, *arguments], f"llvm.vector.reduce.fadd.v{LANES}f32"
        return _call(builder, name, single, parts, fastmath=("reassoc",))

    return types.float32(vector), generate


# From registers to registers


def _of_one(generate: Callable[..., Any]) -> Any:
    """Make an operation on a vector of what writes it down."""

    @_compiled
    def operation(_: Any, a: Any) -> Any:
        return _VECTOR(a), lambda context, builder, signature, each: generate(builder, *each)

    return operation


def _of_two(generate: Callable[..., Any]) -> Any:
    """Make an operation on two vectors of what writes it down."""

    @_compiled
    def operation(_: Any, a: Any, b: Any) -> Any:
        return _VECTOR(a, b), lambda context, builder, signature, both: generate(builder, *both)

    return operation


@_compiled
def multiply_add(_: Any, a: Any, b: Any, c: Any) -> Any:
    """a·b + c, rounded once where the processor can."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _lanewise("fmuladd")(builder, *arguments)

    return _VECTOR(a, b, c), generate


@_compiled
def choose(_: Any, a: Any, b: Any, x: Any, y: Any) -> Any:
    """Take x where a > b, else y: y too where one of them is not a number."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        first, second, then, otherwise = arguments
        return builder.select(builder.fcmp_ordered(">", first, second), then, otherwise)

    return _VECTOR(a, b, x, y), generate


@_compiled
def add_where(_: Any, a: Any, b: Any, total: Any, x: Any) -> Any:
    """Total + x where a > b, else total."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        first, second, before, addend = arguments
        where = builder.fcmp_ordered(">", first, second)
        return _accumulated(builder, where, before, addend, lambda x: builder.fadd(before, x))

    return _VECTOR(a, b, total, x), generate


@_compiled
def multiply_add_where(_: Any, a: Any, b: Any, x: Any, y: Any, total: Any) -> Any:
    """x·y + total where a > b, else total; of 8 lanes, y is to be finite where it is not."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        first, second, factor, other, before = arguments
        where, fused = builder.fcmp_ordered(">", first, second), _lanewise("fmuladd")
        return _accumulated(
            builder, where, before, factor, lambda x: fused(builder, x, other, before)
        )

    return _VECTOR(a, b, x, y, total), generate


def _accumulated(
    builder: Any, where: Any, before: Any, x: Any, accumulate: Callable[[Any], Any]
) -> Any:
    """Write down that x is accumulated in some lanes.

    Registers of 512 bits come with masks. Without them, 0 is accumulated in the others.
    """
    if HAS_512_BITS:
        return builder.select(where, accumulate(x), before)
    return accumulate(builder.select(where, x, ir.Constant(_FLOATS, None)))


def _lanewise(operation: str) -> Callable[..., Any]:
    """Write down one of LLVM's operations."""
    return lambda builder, *each: _call(builder, f"llvm.{operation}.v{LANES}f32", _FLOATS, [*each])


def _chosen(comparison: str) -> Callable[..., Any]:
    """Write down the choice of the first of two where a comparison holds, else of the second."""
    return lambda builder, a, b: builder.select(builder.fcmp_ordered(comparison, a, b), a, b)


def _two_to_the(builder: Any, n: Any) -> Any:
    """Write 2ⁿ down, which is n in the exponent of a float."""
    bias = ir.Constant(_INTS, [_EXPONENT_OF_1] * LANES)
    shift = ir.Constant(_INTS, [_MANTISSA_BITS] * LANES)
    exponent = builder.add(builder.fptosi(n, _INTS), bias)
    return builder.bitcast(builder.shl(exponent, shift), _FLOATS)


larger = _of_two(_chosen(">"))
"""``(a, b)``: a where a > b, else b."""

smaller = _of_two(_chosen("<"))
"""``(a, b)``: a where a < b, else b."""

with_sign = _of_two(_lanewise("copysign"))
"""``(a, b)``: a with the sign of b."""

magnitude = _of_one(_lanewise("fabs"))
"""``(a)``: a without its sign."""

whole = _of_one(_lanewise("trunc"))
"""``(a)``: the whole number next to a, towards 0."""

power_of_two = _of_one(_two_to_the)
"""``(n)``: 2ⁿ, for whole n of −126 to 127."""


def _operator(python_operator: Callable[..., Any], instruction: str) -> None:
    """Have an operator of Python mean an instruction where it stands between vectors."""
    operation = _of_two(lambda builder, a, b: getattr(builder, instruction)(a, b))

    def of_two(a: Any, b: Any) -> Any:
        return operation(a, b)

    @overload(python_operator)
    def implementation(a: Any, b: Any) -> Any:
        return of_two if isinstance(a, VectorType) and isinstance(b, VectorType) else None


_operator(operator.add, "fadd")
_operator(operator.sub, "fsub")
_operator(operator.mul, "fmul")
_operator(operator.truediv, "fdiv")


# What they are written with


def _call(
    builder: Any, name: str, result: Any, arguments: list[Any], fastmath: tuple[str, ...] = ()
) -> Any:
    """Call one of LLVM's intrinsics."""
    signature = ir.FunctionType(result, [argument.type for argument in arguments])
    function = _llvm.get_or_insert_function(builder.module, signature, name)
    return builder.call(function, arguments, fastmath=fastmath)


def _repeated(builder: Any, scalar: Any) -> Any:
    """Repeat a scalar of any type in each lane."""
    undefined = ir.Constant(ir.VectorType(scalar.type, LANES), ir.Undefined)
    first = builder.insert_element(undefined, scalar, ir.Constant(_INT, 0))
    return builder.shuffle_vector(first, undefined, ir.Constant(_INTS, [0] * LANES))


def _place(context: Any, builder: Any, signature: Any, arguments: Any) -> tuple[Any, Any]:
    """Where lanes of an array lie, and which of them are real: of (array, index, count, ...)."""
    array_type, index_type, count_type, *_ = signature.args
    array, index, count, *_ = arguments
    several = isinstance(index_type, types.BaseTuple)
    indices = [
        context.cast(builder, value, kind, types.intp)
        for value, kind in zip(
            _llvm.unpack_tuple(builder, index) if several else [index],
            index_type if several else [index_type],
            strict=True,
        )
    ]
    view = context.make_array(array_type)(context, builder, array)
    first = _llvm.get_item_pointer(context, builder, array_type, view, indices)
    numbers = ir.Constant(_INTS, list(range(LANES)))
    real = _repeated(builder, context.cast(builder, count, count_type, types.int32))
    return builder.bitcast(first, _FLOATS.as_pointer()), builder.icmp_signed("<", numbers, real)
