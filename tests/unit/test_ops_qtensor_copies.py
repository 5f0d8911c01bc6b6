# SPDX-License-Identifier: Apache-2.0
"""Copies and pickles of `QTensor`: the same bits, of both frameworks, in memory of their own."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import numpy as np
import pytest
from ops_samples import FORMAT_LAYOUTS, FRAMEWORKS, give, needs_torch, random, take

import warpsmith as ws
from warpsmith.errors import FormatError

PARTS = ("data", "scales", "global_scale", "offsets")


def same(one: ws.QTensor, other: ws.QTensor) -> None:
    assert type(one) is type(other) is ws.QTensor
    assert (one.format, one.shape, one.scale_layout, one.device, one.packing) == (
        other.format,
        other.shape,
        other.scale_layout,
        other.device,
        other.packing,
    )
    for name in PARTS:
        left, right = getattr(one, name), getattr(other, name)
        assert (left is None) == (right is None)
        if left is not None:
            assert left.dtype == right.dtype
            np.testing.assert_array_equal(take(left), take(right))


def copies(q: ws.QTensor) -> list[ws.QTensor]:
    return [copy.deepcopy(q), *(pickle.loads(pickle.dumps(q, protocol)) for protocol in (2, 5))]  # noqa: S301


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize(("format", "layout"), FORMAT_LAYOUTS)
def test_copies_have_the_same_bits_elsewhere(framework: str, format: str, layout: str) -> None:
    q = ws.quantize(give(random(256, 256), framework), format, scale_layout=layout)
    before = take(q.data).copy()
    for made in copies(q):
        same(q, made)
        np.testing.assert_array_equal(take(ws.dequantize(q)), take(ws.dequantize(made)))
        take(made.data)[...] = 0
        np.testing.assert_array_equal(take(q.data), before)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_prepared_weights_stay_prepared(framework: str) -> None:
    for gated in (False, True):
        q = ws.prepare_weight(ws.quantize(give(random(64, 64), framework), "mxfp4"), "mxfp8", gated=gated)
        for made in (copy.copy(q), *copies(q)):
            same(q, made)
            np.testing.assert_array_equal(take(ws.dequantize(q)), take(ws.dequantize(made)))


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_groups_and_their_scales_come_along(framework: str) -> None:
    offsets = give(np.array([0, 3, 3, 8], np.int32), framework)
    scale = give(np.array([1.0, 2.0, 3.0], np.float32), framework)
    q = ws.quantize(give(random(8, 64), framework), "nvfp4", global_scale=scale, offsets=offsets)
    for made in copies(q):
        same(q, made)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_shallow_copy_shares_its_parts(framework: str) -> None:
    q = ws.quantize(give(random(4, 64), framework), "mxfp8")
    made = copy.copy(q)
    assert made is not q
    assert all(getattr(made, name) is getattr(q, name) for name in PARTS)


def test_a_copy_in_a_container_is_made_once() -> None:
    q = ws.quantize(random(4, 64), "mxfp8")
    one, two = copy.deepcopy([q, q])
    assert one is two


def test_what_a_pickle_holds_is_checked() -> None:
    q = ws.quantize(random(4, 64), "mxfp8")
    rebuild, parts = q.__reduce__()
    wrong: tuple[Any, ...] = (*parts[:3], (4, 96), *parts[4:])
    with pytest.raises(FormatError, match="data has shape"):
        rebuild(*wrong)


@needs_torch
def test_torchs_own_files_hold_it() -> None:
    import torch

    q = ws.quantize(give(random(4, 64), "torch"), "nvfp4")
    file = io.BytesIO()
    torch.save({"weight": q}, file)
    file.seek(0)
    same(q, torch.load(file, weights_only=False)["weight"])
