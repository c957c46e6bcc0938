"""The classifier is the same every time, and the judge orders what anybody would order so."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from xmodal_kd.modalities.diffusion.evaluate.judge import Judge
from xmodal_kd.modalities.diffusion.models import classifier as module
from xmodal_kd.modalities.diffusion.models.classifier import (
    PIXEL_CLUSTERS,
    RECIPE,
    Classifier,
    embed,
    train_classifier,
    weight_hash,
)
from xmodal_kd.runtime.errors import RunError, UserError

SAMPLES = 300


@dataclass(frozen=True)
class Images:
    """What the judge needs of a split."""

    x: np.ndarray
    labels: np.ndarray | None = None
    class_names: tuple[str, ...] | None = None

    def tensor(self, indexes: Any) -> Tensor:
        return torch.from_numpy(self.x[indexes].astype(np.float32) / 127.5 - 1)


@pytest.fixture(scope="module")
def digits() -> dict[str, Images]:
    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    x, names = np.round(data.images[:, None] * 255 / 16).astype(np.uint8), tuple("0123456789")
    splits = {"train": order[:1000], "dev": order[1000:1297], "test": order[1297:]}
    return {name: Images(x[i], data.target[i].astype(np.int64), names) for name, i in splits.items()}


@pytest.fixture(scope="module")
def judge(digits: dict[str, Images]) -> Judge:
    return Judge(digits["train"], digits["dev"], samples=SAMPLES)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few steps, where what is learnt does not matter."""
    monkeypatch.setattr(module, "RECIPE", replace(RECIPE, fewest_steps=5, most_steps=20))


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def test_digits_are_learnt_and_the_facts_are_json(judge: Judge, digits: dict[str, Images]) -> None:
    facts = judge.facts()
    assert facts["accuracy"] > 0.97
    features, predicted = embed(judge.classifier, digits["test"].tensor(slice(None)))
    assert (predicted.numpy() == digits["test"].labels).mean() >= 0.97
    assert features.shape == (500, 64) and features.dtype == torch.float64
    assert (facts["train"], facts["reference"], facts["samples"], facts["floor_samples"]) == (1000, 297, 300, 300)
    assert facts["recipe"] == RECIPE.hash and facts["weights"] == weight_hash(judge.classifier)
    assert json.loads(json.dumps(facts, allow_nan=False)) == facts
    assert "nearest_train" not in facts["floor"]


def test_train_features_have_a_mean_square_of_one(judge: Judge, digits: dict[str, Images]) -> None:
    features, _ = embed(judge.classifier, digits["train"].tensor(slice(None)))
    assert float(features.square().mean()) == pytest.approx(1, abs=1e-5)


def test_the_floor_is_measured_like_any_set(judge: Judge, digits: dict[str, Images]) -> None:
    from xmodal_kd.runtime.random_streams import Streams

    chosen = Streams(0).numpy("floor").permutation(1000)[:SAMPLES]
    found = judge.measure(digits["train"].tensor(chosen))
    assert found.pop("nearest_train") == 0  # memorised to the bit
    assert found == judge.facts()["floor"]


def test_the_ladder_from_real_to_noise_is_ordered(judge: Judge, digits: dict[str, Images]) -> None:
    real = digits["test"].tensor(slice(0, SAMPLES))
    z = noise(*real.shape)
    ladder = [judge.measure(x.clamp(-1, 1)) for x in (real, real + 0.3 * z, real + 0.8 * z, z)]
    for metric in ("fd_clf", "kid_clf", "sliced_wasserstein", "nearest_train"):
        values = [rung[metric] for rung in ladder]
        assert values == sorted(values) and values[-1] > 2 * values[0], metric
    for metric in ("precision", "coverage"):
        values = [rung[metric] for rung in ladder]
        assert values == sorted(values, reverse=True), metric
    assert abs(ladder[0]["kid_clf"]) < 0.05
    assert ladder[0]["nearest_train"] == pytest.approx(1, abs=0.1)
    assert ladder[0]["fd_clf"] == pytest.approx(judge.facts()["floor"]["fd_clf"], rel=0.3)


