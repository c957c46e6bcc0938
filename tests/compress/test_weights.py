"""Few-bit weights: the quantisers against loops, what stands before weights, and the packed file to the bit."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from oracles import polino_by_another as by_another
from oracles import scheme_compress as oracle
from torch import Tensor, nn

from xmodal_kd.compress import buckets, huffman, packed, qat
from xmodal_kd.compress.quantise import Even, Learned, chosen, settle
from xmodal_kd.models.weight_swap import NAME, weight_swap_of
from xmodal_kd.runtime.errors import UserError


def weights(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


CASES = [((7, 5), 16), ((4, 3, 3), 8), ((5,), 256), ((1, 1), 4), ((64, 3), 64)]


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize(("shape", "bucket"), CASES)
def test_even_grid_is_the_papers(shape: tuple[int, ...], bucket: int, bits: int) -> None:
    value = weights(*shape)
    coded = buckets.encode(value, bits, bucket)
    assert np.array_equal(coded.codes.numpy(), oracle.levels(value.numpy(), bits, bucket).reshape(-1))
    np.testing.assert_allclose(buckets.decode(coded), oracle.quantised(value.numpy(), bits, bucket), rtol=1e-12)
    assert len(coded.low) == len(oracle.buckets(value.numel(), bucket)) == buckets.buckets(value.numel(), bucket)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("bits", [1, 2, 4])
@pytest.mark.parametrize("bucket", [8, 16])
def test_stochastic_rounding_is_the_papers(seed: int, bits: int, bucket: int) -> None:
    draw = np.random.RandomState(seed)
    for value in by_another.inputs(seed):
        rand = draw.rand(sum(map(len, by_another.cut(value, bucket))))
        made = buckets.encode(torch.tensor(value), bits, bucket, torch.tensor(rand[: value.size]))
        values, index = by_another.quantise(value, 2**bits, bucket, rand.tolist())
        assert np.array_equal(made.codes.numpy(), index)
        np.testing.assert_allclose(buckets.decode(made).numpy().reshape(-1), values, rtol=1e-12, atol=1e-15)
    first = by_another.inputs(0)[0]
    released = buckets.encode(torch.tensor(first), 2, 8, torch.tensor(by_another.numbers(0)[: first.size]))
    np.testing.assert_allclose(buckets.decode(released).numpy().reshape(-1), by_another.STOCHASTIC, rtol=1e-12)


def test_a_weight_is_the_mean_of_what_it_is_rounded_to() -> None:
    value, draw = weights(6, 4), torch.Generator().manual_seed(1)
    rounds = [
        buckets.decode(buckets.encode(value, 2, 16, torch.rand(24, generator=draw, dtype=torch.float64)))
        for _ in range(4000)
    ]
    torch.testing.assert_close(torch.stack(rounds).mean(dim=0), value, rtol=0, atol=0.06)  # 3 deviations of a mean


def test_a_bucket_of_equal_weights_stays_as_it_is() -> None:
    value = torch.full((6,), 0.3)
    assert torch.equal(buckets.decode(buckets.encode(value, 4, 4)), value)
    assert torch.equal(buckets.decode(buckets.encode_at(value, torch.tensor([0.0, 1.0]), 4)), value)


@pytest.mark.parametrize(("shape", "bucket"), CASES)
def test_learned_points_and_their_gradient_are_the_papers(shape: tuple[int, ...], bucket: int) -> None:
    value, points = weights(*shape), torch.tensor([0.9, 0.1, 0.35, 0.6], dtype=torch.float64, requires_grad=True)
    slope = weights(*shape, seed=1)
    made = buckets.decode(buckets.encode_at(value, points, bucket))
    np.testing.assert_allclose(
        made.detach(), oracle.by_points(value.numpy(), points.detach().numpy(), bucket), rtol=1e-12
    )
    made.backward(slope)
    expected = oracle.gradient_of_points(value.numpy(), slope.numpy(), points.detach().numpy(), bucket)
    np.testing.assert_allclose(points.grad, expected, rtol=1e-10, atol=1e-12)


def test_quantile_points_serve_alike_many_weights() -> None:
    value = weights(40, 25) ** 3  # far from even
    points = buckets.quantiles(value, 2, 1000)
    served = torch.bincount(buckets.encode_at(value, points, 1000).codes.long(), minlength=4)
    assert served.min() > 150 and points.tolist() == sorted(points.tolist())


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("n", [1, 3, 8, 17])
def test_codes_are_packed_without_a_bit_to_spare(n: int, bits: int) -> None:
    codes = torch.randint(0, 2**bits, (n,), generator=torch.Generator().manual_seed(n), dtype=torch.uint8)
    made = buckets.pack(codes, bits)
    assert bytes(made.tolist()) == oracle.packed(codes.tolist(), bits)
    assert torch.equal(buckets.unpack(made, bits, n), codes)


@pytest.mark.parametrize(("bits", "bucket"), list(by_another.MEAN_BITS))
def test_bits_by_huffman_are_the_releases(bits: int, bucket: int) -> None:
    """One code for all tensors together."""
    coded = {
        str(i): buckets.encode(torch.tensor(w), bits, bucket or w.size) for i, w in enumerate(by_another.inputs(0))
    }
    count = sum(len(one.codes) for one in coded.values())
    assert packed.bits_by_huffman(coded) / count == pytest.approx(by_another.MEAN_BITS[bits, bucket], rel=1e-12)


@pytest.mark.parametrize("n", [1, 1023, 1024, 1025, 5000])
@pytest.mark.parametrize("levels", [1, 2, 4, 16, 256])
def test_words_of_a_huffman_code_are_read_again(n: int, levels: int) -> None:
    draw = np.random.RandomState(n)
    often = draw.rand(levels) ** 6 + 1e-9
    symbols = draw.choice(levels, n, p=often / often.sum()).astype(np.uint8)
    counts = np.bincount(symbols, minlength=levels).tolist()
    lengths = huffman.word_lengths(counts)
    written = huffman.write(symbols, lengths)
    assert np.array_equal(huffman.read(written, lengths, n), symbols)
    whole = sum(c * length for c, length in zip(counts, lengths, strict=True))
    assert whole == oracle.huffman_bits(symbols.tolist()) and 8 * len(written.stream) - whole < 8 * len(written.sizes)
    if sum(c > 0 for c in counts) > 1:  # the release has a code of no bits for one symbol
        assert huffman.mean_bits(counts) == pytest.approx(by_another.mean_bits(counts), rel=1e-12)


def test_damaged_words_are_refused() -> None:
    symbols = np.arange(3000, dtype=np.uint8) % 3
    lengths = huffman.word_lengths(np.bincount(symbols).tolist())
    written = huffman.write(symbols, lengths)
    with pytest.raises(ValueError, match="no Huffman code"):
        huffman.read(written, [1, 1, 1], 3000)
    with pytest.raises(ValueError, match="stretches are not those of 5000 symbols"):
        huffman.read(written, lengths, 5000)
    with pytest.raises(ValueError, match="ends too early"):
        huffman.read(written._replace(stream=written.stream[:500]), lengths, 3000)
    with pytest.raises(ValueError, match="a word of no symbol"):
        huffman.read(written._replace(stream=~np.zeros_like(written.stream)), [2, 2, 2], 3000)


# ---------------------------------------------------------------- what stands before weights


class Net(nn.Module):
    """A matrix that its owner uses, one that another module reads, a vector."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(6, 8), nn.Linear(8, 8, bias=False), nn.Linear(8, 3)
        self.reader = nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        y = nn.functional.linear(torch.relu(self.first(x)), self.middle.weight)  # past the module's own forward
        return self.last(self.reader(y))  # type: ignore[no-any-return]


