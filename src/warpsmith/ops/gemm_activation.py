# SPDX-License-Identifier: Apache-2.0
"""Activations of a product: what `gemm` and `grouped_gemm` check of them, and what kernels are told of them."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from warpsmith.catalog.fused_moe import ACTIVATIONS, UNGATED
from warpsmith.catalog.gemm import N_MULTIPLE
from warpsmith.errors import FormatError, InvalidArgumentError
from warpsmith.ops.checks import NUMBERS

ACTIVATION_SHIFT = 12
"""Of the two bits of the flags that say 0, no activation; 1, with a gate; 2, relu2; 3, swiglu."""
_GATED, _SQUARED_RELU, _SWIGLU = 1, 2, 3


class Activation(NamedTuple):
    """An activation by name; `alpha` and `limit` are swiglu_oai's."""

    name: str
    alpha: float
    limit: float

    @property
    def gates(self) -> int:
        """Columns of the product for each of the result: 2, or 1 without a gate."""
        return 1 if self.name in UNGATED else 2

    @property
    def flags(self) -> int:
        """Its bits of a kernel's flags."""
        kinds = {"swiglu": _SWIGLU, "relu2": _SQUARED_RELU}
        return kinds.get(self.name, _GATED) << ACTIVATION_SHIFT

    @property
    def gate(self) -> tuple[float, float, float, float]:
        """Slope, cube, limit and offset of g · sigmoid(g · (slope + cube · g²)) · (u + offset).

        gelu by tanh is g · sigmoid(2 · sqrt(2 / pi) · (g + 0.044715 · g³)).
        """
        if self.name == "swiglu_oai":
            return self.alpha, 0.0, self.limit, 1.0
        if self.name == "geglu_tanh":
            slope = 2.0 * math.sqrt(2.0 / math.pi)
            return slope, 0.044715 * slope, math.inf, 0.0
        return 1.0, 0.0, math.inf, 0.0

    def columns(self, n: int) -> int:
        """Columns of the result of a product of `n` columns.

        Raises
        ------
        FormatError
            If the product cannot be parted into gate and up.
        """
        if n % (self.gates * N_MULTIPLE):
            raise FormatError(
                f"b has N = {n} rows; with {self.name} expected gate rows, then as many up rows, of each a multiple of "
                f"{N_MULTIPLE}"
            )
        return n // self.gates


def activation_of(name: Any, alpha: Any, limit: Any) -> Activation | None:
    """A checked activation, or None.

    Raises
    ------
    InvalidArgumentError
        If it is unknown, or `alpha` or `limit` is no number.
    """
    if name is None:
        return None
    if not isinstance(name, str) or name not in ACTIVATIONS:
        raise InvalidArgumentError(f"activation {name!r} is unknown; expected one of {', '.join(ACTIVATIONS)}")
    for what, value in (("alpha", alpha), ("limit", limit)):
        if not isinstance(value, NUMBERS) or not math.isfinite(value):
            raise InvalidArgumentError(f"{what} is {value!r}; expected a finite number")
    return Activation(name, float(alpha), float(limit))
