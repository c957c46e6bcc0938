from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
import torch
from image_files import NAMES, SPLITS, arrays, edm, folder, grey, picture, read, refused
from pydantic import ValidationError
from sklearn.datasets import load_digits

from xmodal_kd.modalities.diffusion.data.source import DiffusionData, DiffusionSource, load_split
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.runtime.random_streams import Streams
from xmodal_kd.training.loader import steps

# Digits


def test_digits_are_scaled_exactly_and_split_as_said():
    data = DiffusionData(sources="digits")
    parts = {split: load_split(data, split) for split in SPLITS}
    assert [len(part) for part in parts.values()] == [1000, 297, 500]
    numbers = sorted(int(key.removeprefix("digit")) for part in parts.values() for key in part.keys)
    assert numbers == list(range(1797)), "every digit is in exactly one split"
    truth = load_digits()
    for part in parts.values():
        at = [int(key.removeprefix("digit")) for key in part.keys]
        x = part.tensor()
        assert x.dtype == torch.float32 and x.shape == (len(part), 1, 8, 8)
        assert np.array_equal((x.double().numpy()[:, 0] + 1) * 8, truth.images[at])
        assert np.array_equal(part.labels, truth.target[at])
        assert part.class_names == tuple("0123456789") and part.classes == 10


def test_splits_do_not_move():
    """Results of other days are compared on these very samples."""
    assert load_split(DiffusionData(sources="digits"), "test").keys[:4] == [
        "digit0004",
        "digit0006",
        "digit0008",
        "digit0009",
    ]


def test_a_split_is_read_once_whatever_the_rest_of_the_recipe_says():
    one = load_split(DiffusionData(sources="digits"), "dev")
    assert load_split(DiffusionData(sources="digits", flip=True, samples=7, process={"steps": 512}), "dev") is one
    assert len(load_split(DiffusionData(sources="digits", dev=10), "dev")) == 10


def test_digits_as_conditional_data_have_every_class_in_training():
    part = load_split(DiffusionData(sources="digits", conditional=True), "train")
    assert np.bincount(part.labels).min() > 50


def test_tensor_leaves_the_stored_values_alone():
    part = load_split(DiffusionData(sources="digits"), "dev")
    before = part.x.copy()
    part.tensor().zero_()
    part.tensor([0]).zero_()
    assert np.array_equal(part.x, before)


# Splits


def test_splits_must_leave_something(tmp_path):
    folder(tmp_path, grey(8))
    message = refused("folder", tmp_path, dev=4, test=4)
    assert "has 8 samples, of which dev takes 4 and test 4: none are left" in message
    assert "of which dev takes 297 and test 500" in refused("folder", tmp_path, dev=297, test=None)
    assert len(read("folder", tmp_path, dev=4, test=3)) == 1


def test_conditional_training_must_see_every_class(tmp_path):
    path = edm(tmp_path / "a.zip", grey(8), labels=dict.fromkeys(NAMES, 0), classes=["cat", "dog"])
    assert "no training sample is of class 'dog'" in refused("edm", path, conditional=True)
    assert read("edm", path).classes == 2


def test_one_class_is_no_label(tmp_path):
    path = edm(tmp_path / "a.zip", grey(8), labels=dict.fromkeys(NAMES, 0), classes=["all"])
    assert all(read("edm", path, split).labels is None for split in SPLITS)
    assert "one class only: set data.conditional to false" in refused("edm", path, conditional=True)


def test_a_test_path_is_the_test_split(tmp_path):
    train, test = edm(tmp_path / "a.zip", grey(12)), edm(tmp_path / "b.zip", grey(6, "t{}.png"))
    parts = {split: read("edm", train, split, test_path=test, test=None) for split in SPLITS}
    assert [len(part) for part in parts.values()] == [10, 2, 6]
    assert all(key.startswith("t") for key in parts["test"].keys)
    some = read("edm", train, "test", test_path=test, test=4)
    assert len(some) == 4 and set(some.keys) < set(parts["test"].keys)
    assert "7 test samples are asked for" in refused("edm", train, test_path=test, test=7)


def test_a_test_zip_that_only_numbers_its_classes_takes_their_names(tmp_path):
    train = edm(tmp_path / "a.zip", grey(12), classes=["a", "b", "c"])
    test = edm(tmp_path / "b.zip", grey(6), labels=dict.fromkeys(NAMES[:6], 2))
    assert read("edm", train, "test", test_path=test).class_names == ("a", "b", "c")


