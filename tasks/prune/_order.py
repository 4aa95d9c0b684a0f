"""Find the n-th smallest or largest value: an exact radix selection over parts, in bounded memory.

A value is mapped to an unsigned integer with the same order. Its 16-bit digits are counted one after the other, highest
first: each pass finds which of 65,536 buckets contains the n-th value, so float32 takes 2 passes, int64 and float64
take 4. Memory is 65,536 counters, for any number of values.
Source: radix selection, Alabi, Blanchard, Gordon and Steinbach, Fast k-selection algorithms for graphics processing
units, JEA 2012, section 3.2 (there the order of bits of floats, too).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

DIGIT_BITS: Final = 16
BUCKETS: Final = 1 << DIGIT_BITS
CHUNK: Final = 1 << 18
"""Values counted at once: temporary arrays fit into the processor's cache."""


def numbers(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """Return (values: float32, float64 or int64 (n,); which are valid: bool (n,)). Null and NaN are not valid.

    Half floats become float32, decimals float64, integers int64.
    """
    dtype = dtype_of(column.type)
    cast = pc.cast(column, pa.from_numpy_dtype(dtype))
    if dtype.kind == "i":
        return pc.fill_null(cast, 0).to_numpy(), column.is_valid().to_numpy()
    values = pc.fill_null(cast, np.nan).to_numpy()
    return values, ~np.isnan(values)


def dtype_of(type_: pa.DataType) -> np.dtype:
    """Return the type of the values that `numbers` returns for a column."""
    if pa.types.is_integer(type_):
        return np.dtype(np.int64)
    return np.dtype(np.float64 if pa.types.is_float64(type_) or pa.types.is_decimal(type_) else np.float32)


def key_bits(type_: pa.DataType) -> int:
    """Return the width of the keys of a column: 32 or 64."""
    return 8 * dtype_of(type_).itemsize


def keys(values: np.ndarray, lowest: bool) -> np.ndarray:
    """Return integers with the order of the values, ascending if `lowest`, else descending: uint32 or uint64 (n,).

    `values`: float32, float64 or int64 (n,), no NaN. -0 and 0 are the same.
    """
    unsigned = np.dtype(f"u{values.dtype.itemsize}")
    sign = unsigned.type(1 << (8 * values.dtype.itemsize - 1))
    if values.dtype.kind == "f":
        bits = (values + values.dtype.type(0)).view(unsigned)  # -0 + 0 is 0
        negative = bits.view(f"i{values.dtype.itemsize}") >> (8 * values.dtype.itemsize - 1)
        found: np.ndarray = bits ^ (negative.view(unsigned) | sign)
    else:
        found = values.view(unsigned) ^ sign
    return found if lowest else np.invert(found)


def value_of(key: int, dtype: np.dtype, lowest: bool) -> float | int:
    """Return the value of a key: the inverse of `keys`."""
    unsigned = np.dtype(f"u{dtype.itemsize}")
    sign = unsigned.type(1 << (8 * dtype.itemsize - 1))
    found = unsigned.type(key) if lowest else ~unsigned.type(key)
    if dtype.kind == "f" and not found & sign:
        found = ~found ^ sign  # a negative number: all of its bits were inverted
    value: float | int = np.array(found ^ sign).view(dtype).item()
    return value


@dataclass(frozen=True)
class Digit:
    """Counts one digit of the keys with a given prefix. A `tasks.stage.Reducer`."""

    column: str
    lowest: bool
    shift: int
    """Bits below the digit."""
    prefix: int | None = None
    """The digits above it; None for the highest."""

    def init(self) -> np.ndarray:
        return np.zeros(BUCKETS, np.int64)

    def update(self, state: np.ndarray, batch: pa.Table) -> np.ndarray:
        values, there = numbers(batch.column(self.column))
        return self.count(state, values if there.all() else values[there])

    def count(self, state: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Return the state with values added, none of them NaN."""
        total: np.ndarray = state.copy()
        for start in range(0, len(values), CHUNK):
            found = keys(values[start : start + CHUNK], self.lowest)
            digits = found >> found.dtype.type(self.shift)
            if self.prefix is not None:
                digits = digits[digits >> digits.dtype.type(DIGIT_BITS) == digits.dtype.type(self.prefix)]
            total += np.bincount((digits & digits.dtype.type(BUCKETS - 1)).astype(np.intp), minlength=BUCKETS)
        return total

    def merge(self, one: np.ndarray, other: np.ndarray) -> np.ndarray:
        merged: np.ndarray = one + other
        return merged

    def compute(self, state: np.ndarray) -> np.ndarray:
        return state


@dataclass(frozen=True)
class Cut:
    """The cut-off of the first rows: a row is among them if its key is below `key`, or equal to it and an early tie."""

    key: int
    ties: int
    """How many of the rows with this key are among the first, by sample_id."""
    total: int
    count: int
    """Rows that have a value."""


Count = Callable[[Digit], np.ndarray]
"""Returns the count of each of the 65,536 values of a digit: int64."""


def find_cut(column: str, lowest: bool, bits: int, total: Callable[[int], int], count: Count) -> Cut:
    """Return the cut-off of the first `total(n)` of n values, counting digit by digit with `count`."""
    digit = Digit(column, lowest, bits - DIGIT_BITS)
    counts = count(digit)
    n = int(counts.sum())
    wanted = total(n)
    if wanted == 0:
        return Cut(0, 0, 0, n)
    left, prefix = wanted, 0
    while True:
        upto = np.cumsum(counts)
        bucket = int(np.searchsorted(upto, left))
        left -= int(upto[bucket] - counts[bucket])
        prefix = prefix << DIGIT_BITS | bucket
        if digit.shift == 0:
            return Cut(prefix, left, wanted, n)
        digit = Digit(column, lowest, digit.shift - DIGIT_BITS, prefix)
        counts = count(digit)


class Taker:
    """Determines for successive batches, in `sample_id` order, which rows are before a cut-off."""

    def __init__(self, cut: Cut) -> None:
        self._cut = cut
        self._ties = cut.ties

    def __call__(self, key: np.ndarray) -> np.ndarray:
        """Return which rows are among the first: bool (n,). `key`: uint32 or uint64 (n,)."""
        limit = key.dtype.type(self._cut.key)
        first: np.ndarray = key < limit
        tied = np.flatnonzero(key == limit)[: self._ties]
        first[tied] = True
        self._ties -= len(tied)
        return first
