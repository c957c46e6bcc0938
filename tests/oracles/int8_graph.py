"""An int8 ONNX graph computed in whole numbers: exactly, or as a CPU does it that adds two products in 16 bits.

Every ``Conv`` and ``MatMul`` between ``DequantizeLinear`` and ``QuantizeLinear`` is computed on the integers that the
file holds; everything else is onnx's own reference. Operations are of `Conv` in one dimension, and `MatMul`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

Whole = NDArray[np.int64]
Product = Callable[[Whole, Whole], Whole]
DOMAIN = "whole.numbers"


def exact(a: Whole, w: Whole) -> Whole:
    """``(..., k)`` by ``(k, n)``."""
    return a @ w


def saturating(a: Whole, w: Whole) -> Whole:
    """As x86 does without VNNI (``vpmaddubsw``, ``vpmaddwd``): products of unsigned and signed bytes, summed in pairs
    of neighbours that saturate at 16 bits, then in 32 bits. ``(..., k)`` by ``(k, n)``."""
    assert a.min(initial=0) >= 0 and a.max(initial=0) <= 255 and np.abs(w).max(initial=0) <= 128
    if len(w) % 2:
        a, w = np.pad(a, [(0, 0)] * (a.ndim - 1) + [(0, 1)]), np.pad(w, [(0, 1), (0, 0)])
    pairs = a[..., 0::2, None] * w[0::2] + a[..., 1::2, None] * w[1::2]
    return np.clip(pairs, -(2**15), 2**15 - 1).sum(-2)


def worst(w: Whole) -> Whole:
    """Activations that drive each column of ``(k, n)`` as far up, and as far down, as any can: ``(2 n, k)``."""
    return 255 * np.concatenate([w.T > 0, w.T < 0]).astype(np.int64)


def weights(path: Path) -> list[NDArray[Any]]:
    """Constant right sides of the graph's products as they lie in the file, each as ``(k, n)``: of a convolution a
    matrix for each group, its channels next to each other."""
    graph = onnx.load(path).graph
    held, made = {t.name: t for t in graph.initializer}, {o: n for n in graph.node for o in n.output}
    found: list[NDArray[Any]] = []
    for node in graph.node:
        if node.op_type not in ("Conv", "MatMul", "Gemm"):
            continue
        source = made[node.input[1]]
        assert source.op_type == "DequantizeLinear", f"{node.op_type} by a {source.op_type} is not quantised"
        if source.input[0] not in held:  # activations by activations
            continue
        array = numpy_helper.to_array(held[source.input[0]])
        assert node.op_type in ("Conv", "MatMul")
        groups = next((a.i for a in node.attribute if a.name == "group"), 1)
        found += _matrices(array, groups) if node.op_type == "Conv" else [array]
    return found


def run(path: Path, product: Product, features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Logits ``(t', classes)`` of one utterance ``(t, mels)``, every product of bytes computed by `product`."""
    model = onnx.load(path)
    made = {o: n for n in model.graph.node for o in n.output}
    for node in model.graph.node:
        if node.op_type in ("Conv", "MatMul") and made[node.input[0]].op_type == "DequantizeLinear":
            parts = [made[name].input for name in node.input[:2]]
            node.input[:] = [*parts[0], *parts[1], *node.input[2:]]
            node.op_type, node.domain = f"Whole{node.op_type}", DOMAIN
    model.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    inputs = {"features": features[None], "lengths": np.array([len(features)], dtype=np.int64)}
    logits: NDArray[np.float32] = ReferenceEvaluator(model, new_ops=_operations(product)).run(["logits"], inputs)[0]
    return logits[0]


def _operations(product: Product) -> list[type[OpRun]]:
    class WholeMatMul(OpRun):
        op_domain = DOMAIN

        def _run(self, a: Any, a_scale: Any, a_zero: Any, w: Any, w_scale: Any, w_zero: Any) -> tuple[Any]:
            total = _centred(product, a, a_zero, w, w_zero)
            return ((total * (np.float64(a_scale) * w_scale)).astype(np.float32),)

    class WholeConv(OpRun):
        op_domain = DOMAIN

        def _run(
            self, x: Any, x_scale: Any, x_zero: Any, w: Any, w_scale: Any, w_zero: Any, bias: Any = None, *,
            auto_pad: str = "NOTSET", dilations: Any, group: int, kernel_shape: Any = None, pads: Any, strides: Any,
        ) -> tuple[Any]:  # fmt: skip
            if kernel_shape is None:  # some exporters leave it to the weights
                kernel_shape = w.shape[2:]
            assert auto_pad == "NOTSET" and len(kernel_shape) == 1
            x = np.pad(x, [(0, 0), (0, 0), tuple(pads)], constant_values=x_zero)
            reach, step = (kernel_shape[0] - 1) * dilations[0] + 1, strides[0]
            taps = [
                x[..., i * dilations[0] : x.shape[-1] - reach + 1 + i * dilations[0] : step]
                for i in range(*kernel_shape)
            ]
            rows = np.stack(taps, axis=1)  # (b, kernel, channels, t')
            totals = [
                _centred(product, part.transpose(0, 3, 1, 2).reshape(len(x), part.shape[-1], -1), x_zero, matrix, 0)
                for part, matrix in zip(np.split(rows, group, axis=2), _matrices(w, group), strict=True)
            ]
            out = np.concatenate(totals, axis=-1) * (np.float64(x_scale) * w_scale)
            assert not np.any(w_zero)
            return ((out + (0 if bias is None else bias)).transpose(0, 2, 1).astype(np.float32),)

    return [WholeMatMul, WholeConv]


def _matrices(w: NDArray[Any], groups: int) -> list[NDArray[Any]]:
    """``(n, channels, kernel)`` of a convolution, as ``(kernel * channels, n / groups)`` of each group."""
    return [part.transpose(2, 1, 0).reshape(-1, len(part)) for part in np.split(w, groups)]


def _centred(product: Product, a: NDArray[Any], a_zero: Any, w: NDArray[Any], w_zero: Any) -> Whole:
    """Sums of ``(a - a_zero) (w - w_zero)``; the zero point of `a` is taken off afterwards, as kernels do it. Products
    of two unsigned sides do not pass through 16 bits."""
    assert a.dtype == np.uint8
    left, zero = a.astype(np.int64), int(a_zero)
    right = w.astype(np.int64) - np.int64(w_zero)
    if w.dtype == np.uint8:
        return (left - zero) @ right
    assert not np.any(w_zero)
    return product(left, right) - zero * right.sum(0)