def net(seed: int = 0) -> Net:
    torch.manual_seed(seed)
    return Net()


def test_first_and_last_layers_and_vectors_are_kept_by_default() -> None:
    assert chosen(net(), 4, {}, ("first", "last")) == {"middle.weight": 4}
    assert chosen(net(), 4, {"last": 8, "m*": 2}, ()) == {"first.weight": 4, "middle.weight": 2, "last.weight": 8}
    with pytest.raises(UserError, match=r"'midle' is none of the student's weights.*middle\.weight"):
        chosen(net(), 4, {}, ("midle",))
    with pytest.raises(UserError, match="leaves nothing to quantise"):
        chosen(net(), 4, {}, ("*",))


def test_forward_sees_codes_and_the_gradient_reaches_the_weights() -> None:
    model, x = net(), torch.randn(5, 6)
    plain, state = copy.deepcopy(model), copy.deepcopy(model.state_dict())
    stand = Even({"middle.weight": 2}, 16)
    stand.attach(model)
    by_hand = copy.deepcopy(plain)
    by_hand.middle.weight.data = buckets.decode(buckets.encode(plain.middle.weight, 2, 16))
    out = model(x)
    assert torch.equal(out, by_hand(x))
    out.square().sum().backward()
    by_hand(x).square().sum().backward()
    assert torch.equal(model.middle.weight.grad, by_hand.middle.weight.grad)  # type: ignore[arg-type]
    assert {k: v for k, v in model.state_dict().items() if not k.startswith(NAME)}.keys() == state.keys()
    assert all(torch.equal(model.state_dict()[name], value) for name, value in state.items())


