"""Samples that are no images: an .npz of floats of any shape, for mel-spectrograms, point clouds and the like."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from xmodal_kd.adapter.images.later import Later
from xmodal_kd.adapter.images.packed import Index, packed_samples
from xmodal_kd.adapter.images.read import Images, labelled, read_labels, say_left_out
from xmodal_kd.adapter.images.stores import Zip, class_names, one_line
from xmodal_kd.adapter.listed import Skipped
from xmodal_kd.adapter.packed.member import Member
from xmodal_kd.runtime.bounded_arrays import names_in, read_npz
from xmodal_kd.runtime.errors import UserError


def read_arrays(
    path: Path, *, conditional: bool, classes: tuple[str, ...] | None = None, latents: bool = False
) -> Images:
    """``x`` (n, ...) floats in [-1, 1]; optional ``labels`` (n,) integers 0 to k-1 and ``classes`` (k,) text.

    Written with ``numpy.savez``. Pickled objects are refused: they could run code.

    Args:
        classes: what classes are called where the file only numbers them.
        latents: ``x`` may lie anywhere.
    Raises:
        UserError: it names the file and what is wrong in it.
    """
    if path.is_dir() or not zipfile.is_zipfile(path):
        raise UserError(f"{path} is not an .npz file (numpy.savez writes one)")
    held = read_npz(path, ("x", "labels", "classes"))
    names = ", ".join(names_in(path)) or "nothing"
    if "x" not in held:
        raise UserError(f"{path} has no array 'x' (it holds {names})")
    x = _samples(held["x"], path, latents)
    keys = [str(i) for i in range(len(x))]
    if "labels" not in held:
        if conditional:
            raise UserError(f"{path}: conditional needs labels: it has no array 'labels' (it holds {names})")
        return Images(x, None, None, keys)
    try:
        labels, found = _labels(held, len(x), path, classes)
    except UserError as error:
        if conditional:
            raise
        say_left_out(error)
        return Images(x, None, None, keys)
    return Images(x, labels, found, keys)


def _samples(x: npt.NDArray[Any], path: Path, latents: bool) -> npt.NDArray[np.float32]:
    if not np.issubdtype(x.dtype, np.floating):
        raise UserError(f"{path}: 'x' is {x.dtype}; floats in [-1, 1] are expected: scale it first")
    if x.ndim < 2 or x.size == 0:
        raise UserError(f"{path}: 'x' has shape {x.shape}; (samples, ...) is expected, none of them empty")
    if not np.isfinite(x).all():
        bad = int(np.argmin(np.isfinite(x.reshape(len(x), -1)).all(axis=1)))
        raise UserError(f"{path}: sample {bad} of 'x' has values that are not finite")
    if x.ndim == 4 and x.shape[3] in (1, 3, 4) and min(x.shape[1:3]) > 4:
        raise UserError(
            f"{path}: 'x' has shape {x.shape}: channels last? (samples, channels, height, width) is expected: "
            "x.transpose(0, 3, 1, 2)"
        )
    low, high = float(x.min()), float(x.max())
    if (low < -1 or high > 1) and not latents:
        raise UserError(
            f"{path}: 'x' lies in [{low:.4g}, {high:.4g}]; it must lie in [-1, 1]: scale it first, or, if these are "
            "latents, set data.latents: true"
        )
    return np.ascontiguousarray(x, dtype=np.float32)


def read_latents(
    path: Path, *, conditional: bool, classes: tuple[str, ...] | None = None,
    keep: Callable[[Sequence[str]], list[str]] = list,
) -> Images:  # fmt: skip
    """A zip of one .npy for each sample, all of one shape, and dataset.json: what EDM2's tools write of latents.

    Channels are taken as they are: where half of them are standard deviations, keep the means.
    """
    with Zip(path, latents=True) as store:
        labelling = read_labels(store, classes, needed=conditional)
        if labelling is None and conditional:
            raise UserError(store.unlabelled("conditional"))
        store.names = keep(store.names)
        if not store.names:
            raise UserError(f"data.skip: it leaves out every sample of {path}")
        samples = [_latent(store.read(name), store.where(name)) for name in store.names]
        for name, sample in zip(store.names, samples, strict=True):
            if sample.shape != samples[0].shape:
                first = f"{samples[0].shape} is expected (as {store.names[0]})"
                raise UserError(f"{store.where(name)}: has shape {sample.shape}, but {first}")
        return labelled(_samples(np.stack(samples), path, True), labelling, store)


def packed_latents(
    index: Index, path: Path, *, conditional: bool, classes: tuple[str, ...] | None, skipped: Skipped,
    called: Callable[[str], str],
) -> Images:  # fmt: skip
    """As `read_latents`, of shards with a .npy for each sample, which is read when it is asked for."""
    who = "conditional" if conditional else None
    found = packed_samples(index, path, partial(_member, None), who, classes, skipped, called)
    assert isinstance(found.x, Later)
    return replace(found, x=found.x.made_by(index.maker(partial(_member, found.shape))))


def _member(shape: tuple[int, ...] | None, member: Member) -> npt.NDArray[np.float32]:
    sample = _latent(member.read(), str(member))
    if shape is not None and sample.shape != shape:
        raise UserError(f"{member}: has shape {sample.shape}, but {shape} is expected, as of the first")
    found: npt.NDArray[np.float32] = _samples(sample[None], member.file, True)[0]
    return found


def _latent(content: bytes, where: str) -> npt.NDArray[Any]:
    try:
        found = np.load(io.BytesIO(content), allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise UserError(f"{where}: not an array that numpy.save wrote ({one_line(error)})") from error
    if not isinstance(found, np.ndarray) or not np.issubdtype(found.dtype, np.floating):
        raise UserError(f"{where}: floats are expected, got {getattr(found, 'dtype', type(found).__name__)}")
    return found


def _labels(
    held: Mapping[str, npt.NDArray[Any]], count: int, path: Path, classes: tuple[str, ...] | None
) -> tuple[npt.NDArray[np.int64], tuple[str, ...]]:
    labels, names = held["labels"], held.get("classes")
    if labels.shape != (count,) or not np.issubdtype(labels.dtype, np.integer):
        raise UserError(
            f"{path}: 'labels' is {labels.dtype} of shape {labels.shape}; integers of shape ({count},) are expected"
        )
    if names is not None:
        if names.ndim != 1 or names.dtype.kind != "U":
            raise UserError(f"{path}: 'classes' must be one axis of text, got {names.dtype} of shape {names.shape}")
        classes = tuple(map(str, names))
    return labels.astype(np.int64), class_names(labels, classes, str(path))
