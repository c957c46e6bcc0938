"""Acoustic models: shapes, indifference to padding, the receptive field, streaming."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from xmodal_kd.modalities.speech.evaluate.decode import greedy
from xmodal_kd.modalities.speech.losses.ctc import ctc
from xmodal_kd.modalities.speech.models import MODELS, ConvCTC
from xmodal_kd.modalities.speech.models.conformer import SelfAttention
from xmodal_kd.modalities.speech.models.conv import ConvConfig
from xmodal_kd.modalities.speech.models.frames import Depthwise, frame_mask
from xmodal_kd.modalities.speech.models.streaming import Steps, Stream, Windows
from xmodal_kd.runtime.errors import UserError

MELS, CLASSES = 8, 5


def build(name: str, **params: object) -> torch.nn.Module:
    torch.manual_seed(0)
    return MODELS[name](MODELS[name].Config(**params), mels=MELS, classes=CLASSES).eval()


@pytest.fixture(params=["conv", "conformer", "planes"])
def model(request: pytest.FixtureRequest) -> torch.nn.Module:
    if request.param == "conformer":
        return build("conformer", width=16, layers=2, feed_forward=32)
    return build("conv", planes=4 if request.param == "planes" else 0)


def batch(lengths: list[int], padding: float = 0.0) -> tuple[Tensor, Tensor]:
    x = torch.randn(len(lengths), max(lengths), MELS, generator=torch.Generator().manual_seed(1))
    for row, length in zip(x, lengths, strict=True):
        row[length:] = padding
    return x, torch.tensor(lengths)


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 8, 61])
def test_a_quarter_of_the_frames_rounded_up(model: torch.nn.Module, steps: int) -> None:
    logits, lengths = model(*batch([steps]))
    assert logits.shape == (1, -(-steps // 4), CLASSES)
    assert lengths.tolist() == [-(-steps // 4)] and lengths.dtype == torch.int64
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize("padding", [0.0, 1e3, float("nan"), float("inf")])
def test_padding_changes_nothing(model: torch.nn.Module, padding: float) -> None:
    x, lengths = batch([50, 37, 6, 1], padding)
    logits, counts = model(x, lengths)
    for i, length in enumerate(lengths.tolist()):
        alone, (count,) = model(x[i : i + 1, :length], lengths[i : i + 1])
        assert count == counts[i]
        torch.testing.assert_close(logits[i, :count], alone[0], atol=1e-5, rtol=0)


def test_gradients_are_finite_and_do_not_see_padding(model: torch.nn.Module) -> None:
    gradients = []
    for padding in (0.0, float("nan")):
        model.zero_grad()
        logits, counts = model(*batch([40, 9, 1], padding))
        sum(row[:n].square().sum() for row, n in zip(logits, counts, strict=True)).backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    for a, b in zip(*gradients, strict=True):
        assert torch.isfinite(b).all()
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(("name", "params"), [("conformer", {"layers": 1}), ("conv", {"dropout": 0.2})])
def test_dropout_draws_from_the_global_generator(name: str, params: dict[str, object]) -> None:
    model, (x, lengths) = build(name, width=16, **params).train(), batch([20])
    torch.manual_seed(3)
    a = model(x, lengths)[0]
    torch.manual_seed(3)
    b = model(x, lengths)[0]
    assert torch.equal(a, b) and not torch.equal(a, model(x, lengths)[0])


def test_an_utterance_without_frames_harms_nobody(model: torch.nn.Module) -> None:
    x, lengths = batch([12, 1])
    logits, counts = model(x, torch.tensor([12, 0]))
    assert counts.tolist() == [3, 0] and torch.isfinite(logits).all()
    torch.testing.assert_close(logits[0], model(x, lengths)[0][0], atol=1e-5, rtol=0)


def test_a_model_learns_what_it_is_shown(model: torch.nn.Module) -> None:
    (x, lengths), labels = batch([40, 32]), torch.tensor([1, 2, 3, 1, 4])
    optimizer, losses = torch.optim.Adam(model.train().parameters(), 4e-3), []
    for _ in range(80):
        logits, counts = model(x, lengths)
        mask = frame_mask(counts, logits.shape[1])[..., 0]
        values, counted = ctc(logits[mask], mask.nonzero()[:, 0], 2, labels, torch.tensor([0, 0, 1, 1, 1]))
        optimizer.zero_grad()
        values.sum().backward()
        optimizer.step()
        losses.append(values.sum().item())
    assert counted.all() and losses[-1] < 0.1 * losses[0]
    assert greedy(*model.eval()(x, lengths)) == [[1, 2], [3, 1, 4]]


@pytest.mark.parametrize(("name", "fewest", "most"), [("conv", 10_000, 60_000), ("conformer", 500_000, 900_000)])
def test_size_of_the_defaults(name: str, fewest: int, most: int) -> None:
    model = MODELS[name](MODELS[name].Config(), mels=40, classes=11)
    assert fewest <= sum(p.numel() for p in model.parameters()) <= most


def test_axes_name_the_layout_of_what_is_captured(model: torch.nn.Module) -> None:
    captured = {}
    model.blocks[1].register_forward_hook(lambda module, args, output: captured.update(block=output))
    model(*batch([40, 9, 3]))
    assert model.axes("blocks.1") == "b t c" and captured["block"].shape[:2] == (3, 10)
    with pytest.raises(UserError, match=r"blocks\.9"):
        model.axes("blocks.9")


def test_axes_of_attention_and_convolutions() -> None:
    model = build("conformer", width=16, layers=1)
    assert model.axes("blocks.0.self_attn") == "b t c"
    model.other = torch.nn.MultiheadAttention(4, 1)
    assert model.axes("other") == "t b c"
    with pytest.raises(UserError, match="channels before time"):
        model.axes("blocks.0.conv_module.depthwise")


@pytest.mark.parametrize(("params", "steps"), [({"dilation": 2}, 30), ({"padding": 4}, 1), ({}, 9)])
def test_a_depthwise_convolution_in_training_is_torch_s(params: dict[str, int], steps: int) -> None:
    torch.manual_seed(0)
    ours, x = Depthwise(6, 9, **params), torch.randn(2, 6, steps)
    theirs = torch.nn.Conv1d(6, 6, 9, groups=6, **params)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    found = []
    for module in (ours.train(), theirs):
        given = x.clone().requires_grad_()
        y = module(given)
        y.sin().sum().backward()
        found.append([y, given.grad, *(p.grad for p in module.parameters())])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)
    assert torch.equal(ours.eval()(x), theirs(x))


def test_self_attention_is_torch_s_and_loads_its_weights() -> None:
    torch.manual_seed(0)
    theirs = torch.nn.MultiheadAttention(16, 4, batch_first=True)
    torch.nn.init.normal_(theirs.in_proj_bias)
    state = {name: value.clone() for name, value in theirs.state_dict().items()}
    ours = SelfAttention(torch.nn.MultiheadAttention(16, 4))
    ours.load_state_dict(state, strict=True)
    x, mask = torch.randn(3, 7, 16), frame_mask(torch.tensor([7, 4, 1]), 7)
    wanted, _ = theirs(x, x, x, key_padding_mask=~mask[..., 0], need_weights=False)
    torch.testing.assert_close(ours(x, mask), wanted)
    assert list(ours.state_dict()) == list(state)


def test_dropout_inside_attention_is_kept() -> None:
    attend = SelfAttention(torch.nn.MultiheadAttention(16, 4, dropout=0.5))
    x, mask = torch.randn(2, 7, 16), frame_mask(torch.tensor([7, 4]), 7)
    assert not torch.equal(attend(x, mask), attend(x, mask))
    attend.eval()
    assert torch.equal(attend(x, mask), attend(x, mask))


def conv(lookahead: int, planes: int = 0) -> ConvCTC:
    return build("conv", dilations=(1, 2, 3), kernel=3, lookahead=lookahead, planes=planes)


@pytest.mark.parametrize(("lookahead", "planes"), [(0, 0), (1, 0), (2, 0), (1, 3)])
def test_receptive_field_is_exact(lookahead: int, planes: int) -> None:
    model, frame = conv(lookahead, planes), 20
    left, right = model.receptive_field
    x, lengths = batch([200])
    x.requires_grad_()
    model(x, lengths)[0][0, frame].sum().backward()
    seen = x.grad[0].abs().sum(dim=-1).nonzero().flatten()
    assert (int(seen[0]), int(seen[-1])) == (4 * frame - left, 4 * frame + right)


@pytest.mark.parametrize(("lookahead", "planes"), [(0, 0), (2, 0), (1, 3)])
@pytest.mark.parametrize("chunks", [[203], [1] * 203, [7] * 29, [0, 3, 100, 0, 50, 50], [4, 199]])
def test_streaming_equals_the_whole_for_any_chunking(lookahead: int, planes: int, chunks: list[int]) -> None:
    model, (x, lengths) = conv(lookahead, planes), batch([203])
    for stream in streams(model):
        parts = [stream.push(chunk) for chunk in x[0].split(chunks)] + [stream.finish()]
        torch.testing.assert_close(torch.cat(parts), model(x, lengths)[0][0], atol=1e-5, rtol=0)


def streams(model: ConvCTC) -> list[Stream]:
    """With a state, and by running over what is remembered of the features again."""
    assert isinstance(model.stream(), Steps)
    return [model.stream(), Windows(model, *model.receptive_field, stride=4)]


def test_streaming_answers_as_soon_as_a_frame_is_final_and_forgets() -> None:
    model, (x, _) = conv(1), batch([400])
    (steps, windows), (left, right) = streams(model), model.receptive_field
    size, given = sum(one.numel() for one in steps.state), [0, 0]
    for t in range(400):
        for i, stream in enumerate((steps, windows)):
            given[i] += len(stream.push(x[0, t : t + 1]))
        assert given == [max(0, (t - right) // 4 + 1)] * 2
        assert len(windows.buffer) <= left + right + 8
        assert len(steps.held) < 4 and sum(one.numel() for one in steps.state) == size


@pytest.mark.parametrize("length", [1, 2, 5])
def test_streaming_a_short_utterance(length: int) -> None:
    model, (x, lengths) = conv(2), batch([length])
    for stream in streams(model):
        parts = [stream.push(x[0]), stream.finish()]
        torch.testing.assert_close(torch.cat(parts), model(x, lengths)[0][0])


def test_utterances_stream_side_by_side_and_end_when_they_end() -> None:
    """What a server does: states of two utterances in one batch, of which one ends in the middle of a chunk."""
    model, counts = conv(2), [97, 53]
    x, lengths = batch(counts)
    steps = model.steps()
    delay, state, found = model.receptive_field[1] // 4, steps.start(2), []
    padded = torch.nn.functional.pad(x, (0, 0, 3, 4 * delay))
    for chunk in padded[:, : padded.shape[1] // 4 * 4].split(20, dim=1):
        logits, frames, *state = steps(chunk, lengths, *state)
        found.append((logits, frames))
    logits, frames = (torch.cat(parts, dim=1) for parts in zip(*found, strict=True))
    whole, ends = model(x, lengths)
    for row, count in enumerate(ends):
        mine = (frames[row] >= 0) & (frames[row] < count)
        torch.testing.assert_close(logits[row, mine], whole[row, :count], atol=1e-5, rtol=0)


@pytest.mark.parametrize("training", [False, True])
def test_asking_for_steps_changes_no_mode(training: bool) -> None:
    model = conv(1).train(training)
    steps = model.steps()
    assert steps is not None and {module.training for module in (*model.modules(), *steps.modules())} == {training}


def test_a_student_of_another_forward_has_no_steps() -> None:
    class Louder(ConvCTC):
        def forward(self, features: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return super().forward(2 * features, lengths)

    model = Louder(ConvConfig(dilations=(1,)), mels=8, classes=3).eval()
    x = torch.randn(1, 50, 8)
    stream = model.stream()
    parts = [stream.push(x[0]), stream.finish()]
    assert model.steps() is None
    torch.testing.assert_close(torch.cat(parts), model(x, torch.tensor([50]))[0][0])


def test_overlapping_windows_approximate_attention() -> None:
    model, (x, lengths) = build("conformer", width=16, layers=1), batch([90])
    stream = Windows(model, 20, 20, stride=4)
    parts = [stream.push(chunk) for chunk in x[0].split(30)] + [stream.finish()]
    assert torch.cat(parts).shape == model(x, lengths)[0][0].shape


@pytest.mark.parametrize(
    ("params", "message"),
    [({"dilations": []}, "dilations"), ({"kernel": 1}, "too short"), ({"widht": 3}, "widht"), ({"width": 0}, "width")],
)
def test_misconfigured_student(params: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ConvConfig(**params)


@pytest.mark.parametrize(("params", "message"), [({"kernel": 4}, "odd"), ({"width": 10}, "heads")])
def test_misconfigured_teacher(params: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        MODELS["conformer"].Config(**params)
