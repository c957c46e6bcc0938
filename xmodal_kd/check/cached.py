"""Whether the teacher can be read from disk as the recipe wants it."""

from __future__ import annotations

from collections.abc import Iterator

from ..teacher_cache.session import check
from .subject import Finding, Subject


def cache(subject: Subject) -> Iterator[Finding]:
    """A cache that the method, or augmentation under the clean view, makes impossible is the error of `check`."""
    recipe = subject.recipe
    if recipe.cache is None or recipe.teacher is None:
        return
    check(recipe, subject.adapter)
    samples = len(subject.adapter.data("train")) * recipe.cache.epochs
    said = "alike in every epoch" if recipe.cache.view == "clean" else f"as in the first {recipe.cache.epochs} epochs"
    yield Finding("cache", "pass", f"the teacher sees each sample {said}: at most {samples:,} to compute and store")
