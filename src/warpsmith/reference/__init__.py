# SPDX-License-Identifier: Apache-2.0
"""The definition of right: formats, scale layouts and matrix products in NumPy, written for clarity.

Kernels are held against it, and CPU tensors and NumPy arrays run it. docs/numerics.md says the same in words.
"""

from warpsmith.reference.activation import silu_and_mul, silu_and_mul_quantize
from warpsmith.reference.dequantize import decode_float64, dequantize
from warpsmith.reference.formats import FORMATS, Format, get_format
from warpsmith.reference.gemm import gemm, grouped_gemm, masked_gemm
from warpsmith.reference.layouts import LAYOUTS, scale_shape
from warpsmith.reference.packing import pack_codes, unpack_codes
from warpsmith.reference.quantize import default_global_scale, quantize

__all__ = [
    "FORMATS",
    "LAYOUTS",
    "Format",
    "decode_float64",
    "default_global_scale",
    "dequantize",
    "gemm",
    "get_format",
    "grouped_gemm",
    "masked_gemm",
    "pack_codes",
    "quantize",
    "scale_shape",
    "silu_and_mul",
    "silu_and_mul_quantize",
    "unpack_codes",
]