def test_rounding_by_chance_is_of_training_alone() -> None:
    model, x = net(), torch.randn(5, 6)
    plain = copy.deepcopy(model)
    Even({"middle.weight": 2}, 16, stochastic=True).attach(model)
    Even({"middle.weight": 2}, 16).attach(plain)
    assert not torch.equal(model(x), model(x))
    torch.manual_seed(3)
    one = model(x)
    torch.manual_seed(3)
    assert torch.equal(model(x), one)
    model.eval()
    expected = plain.eval()(x)
    assert torch.equal(model(x), expected)
    settle(model)
    assert torch.equal(model(x), expected)


def test_copies_stand_alone_and_errors_leave_the_weights_in_place() -> None:
    model = net()
    Even({"middle.weight": 2}, 16).attach(model)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.middle.weight.mul_(3)
    assert weight_swap_of(twin) is not weight_swap_of(model)
    assert not torch.equal(twin(torch.ones(1, 6)), model(torch.ones(1, 6)))
    with pytest.raises(RuntimeError, match="shapes"):
        model(torch.ones(1, 7))
    assert isinstance(model.middle.weight, nn.Parameter)
    settle(model)
    assert weight_swap_of(model) is None and not model._forward_pre_hooks and not model._forward_hooks
    assert weight_swap_of(twin) is not None


def test_a_weight_that_two_layers_share_is_one() -> None:
    model = net()
    model.reader = nn.Linear(8, 8, bias=False)
    model.reader.weight = model.middle.weight
    Even(chosen(model, 2, {}, ("first", "last")), 16).attach(model)
    x = torch.randn(4, 6)
    expected = model(x)
    settle(model)
    assert torch.equal(model(x), expected) and model.reader.weight is model.middle.weight


def test_learned_points_are_all_that_learns_of_a_weight() -> None:
    model = net()
    Learned({"middle.weight": 2}, 16, model).attach(model)
    assert not model.middle.weight.requires_grad
    model(torch.randn(5, 6)).sum().backward()
    [points] = [p for name, p in model.named_parameters() if name.startswith(NAME)]
    assert points.shape == (4,) and points.grad is not None and points.grad.abs().sum() > 0


# ---------------------------------------------------------------- against torch's own