@pytest.mark.parametrize(
    ("test", "says"),
    [
        (lambda path: edm(path, grey(6, size=(9, 9))), "9x9 pixels, but 8x8 is expected (as the training images)"),
        (lambda path: edm(path, grey(6, mode="RGB")), "its mode is RGB"),
        (lambda path: edm(path, grey(6), labels=None), "has classes no labels; training has 0, 1, 2"),
        (lambda path: edm(path, grey(6), classes=["a", "b", "c"]), "has classes a, b, c; training has 0, 1, 2"),
        (lambda path: path, "data.test_path: "),
    ],
)
def test_a_test_path_must_be_like_the_training_data(tmp_path, test, says):
    train = edm(tmp_path / "a.zip", grey(12))
    message = refused("edm", train, test_path=test(tmp_path / "b.zip"))
    assert says in message and "b.zip" in message


def test_test_arrays_must_have_the_shape_of_training(tmp_path):
    train, test = arrays(tmp_path / "a.npz"), arrays(tmp_path / "b.npz", x=np.zeros((9, 2, 3)))
    assert "shape (2, 3), training samples (3, 2)" in refused("arrays", train, test_path=test)


def test_a_relative_path_means_another_file_elsewhere(tmp_path, monkeypatch):
    for i, name in enumerate(("a", "b")):
        folder(tmp_path / name / "images", {f"{j}.png": picture(i) for j in range(8)})
        monkeypatch.chdir(tmp_path / name)
        assert (read("folder", "images").x == i).all()


# The data section


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"sources": "folder"}, "needs the path"),
        ({"sources": "edm", "test_path": "a"}, "needs the path"),
        ({"sources": "digits", "path": "a"}, "come with scikit-learn"),
        ({"sources": "digits", "size": 28}, "the digits are 8x8"),
        ({"sources": "digits", "mode": "RGB"}, "the digits are 8x8"),
        ({"sources": "arrays", "path": "a", "flip": True}, "flip: is for images"),
        ({"sources": "arrays", "path": "a", "size": 8}, "size: is for images"),
        ({"sources": "folder", "path": "a", "test_path": "a"}, "overlap"),
        ({"sources": "folder", "path": "a", "test_path": "a/test"}, "overlap"),
        ({"sources": "folder", "path": "a/train", "test_path": "a/train/../"}, "overlap"),
        ({"sources": "digits", "sampling": {"steps": 2048}}, "2048 is more than process.steps (1024)"),
        ({"sources": "digits", "dev": 0}, "greater than or equal to 1"),
        ({"sources": "digits", "mode": "RGBA"}, "'L' or 'RGB'"),
        ({"sources": "svhn"}, "'digits', 'folder', 'edm', 'arrays', 'webdataset' or 'datasets'"),
    ],
)
def test_a_data_section_that_cannot_be_is_refused(keys, says):
    with pytest.raises(ValidationError) as caught:
        DiffusionData(**keys)
    assert says in str(caught.value)


def test_a_data_section_survives_being_written_down():
    data = DiffusionData(sources="edm", path="a.zip", test_path="b.zip", sampling={"solver": "heun"})
    assert DiffusionData(**data.model_dump(mode="json")) == data


# The source


def source(split="train", seed=1, batch_size=64, **more):
    data = DiffusionData(sources="digits", **more)
    return DiffusionSource(data, split, load_split(data, split), Streams(seed), batch_size)


def test_training_epochs_are_full_batches_in_an_order_of_their_own():
    made = source()
    plan = made.plan(3)
    assert [len(batch) for batch in plan] == [64] * 15
    assert len({i for batch in plan for i in batch}) == 960, "no sample twice"
    assert plan == source().plan(3)
    assert plan != made.plan(4) and plan != source(seed=2).plan(3)
    assert {i for epoch in range(8) for batch in made.plan(epoch) for i in batch} == set(range(1000))


def test_dev_and_test_are_whole_and_in_order():
    plan = source("dev").plan(0)
    assert [i for batch in plan for i in batch] == list(range(297)) and len(plan[-1]) == 297 % 64