def test_a_collapsed_sampler_has_little_recall_and_coverage(judge: Judge, digits: dict[str, Images]) -> None:
    one = digits["test"].tensor(slice(0, 1)).expand(SAMPLES, -1, -1, -1)
    found = judge.measure(one + 0.01 * noise(*one.shape))
    assert found["recall"] < 0.1 and found["coverage"] < 0.2
    half = torch.from_numpy(np.flatnonzero(digits["test"].labels < 5)[: SAMPLES // 2]).repeat(2)  # type: ignore[operator]
    assert judge.measure(digits["test"].tensor(half.numpy()))["coverage"] < 0.7


def test_agreement_is_with_the_labels_asked_for(judge: Judge, digits: dict[str, Images]) -> None:
    test = digits["test"]
    assert test.labels is not None
    labels = torch.from_numpy(test.labels[:SAMPLES])
    real = test.tensor(slice(0, SAMPLES))
    assert judge.measure(real, labels)["label_agreement"] >= 0.97
    assert judge.measure(real, (labels + 1) % 10)["label_agreement"] < 0.03
    assert "label_agreement" not in judge.measure(real)
    with pytest.raises(ValueError, match="300 samples need as many labels"):
        judge.measure(real, labels[:5])


def test_another_count_shape_or_a_diverged_sampler_is_refused(judge: Judge) -> None:
    with pytest.raises(ValueError, match="sets of 300 samples, got 299"):
        judge.measure(torch.zeros(299, 1, 8, 8))
    with pytest.raises(ValueError, match=r"samples are \(1, 9, 8\), the data \(1, 8, 8\)"):
        judge.measure(torch.zeros(300, 1, 9, 8))
    x = torch.zeros(300, 1, 8, 8)
    x[:2, 0, 0, 0] = torch.nan
    with pytest.raises(RunError, match="2 of 300 samples hold NaN"):
        judge.measure(x)


def test_a_reference_of_train_images_or_of_too_few_is_refused(digits: dict[str, Images], judge: Judge) -> None:
    train = digits["train"]
    with pytest.raises(UserError, match="copies of train images"):
        Judge(train, train, samples=20, classifier=judge.classifier)
    with pytest.raises(UserError, match="5 samples are too few, give at least 6"):
        Judge(train, digits["dev"], samples=5, classifier=judge.classifier)
    with pytest.raises(UserError, match=r"reference images are \(1, 4, 8\), train images \(1, 8, 8\)"):
        Judge(train, Images(np.zeros((9, 1, 4, 8), np.uint8)), samples=20, classifier=judge.classifier)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("labelled", [True, False])
def test_two_trainings_agree_to_the_bit_and_leave_the_callers_randomness(
    labelled: bool, digits: dict[str, Images]
) -> None:
    train = digits["train"] if labelled else Images(digits["train"].x)
    first = train_classifier(train)
    torch.manual_seed(5)
    np.random.seed(5)
    state, legacy = torch.get_rng_state(), np.random.get_state()[1]  # type: ignore[index]
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):  # as within an evaluation
        second = train_classifier(train)
    assert weight_hash(first) == weight_hash(second)
    assert torch.equal(state, torch.get_rng_state())
    assert np.array_equal(legacy, np.random.get_state()[1])  # type: ignore[index]
    assert not second.training


@pytest.mark.usefixtures("quick")
def test_a_cached_classifier_is_found_again_and_a_damaged_one_made_anew(
    digits: dict[str, Images], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    fit = module._fit
    monkeypatch.setattr(module, "_fit", lambda *args: (made.append(1), fit(*args)))
    train = digits["train"]
    first = train_classifier(train, cache=tmp_path)
    state = torch.get_rng_state()
    again = train_classifier(train, cache=tmp_path)
    assert weight_hash(again) == weight_hash(first) and len(made) == 1
    assert torch.equal(state, torch.get_rng_state()) and not again.training
    file = next(tmp_path.glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-4] + b"\0\0\1\0")
    assert weight_hash(train_classifier(train, cache=tmp_path)) == weight_hash(first) and len(made) == 2
    assert train.labels is not None
    train_classifier(Images(train.x, (train.labels + 1) % 10, train.class_names), cache=tmp_path)
    assert len(made) == 3 and len(list(tmp_path.iterdir())) == 4


def test_without_labels_the_classes_are_clusters_of_pixels(
    digits: dict[str, Images], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RECIPE", replace(RECIPE, most_steps=250))
    train, dev = Images(digits["train"].x), Images(digits["dev"].x)
    judge = Judge(train, dev, samples=SAMPLES, cache=tmp_path)
    facts = judge.facts()
    assert facts["labels"] == PIXEL_CLUSTERS and facts["classes"] == 16
    assert facts["accuracy"] > 0.8
    again = Judge(train, dev, samples=SAMPLES, cache=tmp_path)
    assert again.facts() == facts
    with pytest.raises(ValueError, match="have no labels"):
        judge.measure(noise(SAMPLES, 1, 8, 8), torch.zeros(SAMPLES, dtype=torch.int64))


@pytest.mark.parametrize(
    "shape", [(1, 8, 8), (3, 16, 16), (3, 32, 32), (3, 64, 64), (1, 40, 101), (2, 100), (3, 2), (17,), (2, 3, 4, 5)]
)
def test_data_of_any_shape_give_64_features(shape: Sequence[int]) -> None:
    model = Classifier(tuple(shape), 7).eval()
    features, predicted = embed(model, noise(5, *shape))
    assert features.shape == (5, 64) and predicted.shape == (5,)
    assert sum(p.numel() for p in model.parameters()) < 1_000_000


@pytest.mark.usefixtures("quick")
def test_labels_outside_the_class_names_are_refused(digits: dict[str, Images]) -> None:
    train = digits["train"]
    with pytest.raises(UserError, match="labels run from 0 to 9, but there are 4 classes"):
        train_classifier(Images(train.x, train.labels, tuple("0123")))


def test_the_recipes_hash_follows_its_values() -> None:
    assert replace(RECIPE).hash == RECIPE.hash != replace(RECIPE, width=16).hash
    assert [RECIPE.steps(n) for n in (10, 1000, 20_000)] == [100, 625, 2000]