@pytest.mark.parametrize("bits", [4, 8])
def test_weights_are_what_torchs_fake_quantisation_makes(bits: int) -> None:
    from torch.ao.quantization import FakeQuantize, PerChannelMinMaxObserver

    most = 2 ** (bits - 1) - 1
    theirs = FakeQuantize(
        PerChannelMinMaxObserver, quant_min=-most, quant_max=most, dtype=torch.qint8,
        qscheme=torch.per_channel_symmetric, ch_axis=0,
    )  # fmt: skip
    model = net()
    stand = qat.FakeWeights({"middle.weight": bits}, (), 0.01)
    made, weight = stand.made("middle.weight", model.middle.weight), model.middle.weight
    torch.testing.assert_close(made, theirs(weight), rtol=0, atol=1e-7)
    assert torch.equal(made, packed.weight_of(stand.coded("middle.weight", weight)))
    made.sum().backward()
    assert torch.equal(weight.grad, torch.ones_like(weight))  # type: ignore[arg-type] # the largest is not cut off


def test_ranges_are_what_torchs_observer_says() -> None:
    from torch.ao.quantization import MinMaxObserver

    for low, high in ((-1.0, 3.0), (0.5, 2.0), (-4.0, -1.0)):
        observer = MinMaxObserver(dtype=torch.quint8)
        observer(torch.tensor([low, high]))
        scale, zero = observer.calculate_qparams()
        mine, at = qat.affine(torch.tensor(low), torch.tensor(high))
        assert float(mine) == pytest.approx(float(scale)) and int(at) == int(zero)


# ---------------------------------------------------------------- the file


def trained(kind: str) -> Net:
    """A model with weights of every layout, and a whole number in its state."""
    model = net(3)
    model.register_buffer("steps", torch.tensor([7, 9]))
    bits: dict[str, int] = {"first.weight": 8, "middle.weight": 2}
    stand: Any = {
        "even": lambda: Even(bits, 16), "learned": lambda: Learned(bits, 16, model),
        "qat": lambda: qat.FakeWeights({"first.weight": 8, "middle.weight": 4}, (), 0.01),
    }[kind]()  # fmt: skip
    stand.attach(model)
    return model


@pytest.mark.parametrize("by_huffman", [False, True])
@pytest.mark.parametrize("kind", ["even", "learned", "qat"])
def test_the_file_answers_as_what_was_trained(kind: str, by_huffman: bool, tmp_path: Path) -> None:
    model, x = trained(kind), torch.randn(9, 6)
    expected = model(x)
    settle(model)
    assert torch.equal(model(x), expected)
    codes = model.compression.coded  # type: ignore[union-attr]
    size = packed.write(tmp_path / packed.PACKED, model, codes, {"more": torch.ones(2)}, by_huffman=by_huffman)
    assert size == (tmp_path / packed.PACKED).stat().st_size
    again = net(4)
    again.register_buffer("steps", torch.zeros(2, dtype=torch.long))
    read, more = packed.read(tmp_path / packed.PACKED, again)
    assert torch.equal(again(x), expected) and again.steps.tolist() == [7, 9]
    assert read.keys() == codes.keys() and more["more"].tolist() == [1, 1]


def test_bytes_are_those_of_the_codes_and_their_buckets(tmp_path: Path) -> None:
    model = nn.Linear(300, 40, bias=False)
    Even({"weight": 4}, 256).attach(model)
    settle(model)
    size = packed.write(tmp_path / packed.PACKED, model, model.compression.coded, {})  # type: ignore[union-attr,arg-type]
    assert 0 <= size - oracle.packed_bytes(12000, 4, 256) < 600  # the header


def test_files_of_something_else_are_refused_in_one_line(tmp_path: Path) -> None:
    model = trained("even")
    settle(model)
    path = tmp_path / packed.PACKED
    with pytest.raises(UserError, match="is missing"):
        packed.read(path, model)
    path.write_bytes(b"no tensors")
    with pytest.raises(UserError, match="is not a packed model"):
        packed.read(path, model)
    packed.write(path, model, model.compression.coded, {})  # type: ignore[union-attr,arg-type]
    with pytest.raises(UserError, match="packed from another model than this Net: check its card"):
        packed.read(path, net())