def test_a_batch_larger_than_the_training_split_is_refused():
    with pytest.raises(UserError, match=r"train\.batch_size: 1001 is more than the 1000 training samples"):
        source(batch_size=1001)
    assert source("dev", batch_size=1001).plan(0) == [list(range(297))]


def test_draws_are_a_function_of_seed_split_epoch_and_sample():
    made = source()
    late, first = made.sample(7, 3), made.sample(0, 0)
    again = source().sample(7, 3)
    assert torch.equal(late.noise, again.noise) and late.u == again.u and torch.equal(late.x, again.x)
    others = [first, made.sample(7, 4), made.sample(8, 3), source(seed=2).sample(7, 3), source("dev").sample(7, 3)]
    for other in others:
        assert not torch.equal(late.noise, other.noise) and late.u != other.u


def test_noise_is_standard_normal_and_u_uniform():
    made = source()
    batch = made.collate([made.sample(i, epoch) for epoch in range(4) for i in range(len(made))])
    noise, u = batch["noise"].double(), batch["u"].double()
    assert noise.numel() == 256_000
    assert abs(noise.mean()) < 5 / 256_000**0.5 and abs(noise.var() - 1) < 5 * (2 / 256_000) ** 0.5
    assert abs((noise**4).mean() - 3) < 5 * (96 / 256_000) ** 0.5
    assert u.min() >= 0 and u.max() < 1
    grid = (torch.arange(4000) + 0.5) / 4000
    assert (u.sort().values - grid).abs().max() < 1.95 / 4000**0.5, "Kolmogorov-Smirnov at one in a thousand"
    assert abs(torch.corrcoef(torch.stack([u, noise[:, 0, 0, 0], noise[:, 0, 0, 1]])) - torch.eye(3)).max() < 0.08


def test_mirroring_changes_half_of_the_training_samples_and_no_draw():
    plain, mirrored = source(), source(flip=True)
    turned = 0
    for i in range(400):
        one, other = plain.sample(i, 0), mirrored.sample(i, 0)
        assert torch.equal(one.noise, other.noise) and one.u == other.u
        same = torch.equal(one.x, other.x)
        assert same or torch.equal(one.x.flip(-1), other.x)
        turned += not same
    assert 150 < turned < 250
    dev, still = source("dev"), source("dev", flip=True)
    assert all(torch.equal(dev.sample(i, 0).x, still.sample(i, 0).x) for i in range(50))


def test_a_batch_holds_what_methods_need():
    made = source(conditional=True)
    ids = [5, 2, 9]
    batch = made.collate([made.sample(i, 0) for i in ids])
    assert batch["ids"].tolist() == ids and batch["ids"].dtype == torch.int64
    assert batch["x"].shape == batch["noise"].shape == (3, 1, 8, 8) and batch["u"].shape == (3,)
    assert {batch[name].dtype for name in ("x", "noise", "u")} == {torch.float32}
    assert torch.equal(batch["x"], made.images.tensor(ids)) and batch["keys"] == [made.images.keys[i] for i in ids]
    assert batch["labels"].tolist() == made.images.labels[ids].tolist() and batch["labels"].dtype == torch.int64
    assert "labels" not in source().collate([source().sample(0, 0)])


def test_workers_and_resume_change_nothing():
    """Through the core's own loader, over the end of an epoch."""

    def batches(start, workers):
        return [step[0] for step in islice(steps(source(flip=True), start=start, workers=workers), 20 - start)]

    whole = batches(0, 0)
    for start, workers in ((12, 0), (0, 2)):
        for one, other in zip(whole[start:], batches(start, workers), strict=True):
            assert all(torch.equal(one[name], other[name]) for name in ("ids", "x", "noise", "u"))


def test_arrays_of_another_shape_go_through_the_source(tmp_path):
    data = DiffusionData(sources="arrays", path=arrays(tmp_path / "a.npz"), dev=2, test=3)
    made = DiffusionSource(data, "train", load_split(data, "train"), Streams(1), 5)
    batch = made.collate([made.sample(i, 0) for i in made.plan(0)[0]])
    assert batch["x"].shape == batch["noise"].shape == (5, 3, 2)
    assert made.describe() == {"samples": 5, "left_out": 0, "shape": [3, 2], "classes": None, "skipped": 0}


def test_describe_says_what_a_report_needs():
    assert source().describe() == {"samples": 1000, "left_out": 0, "shape": [1, 8, 8], "classes": 10, "skipped": 0}
