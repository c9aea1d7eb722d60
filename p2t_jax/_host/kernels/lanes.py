"""`LANES` numbers at once: loops that LLVM does not turn into vector instructions by itself."""

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from p2t_jax._host.kernels import LANES

_INT32, _INT64 = ir.IntType(32), ir.IntType(64)


def _data(context: Any, builder: Any, array_type: Any, array: Any) -> Any:
    """The pointer to the memory of an array."""
    return context.make_array(array_type)(context, builder, array).data


def _load(builder: Any, data: Any, at: Any) -> Any:
    """The `LANES` numbers from number `at` on."""
    number = data.type.pointee
    vector = ir.VectorType(number, LANES).as_pointer()
    return builder.load(builder.bitcast(builder.gep(data, [at]), vector), align=number.width // 8)


def _store(builder: Any, vector: Any, data: Any, at: Any) -> None:
    number = data.type.pointee
    pointer = builder.bitcast(builder.gep(data, [at]), vector.type.as_pointer())
    builder.store(vector, pointer, align=number.width // 8)


def _all(builder: Any, number: Any) -> Any:
    """A vector of the same number."""
    undefined = ir.Constant(ir.VectorType(number.type, LANES), ir.Undefined)
    first = builder.insert_element(undefined, number, ir.Constant(_INT32, 0))
    zeros = ir.Constant(ir.VectorType(_INT32, LANES), [0] * LANES)
    return builder.shuffle_vector(first, undefined, zeros)


@intrinsic
def _less(_: Any, numbers: Any, at: Any, number: Any) -> Any:

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array, at, number = arguments
        some = _load(builder, _data(context, builder, signature.args[0], array), at)
        found = builder.icmp_signed("<", some, _all(builder, number))
        return builder.zext(builder.bitcast(found, ir.IntType(LANES)), _INT64)

    return types.uint64(numbers, types.int64, numbers.dtype), generate


# `less(numbers, at, number)`: which of `numbers[at : at + LANES]`, of an array of signed integers,
# are less than a number, as the bits of a uint64.
less: Any = _less


@intrinsic
def _transpose(_: Any, source: Any, start: Any, step: Any, target: Any, to: Any, jump: Any) -> Any:

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        source, start, step, target, to, jump = arguments
        before = _data(context, builder, signature.args[0], source)
        after = _data(context, builder, signature.args[3], target)
        half = LANES // 2
        index = ir.VectorType(_INT32, LANES)
        # Numbers of two vectors in turn: of their first halves, and of their second.
        riffle = [
            ir.Constant(index, [first + i // 2 + LANES * (i % 2) for i in range(LANES)])
            for first in (0, half)
        ]

        def place(first: Any, stride: Any, k: int) -> Any:
            return builder.add(first, builder.mul(stride, ir.Constant(_INT64, k)))

        rows = [_load(builder, before, place(start, step, k)) for k in range(LANES)]
        for _ in range(LANES.bit_length() - 1):
            rows = [
                builder.shuffle_vector(rows[k // 2], rows[k // 2 + half], riffle[k % 2])
                for k in range(LANES)
            ]
        for k in range(LANES):
            _store(builder, rows[k], after, place(to, jump, k))
        return context.get_dummy_value()

    index = types.int64
    return types.none(source, index, index, target, index, index), generate


# `transpose(source, start, step, target, to, jump)`: for i and k below LANES, the flat
# `target[to + k * jump + i] = source[start + i * step + k]`.
transpose: Any = _transpose


@intrinsic
def _as_float(_: Any, bits: Any, numbers: Any) -> Any:
    result = types.float32 if numbers.dtype.bitwidth == 32 else types.float64

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        bits = builder.trunc(arguments[0], ir.IntType(signature.return_type.bitwidth))
        return builder.bitcast(bits, context.get_data_type(signature.return_type))

    return result(types.int64, numbers), generate


# `as_float(bits, numbers)`: the float with these bits, as wide as an element of `numbers`.
as_float: Any = _as_float
