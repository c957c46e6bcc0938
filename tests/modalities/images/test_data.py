"""Splits and batches of labelled images; the readers themselves are tested with the diffusion modality."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from image_files import folder, grey, picture
from pydantic import ValidationError

from xmodal_kd.modalities.images.data.source import ImagesData, ImagesSource, load_split
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.runtime.random_streams import Streams


def source(split: str = "train", seed: int = 1, **data: Any) -> ImagesSource:
    config = ImagesData(**{"sources": "digits", **data})
    return ImagesSource(config, split, load_split(config, split), Streams(seed), 64)


def test_digits_are_split_as_the_diffusion_modality_splits_them() -> None:
    assert {split: len(source(split)) for split in ("train", "dev", "test")} == {"train": 1000, "dev": 297, "test": 500}
    batch = source("test").collate([source("test").sample(i, 0) for i in (3, 0)])
    assert batch["x"].shape == (2, 1, 8, 8) and batch["ids"].tolist() == [3, 0]
    assert batch["labels"].tolist() == [source("test").classes[i] for i in (3, 0)]


def test_augmentation_is_a_function_of_seed_epoch_and_sample() -> None:
    def seen(split: str = "train", seed: int = 1, epoch: int = 0) -> torch.Tensor:
        return torch.stack([source(split, seed, shift=2, flip=True).sample(i, epoch).x for i in range(20)])

    plain = torch.stack([source().sample(i, 0).x for i in range(20)])
    assert torch.equal(seen(), seen()) and not torch.equal(seen(), plain)
    assert not torch.equal(seen(), seen(epoch=1)) and not torch.equal(seen(), seen(seed=2))
    assert torch.equal(seen("dev"), source("dev").images.tensor(range(20)))


def test_a_shift_moves_the_image_and_repeats_its_edge(tmp_path: Path) -> None:
    """Every window of nine occurs, and every row and column of each is one of the image's."""
    pictures = {f"{kind}/{i}.png": picture(100 * (kind == "b") + i) for kind in "ab" for i in range(6)}
    found = source(sources="digits", shift=1)
    x = found.images.tensor([0])[0, 0]
    padded = torch.nn.functional.pad(x[None, None], (1, 1, 1, 1), mode="replicate")[0, 0]
    windows = {(i, j): padded[i : i + 8, j : j + 8] for i in range(3) for j in range(3)}
    moved = [found.sample(0, epoch).x[0] for epoch in range(60)]
    places = [next(at for at, window in windows.items() if torch.equal(window, m)) for m in moved]
    assert set(places) == set(windows)
    classes = load_split(ImagesData(sources="folder", path=folder(tmp_path, pictures), dev=2, test=2), "train")
    assert classes.class_names == ("a", "b")


@pytest.mark.parametrize(
    ("names", "says"),
    [
        ("{:02d}.png", "a classifier needs labels: a subfolder for each class"),
        ("a/{:02d}.png", "has one class only: there is nothing to tell apart"),
    ],
)
def test_labels_that_are_none(tmp_path: Path, names: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        load_split(ImagesData(sources="folder", path=folder(tmp_path, grey(9, names)), dev=2, test=2), "train")


def test_a_class_that_training_never_sees(tmp_path: Path) -> None:
    folder(tmp_path / "train", grey(9, "a/{:02d}.png"))
    folder(tmp_path / "test", {"b/x.png": picture(1), "a/y.png": picture(2)})
    with pytest.raises(UserError, match=r"test has classes a, b; training has a"):
        load_split(ImagesData(sources="folder", path=tmp_path, dev=2), "test")


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValidationError, match="moves most of an 8x8 digit out of sight"):
        ImagesData(sources="digits", shift=5)
    with pytest.raises(UserError, match=r"no split 'tset' \(nearest: test"):
        load_split(ImagesData(sources="digits"), "tset")
    config = ImagesData(sources="digits")
    with pytest.raises(UserError, match="2000 is more than the 1000 training samples"):
        ImagesSource(config, "train", load_split(config, "train"), Streams(1), 2000)


# ---------------------------------------------------------------- some classes alone


def test_only_images_of_some_classes_in_their_order() -> None:
    every, some = (
        ImagesData.model_validate({"sources": "digits", "classes": classes}) for classes in (None, ["7", "2"])
    )
    for split in ("train", "dev", "test"):
        all_of, few = load_split(every, split), load_split(some, split)
        assert all_of.labels is not None and few.labels is not None and all_of.class_names is not None
        assert few.class_names == ("7", "2")
        wanted = [i for i, label in enumerate(all_of.labels) if all_of.class_names[label] in few.class_names]
        assert list(few.keys) == [all_of.keys[i] for i in wanted]
        named = [few.class_names[label] for label in few.labels]
        assert named == [all_of.class_names[all_of.labels[i]] for i in wanted]


@pytest.mark.parametrize(("classes", "reason"), [
    (["7", "12"], "data.classes: there is no class '12'"),
    (["7", "7"], "classes: one stands there twice"),
])  # fmt: skip
def test_classes_that_cannot_be(classes: list[str], reason: str) -> None:
    with pytest.raises((UserError, ValidationError), match=reason):
        load_split(ImagesData.model_validate({"sources": "digits", "classes": classes}), "train")


def test_a_sample_of_another_source_keeps_its_label() -> None:
    """As an exemplar of an old task, among samples of a new one."""
    new, old = (
        ImagesSource(config, "train", load_split(config, "train"), Streams(1), 8)
        for config in (
            ImagesData.model_validate({"sources": "digits", "classes": one}) for one in (["8", "9"], ["0", "1", "2"])
        )
    )
    at = int((old.labels == 2).nonzero()[0])
    batch = new.collate([new.sample(0, 0), old.sample(at, 0)])
    assert batch["labels"].tolist() == [int(new.labels[0]), 2]
    assert batch["keys"] == [new.images.keys[0], old.images.keys[at]]
