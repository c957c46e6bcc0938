"""The model card of a saved student: README.md with Hugging Face's front matter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from xmodal_kd.adapter.saved_model import About

from .onnx_card import snippet

#: Facts with a line of their own, in this order.
MADE = ("role", "teacher", "data", "seed", "parameters", "measured_with")
SOLVERS = {
    "ddim": "DDIM, written as DPM-Solver++ of first order, which is the same for any number of steps",
    "euler": "Euler's method, which is DDIM of such a process",
    "dpmpp_2m": "DPM-Solver++ (2M)",
    "lcm": "multistep consistency sampling",
    "tcd": "trajectory consistency sampling",
}


def card(about: Mapping[str, Any]) -> str:
    """The card as Markdown.

    Args:
        about: what ``sampler.json`` holds. Of its ``facts``, ``name``, ``license`` (that of the data, which the model
            inherits) and ``metrics`` (a number, or a table of numbers by role) have a place of their own, those of
            `MADE` are listed.
    """
    facts = about.get("facts", {})
    parts = [_front(about, facts), f"# {facts.get('name', 'Few-step diffusion sampler')}", _what(about)]
    if made := [f"- **{key.replace('_', ' ')}**: {_words(facts[key])}" for key in MADE if key in facts]:
        parts.append("## How it was made\n\n" + "\n".join(made))
    parts.append("## How to run it\n\n" + _snippet(about))
    if metrics := facts.get("metrics"):
        parts.append("## What it reaches\n\n" + _table(metrics))
    return "\n\n".join(parts) + "\n"


def about(about: Mapping[str, Any], as_onnx: Mapping[str, Any] | None = None) -> About:
    """The parts of the card that hang on the sampler alone; the run adds metrics and licences.

    Args:
        as_onnx: what ``onnx.json`` holds, where there is one.
    """
    use = f"{_snippet(about)}\n\nOr `xmodal-kd sample path/to/this/folder --steps {about['steps']} -n 64`."
    if as_onnx is not None:
        use += f"\n\n{snippet(as_onnx)}"
    return About("Few-step diffusion sampler" if about["facts"].get("role") != "teacher" else "Diffusion sampler",
                 _what(about), use, _kind(about))  # fmt: skip


def _kind(about: Mapping[str, Any]) -> dict[str, Any]:
    kind = "class-conditional-image-generation" if about["classes"] else "unconditional-image-generation"
    kind = "text-to-image" if about.get("prompts") else kind
    front: dict[str, Any] = {"library_name": "diffusers", "tags": ["diffusion", "distillation", "few-step", kind]}
    return front if about["classes"] else {**front, "pipeline_tag": kind}


def _front(about: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    front = _kind(about)
    if "license" in facts:
        front["license"] = facts["license"]
    return f"---\n{yaml.safe_dump(front, sort_keys=False)}---"


def _what(about: Mapping[str, Any]) -> str:
    channels, *sides = about["shape"]
    size = " x ".join(map(str, sides))
    classes = f", of {about['classes']} classes" if about["classes"] else ""
    steps, calls = about["steps"], about["nfe"]
    kind = "latents" if about.get("pipeline") else "samples"
    path = about.get("process", {}).get("kind")
    solver = SOLVERS["euler" if path and about["solver"] == "ddim" else about["solver"]]
    text = (
        f"It makes {kind} of {size} with {channels} {_plural('channel', channels)}{classes}, in {steps} "
        f"{_plural('step', steps)} ({calls} network {_plural('evaluation', calls)}), by {solver}. "
        f"The network predicts `{about['prediction']}` on {about['T']} timesteps and is asked at "
        f"{_times(about['timesteps'])}."
    )
    if path:
        kind = {"edm": "EDM", "flow": "flow matching"}[path]
        return f"{text} Its scheduler, of {kind}, is bent to this number of steps: with another its times are others."
    if about["solver"] not in ("lcm", "tcd"):
        return f"{text} Another number of steps works, and is not what it was made for."
    return f"{text} Any number of steps up to {about['original']} works."


def _snippet(about: Mapping[str, Any]) -> str:
    given, without = _given(about), "".join(f", {name}=None" for name in about.get("absent", ()))
    lines = [
        "```python", "from diffusers import DiffusionPipeline", "",
        f'pipeline = DiffusionPipeline.from_pretrained("path/to/this/folder"{without})',
        f"images = pipeline({given}num_inference_steps={about['steps']}).images", "```",
    ]  # fmt: skip
    if about["class_names"]:
        lines += ["", "Classes, from 0 on: " + ", ".join(about["class_names"]) + "."]
    return "\n".join(lines)


def _given(about: Mapping[str, Any]) -> str:
    """What its pipeline is called with, beside the number of steps."""
    classes, scale = about["classes"], f"guidance_scale={about.get('guidance', 1.0):g}, "
    if size := about.get("size"):  # others are made unless it is said
        scale += f"height={size[0]}, width={size[1]}, "
    if prompts := about.get("prompts"):
        eta = "eta=0.3, " if about["solver"] == "tcd" else ""  # which such pipelines hand on, and is 0 unless said
        return f"prompt={list(prompts[:2])!r}, {scale}{eta}"
    if classes:
        labels = f"class_labels={[i % classes for i in range(4)]}, "
        return labels + scale if about.get("pipeline") == "DiTPipeline" else f"batch_size=4, {labels}"
    return "batch_size=4, "


def _table(metrics: Mapping[str, Any]) -> str:
    """One row a role where there are several, else one a metric."""
    rows = {k: v for k, v in metrics.items() if isinstance(v, Mapping)}
    if not rows:
        return "\n".join(["| metric | value |", "|---|---|", *(f"| {k} | {_words(v)} |" for k, v in metrics.items())])
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    lines = [f"| | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    return "\n".join(
        lines + [f"| {role} | {' | '.join(_words(row.get(n, '')) for n in names)} |" for role, row in rows.items()]
    )


def _words(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_words(entry)}" for key, entry in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_words, value))
    return f"{value:.4g}" if isinstance(value, float) else f"{value:,}" if type(value) is int else str(value)


def _times(times: Any) -> str:
    shown = [*map(str, times)] if len(times) <= 8 else [*map(str, times[:4]), "...", str(times[-1])]
    return f"t = {', '.join(shown)}"


def _plural(word: str, count: int) -> str:
    return word if count == 1 else f"{word}s"
