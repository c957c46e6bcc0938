"""Which entries of which weights belong to one channel: found by following channels through a real forward pass.

Every entry of every dimension of every weight has a number. Beside each tensor of the forward pass runs a shadow that
says which channel each of its elements is: what moves elements moves the shadow by the same call, what adds or
multiplies two tensors makes their channels one, and a linear layer or convolution makes its inputs' channels one with
the columns of its weight and begins new ones, its rows. What then is one (a residual stream with all that writes to it
and reads from it, the two halves of a gate, a query and its key) can only be taken out together (Fang et al., CVPR
2023, DepGraph, who follow the autograd graph instead).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from xmodal_kd.runtime.errors import UserError

Ints = NDArray[np.int64]
#: The shape of the output is that of the input, element by element.
ELEMENTWISE = frozenset([
    "gelu", "relu", "relu_", "silu", "sigmoid", "tanh", "leaky_relu", "elu", "softplus", "hardswish", "hardsigmoid",
    "mish", "dropout", "dropout_", "dropout1d", "dropout2d", "feature_dropout", "alpha_dropout", "abs", "neg", "exp",
    "log", "sqrt", "rsqrt", "pow", "clamp", "clip", "nan_to_num", "masked_fill", "masked_fill_", "to", "float",
    "double", "half", "bfloat16", "type", "type_as", "contiguous", "clone", "detach", "requires_grad_", "add", "add_",
    "sub", "sub_", "mul", "mul_", "div", "div_", "true_divide", "rsub", "where", "lerp", "addcmul", "maximum",
    "minimum", "__add__", "__radd__", "__iadd__", "__sub__", "__rsub__", "__mul__", "__rmul__", "__imul__",
    "__truediv__", "__neg__", "__pow__", "cpu", "cuda",
])  # fmt: skip
#: Elements go elsewhere and stay what they are; only the first argument, or a list there, holds channels.
MOVES = frozenset([
    "view", "reshape", "flatten", "unflatten", "transpose", "swapaxes", "permute", "movedim", "squeeze", "unsqueeze",
    "expand", "expand_as", "repeat", "chunk", "split", "tensor_split", "unbind", "__getitem__", "select", "narrow",
    "index_select", "cat", "concat", "stack", "pad", "roll", "flip", "t", "pad_sequence", "repeat_interleave",
    "view_as", "reshape_as", "__get__",
])  # fmt: skip
#: Channels are dimension 1 and stay, the others change their size.
POOLS = frozenset([
    "max_pool1d", "max_pool2d", "max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d",
    "adaptive_avg_pool2d", "adaptive_max_pool1d", "adaptive_max_pool2d", "interpolate",
])  # fmt: skip
CONVOLUTIONS = frozenset(["conv1d", "conv2d", "conv3d"])


class Channels(TorchFunctionMode):
    """The channels of one model, as one forward pass within `following` shows them.

    Attributes:
        partitions: for each normalisation by groups and each attention the channels that belong together: a list of
            blocks (groups, heads), each the numbers of its channels.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.state = {name: value for name, value in model.state_dict(keep_vars=True).items() if value.dim()}
        self._named = {id(value): name for name, value in self.state.items()}
        self.first: dict[tuple[str, int], int] = {}
        total = 1  # 0 is no channel
        for name, value in self.state.items():
            for dim, size in enumerate(value.shape):
                self.first[name, dim] = total
                total += size
        self.parent: Ints = np.arange(total)
        self.partitions: list[tuple[str, list[Ints]]] = []
        self._shadows: dict[int, tuple[Tensor, Tensor]] = {}

    @contextmanager
    def following(self, model: nn.Module) -> Iterator[None]:
        """While a forward pass of `model` runs, and not for what its caller does with the output."""
        mode: Any = self

        def enter(*_: Any) -> None:
            mode.__enter__()

        def leave(*_: Any) -> None:
            mode.__exit__(None, None, None)

        before = model.register_forward_pre_hook(enter)
        after = model.register_forward_hook(leave, always_call=True)
        try:
            yield
        finally:
            before.remove()
            after.remove()
            self._shadows.clear()

    # ---------------------------------------------------------------- what is one with what

    def entries(self, name: str, dim: int) -> Ints:
        """The channel of each index along a dimension of a weight, as its representative's number."""
        first = self.first[name, dim]
        return self._roots(np.arange(first, first + self.state[name].shape[dim]))

    def _roots(self, numbers: Ints) -> Ints:
        roots = self.parent[numbers]
        while not np.array_equal(above := self.parent[roots], roots):
            roots = above
        return roots

    def _join(self, some: Any, others: Any) -> None:
        """Make two arrays of channels one, element by element; 0 is nothing."""
        pairs = np.stack([np.asarray(some, dtype=np.int64).ravel(), np.asarray(others, dtype=np.int64).ravel()])
        for a, b in np.unique(pairs[:, (pairs > 0).all(axis=0)], axis=1).T:
            [one], [other] = self._roots(np.array([a])), self._roots(np.array([b]))
            self.parent[max(one, other)] = min(one, other)

    def _ids(self, weight: Tensor, dim: int) -> Tensor:
        name = self._named[id(weight)]
        first = self.first[name, dim]
        return torch.arange(first, first + weight.shape[dim], dtype=torch.float64)

    # ---------------------------------------------------------------- shadows

    def _shadow(self, value: Any) -> Tensor | None:
        if not isinstance(value, Tensor):
            return None
        if id(value) in self._shadows:
            return self._shadows[id(value)][1]
        known = self._named.get(id(value))
        return self._ids(value, 0) if known is not None and value.dim() == 1 else None

    def _keep(self, value: Any, shadow: Any) -> None:
        if isinstance(value, Tensor):
            if value.is_floating_point():
                self._shadows[id(value)] = value, shadow
        else:
            for one, its in zip(value, shadow, strict=True):
                self._keep(one, its)

    def _along(self, shadow: Tensor, dims: Sequence[int]) -> Tensor:
        """The channels along `dims`, whatever the place along the others: made one where places differ."""
        keep = [dim % shadow.dim() for dim in dims]
        others = [dim for dim in range(shadow.dim()) if dim not in keep]
        rows = shadow.permute(*others, *keep).reshape(-1, *(shadow.shape[dim] for dim in keep))
        if not len(rows):
            return torch.zeros(rows.shape[1:], dtype=torch.float64)
        top = rows.amax(dim=0)
        self._join(torch.where(rows > 0, rows, top.expand_as(rows)).amin(dim=0).numpy(), top.numpy())
        return top

    # ---------------------------------------------------------------- rules

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        name = getattr(func, "__name__", str(func))
        if not _has_rows(out) and name != "__setitem__":
            return out
        rule = RULES.get(name)
        if rule is not None:
            rule(self, out, *args, **kwargs)
        elif name in ELEMENTWISE:
            self._elementwise(out, [*args, *kwargs.values()])
        elif name in MOVES:
            self._moved(func, out, args, kwargs)
        elif name in POOLS:
            self._pooled(out, args[0])
        elif any(self._shadow(value) is not None for value in _flat([*args, *kwargs.values()])):
            raise UserError(f"channels cannot be followed through {name!r}: choose a student of the same width")
        return out

    def _elementwise(self, out: Tensor, given: Sequence[Any]) -> None:
        shadows = [shadow for value in given if (shadow := self._shadow(value)) is not None]
        if not shadows:
            return
        wide = [shadow.expand(out.shape) for shadow in shadows]
        for other in wide[1:]:
            self._join(wide[0].numpy(), other.numpy())
        self._keep(out, wide[0] if len(wide) == 1 else torch.stack(wide).amax(dim=0))

    def _moved(self, func: Any, out: Any, args: Any, kwargs: Any) -> None:
        first = args[0]
        if isinstance(first, Tensor):
            if (shadow := self._shadow(first)) is not None:
                self._keep(out, func(shadow, *args[1:], **kwargs))
        elif any(self._shadow(part) is not None for part in first):
            blank = [torch.zeros(part.shape, dtype=torch.float64) for part in first]
            shadows = [b if (s := self._shadow(part)) is None else s for part, b in zip(first, blank, strict=True)]
            self._keep(out, func(shadows, *args[1:], **kwargs))

    def _pooled(self, out: Tensor, x: Tensor) -> None:
        if (shadow := self._shadow(x)) is not None:
            self._keep(out, _spread(self._along(shadow, [1]), out, 1))

    def _product(self, out: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, axis: int, *, own: bool) -> None:
        """Rows of the weight begin channels, its columns read those of x; a depthwise kernel's rows do both."""
        if id(weight) not in self._named:
            raise UserError("channels cannot be followed through a weight that is computed: start at the same width")
        rows = self._ids(weight, 0)
        if (shadow := self._shadow(x)) is not None:
            self._join(self._along(shadow, [axis]).numpy(), (rows if own else self._ids(weight, 1)).numpy())
        if bias is not None:
            self._join(self._ids(bias, 0).numpy(), rows.numpy())
        self._keep(out, _spread(rows, out, axis))

    def _linear(self, out: Tensor, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> None:
        self._product(out, input, weight, bias, -1, own=False)

    def _convolution(
        self, out: Tensor, input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1,
        padding: Any = 0, dilation: Any = 1, groups: int = 1,
    ) -> None:  # fmt: skip
        if groups not in (1, weight.shape[0]) or input.dim() != weight.dim():
            raise UserError(f"channels cannot be followed through a convolution of {groups} groups, or without a batch")
        self._product(out, input, weight, bias, 1, own=groups > 1)

    def _norm(self, out: Tensor, x: Tensor, axis: int, vectors: Sequence[Tensor | None], groups: int = 1) -> None:
        shadow = self._shadow(x)
        held = [self._ids(v, 0) for v in vectors if v is not None and id(v) in self._named]
        if shadow is None:
            if held:
                self._keep(out, _spread(held[0], out, axis))
            return
        channels = self._along(shadow, [axis])
        for ids in held:
            self._join(channels.numpy(), ids.numpy())
        if groups > 1:
            blocks = channels.reshape(groups, -1).numpy().astype(np.int64)
            self.partitions.append(("norm", list(blocks)))
        self._keep(out, shadow)

    def _layer_norm(
        self, out: Tensor, input: Tensor, normalized_shape: Any, weight: Any = None, bias: Any = None, eps: float = 0
    ) -> None:
        if len(normalized_shape) != 1:
            raise UserError("channels cannot be followed through a layer norm over several dimensions")
        self._norm(out, input, -1, [weight, bias])

    def _group_norm(
        self, out: Tensor, input: Tensor, num_groups: int, weight: Any = None, bias: Any = None, eps: float = 0
    ) -> None:
        self._norm(out, input, 1, [weight, bias], num_groups)

    def _batch_norm(
        self, out: Tensor, input: Tensor, running_mean: Any, running_var: Any, weight: Any = None, bias: Any = None,
        *_: Any, **__: Any,
    ) -> None:  # fmt: skip
        self._norm(out, input, 1, [running_mean, running_var, weight, bias])

    def _glu(self, out: Tensor, input: Tensor, dim: int = -1) -> None:
        if (shadow := self._shadow(input)) is not None:
            value, gate = shadow.chunk(2, dim)
            self._join(value.numpy(), gate.numpy())
            self._keep(out, value)

    def _attention(self, out: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> None:
        """``(b, h, n, d)``: a query's channel is its key's, what comes out has the value's; heads are blocks."""
        shadows = [self._shadow(x) for x in (query, key, value)]
        q, k, v = (None if s is None else self._along(s, [1, 3]) for s in shadows)
        if q is not None and k is not None:
            self._join(q.numpy(), k.numpy())
        heads = [x.numpy().astype(np.int64) for x in (q, v) if x is not None]
        if heads:
            self.partitions.append(("heads", list(np.concatenate(heads, axis=1))))
        if v is not None:
            self._keep(out, v[None, :, None].expand(out.shape))

    def _reduced(self, out: Any, x: Tensor, dim: Any = None, keepdim: bool = False, **_: Any) -> None:
        shadow, out = self._shadow(x), out if isinstance(out, Tensor) else out[0]
        if shadow is None or dim is None:
            return
        dims = [d % x.dim() for d in ([dim] if isinstance(dim, int) else dim)]
        kept = [d for d in range(x.dim()) if d not in dims]
        top = self._along(shadow, kept)
        self._keep(out, top.reshape(out.shape))

    def _scattered(self, out: Tensor, x: Tensor, dim: int, index: Tensor, src: Tensor, *_: Any, **__: Any) -> None:
        """Rows that are pooled by a number of their own, as points are into pillars."""
        if (shadow := self._shadow(src)) is not None:
            top = self._along(shadow, [d for d in range(src.dim()) if d != dim % src.dim()])
            self._keep(out, top.unsqueeze(dim).expand(out.shape))

    def _blank(self, out: Tensor, x: Tensor, *_: Any, **__: Any) -> None:
        """What is made anew has no channels."""


Rule = Callable[..., None]
RULES: dict[str, Rule] = {
    "linear": Channels._linear, "layer_norm": Channels._layer_norm, "group_norm": Channels._group_norm,
    "batch_norm": Channels._batch_norm, "glu": Channels._glu,
    "scaled_dot_product_attention": Channels._attention, "scatter_reduce": Channels._scattered,
    **dict.fromkeys(["new_zeros", "zeros_like"], Channels._blank),
    **dict.fromkeys(CONVOLUTIONS, Channels._convolution),
    **dict.fromkeys(["mean", "sum", "amax", "amin"], Channels._reduced),
}  # fmt: skip


def _spread(channels: Tensor, out: Tensor, axis: int) -> Tensor:
    """Channels along one axis of a tensor's shape."""
    shape = [1] * out.dim()
    shape[axis] = -1
    return channels.reshape(shape).expand(out.shape)


def _flat(values: Sequence[Any]) -> Iterator[Any]:
    for value in values:
        if isinstance(value, list | tuple):
            yield from _flat(value)
        else:
            yield value


def _has_rows(out: Any) -> bool:
    """Whether there are floating-point tensors in a result: what else there is holds no channels."""
    return any(isinstance(value, Tensor) and value.is_floating_point() for value in _flat([out]))
