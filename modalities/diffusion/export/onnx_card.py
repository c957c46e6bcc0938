"""What a card says of a student's ONNX files: the program that samples by ONNX Runtime and numpy alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .onnx_sampler import DECODER, FP32, PROMPTS, TABLE

#: Samples that the program makes.
COUNT = 4


def snippet(about: Mapping[str, Any]) -> str:
    """A paragraph and the program, to be run in the folder.

    Args:
        about: what ``onnx.json`` holds.
    """
    told, decoder, guided = about["inputs"][2:], about["decoder"], about["evaluations"] > 1
    words = [name for name in told if name not in ("class_labels", "guidance")]
    lines = ["import json", "", "import numpy as np", "import onnxruntime", "", f'about = json.load(open("{TABLE}"))']
    lines += [f'net = onnxruntime.InferenceSession("{FP32}")']
    if decoder:
        lines.append(f'decoder = onnxruntime.InferenceSession("{decoder}")')
    lines += [
        f"count, rng = {about['batch'] or COUNT}, np.random.default_rng(0)",
        'shape = (count, *about["shape"])',
        "told = {}",
    ]
    if words:
        lines += [
            f'prompts = np.load("{PROMPTS}")  # what the text encoders say of each prompt of this card',
            f"for name in {words!r}:",
            "    told[name] = prompts[name][np.arange(count) % len(prompts[name])]",
        ]
    if "class_labels" in told:
        lines.append('told["class_labels"] = np.arange(count) % about["classes"]')
    if "guidance" in told:
        lines.append('told["guidance"] = np.full(count, about["guidance"], np.float32)')
    if guided and words:
        lines.append('nothing = {name: prompts[f"null_{name}"].repeat(count, 0) for name in told}')
    elif guided:
        lines.append('nothing = {"class_labels": np.full(count, about["null_class"])}')
    given = '{"sample": z.astype(np.float32), "timestep": np.full(count, t, np.float32), **told}'
    lines += ["", "", "def ask(z, t, told):", f"    given = {given}", "    return net.run(None, given)[0]", "", ""]
    lines += ["terms = [rng.standard_normal(shape)]", 'for step in about["steps"]:']
    lines.append('    z = sum(weight * term for weight, term in zip(step["sample"], terms))')
    lines.append('    said = ask(z, step["timestep"], told)')
    if guided:
        lines += ['    free = ask(z, step["timestep"], nothing)', '    said = free + about["guidance"] * (said - free)']
    lines += ["    terms.append(said)", '    if step["noise"]:', "        terms.append(rng.standard_normal(shape))"]
    lines.append('x = sum(weight * term for weight, term in zip(about["result"], terms))')
    if decoder:
        lines.append('x = decoder.run(None, {"latents": x.astype(np.float32)})[0]')
    lines.append("images = ((x + 1) * 127.5).round().clip(0, 255).astype(np.uint8)  # (count, channels, height, width)")
    return f"{_told(about)}\n\n```python\n" + "\n".join(lines) + "\n```"


def _told(about: Mapping[str, Any]) -> str:
    """What the files are."""
    text = (
        f"`{FP32}` is the network for ONNX Runtime: {', '.join(f'`{name}`' for name in about['inputs'])} to "
        f"`prediction`, float32 but whole class numbers. `{TABLE}` is its sampler: at each step the network is given a "
        "weighted sum of the noise and of what it has said before, and the result is such a sum."
    )
    if about["decoder"]:
        text += f" `{DECODER}` makes images of latents."
    if about["batch"]:
        text += " The network takes one sample at a time."
    if about["multiple"] is not None:
        what = "Latents" if about["decoder"] else "Samples"
        even = "" if about["multiple"] == 1 else f" whose sides {about['multiple']} divides"
        text += f" {what} may be of any size{even}: change `shape`."
    if any(name.startswith("encoder_") for name in about["inputs"]):
        text += " Other prompts want the text encoders of the pipeline, which are not among these files."
    return text


__all__ = ["snippet"]
