"""The cookbook is played: every command and program of it, in a folder that holds tiny things of the names it uses."""

from __future__ import annotations

import json
import re
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from cells_inside import Inside
from cookbook import PAGE, Play, command, lines, recipes
from PIL import Image
from refusals import Capture
from source_files import ROOT

from xmodal_kd.adapter.adapter import adapter_class
from xmodal_kd.cli.main import app
from xmodal_kd.compare import Pool
from xmodal_kd.run import alerts
from xmodal_kd.runtime import registry

RECIPES = recipes()
DIGITS = ROOT / "assets/digits/recordings"
WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
SHORT = ("train.steps=2", "train.eval_every=2", "train.batch_size=4")
TAUGHT = ("teacher.train.steps=2", "teacher.train.eval_every=2", "teacher.train.batch_size=4")
#: Of a diffusion run, its evaluations too.
SAMPLED = (*SHORT, "data.samples=12", "data.draws=1", "data.sampling.steps=8", "method.params.features=2")
NARROW = ("data.teacher.columns=64", "data.student.columns=64")
SMALLEST = ("teacher.params={width: 4, levels: 2}", "student.params={width: 4, levels: 2}")
SCANNED = (*SHORT, *TAUGHT, *NARROW, *SMALLEST)
FEW_STREETS = "data.scenes={train: 12, dev: 2, test: 2}"
FEW_DIGITS = "data={sources: digits, dev: 40, test: 60}"
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning:diffusers"
)


# ---------------------------------------------------------------- folders of the names that the page uses


def recordings(folder: Path, transcribed: int = 99) -> None:
    """Spoken digits by manifest; of training ones so many have a transcript."""
    (folder / "clips").mkdir(parents=True)
    for split, voice in (("train", "anna"), ("dev", "brian"), ("test", "carla")):
        told = []
        for digit, word in enumerate(WORDS[: 8 if split == "train" else 3]):
            name = f"clips/{digit}_{voice}.wav"
            shutil.copy(DIGITS / f"{digit}_{voice}_0.wav", folder / name)
            line = {"audio_filepath": name, "speaker": voice}
            told.append(line if split == "train" and digit >= transcribed else {**line, "text": word})
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in told))


def pictures(folder: Path, size: int = 8) -> None:
    """Bright and dark ones in a subfolder each."""
    rng = np.random.default_rng(0)
    for at, name in enumerate(("dark", "light")):
        (folder / name).mkdir(parents=True)
        for i in range(24):
            pixels = rng.integers(128 * at, 128 * at + 128, (size, size), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i:03d}.png")


def wav2vec2() -> None:
    from pretrained_small import write

    write(Path("TEACHER"), "group")
    recordings(Path("RECORDINGS"))
    pictures(Path("IMAGES"))


def whisper() -> None:
    from pretrained_small import write_whisper

    write_whisper(Path("TEACHER"), decoder_layers=4, chunk=3)
    recordings(Path("RECORDINGS"))


def recogniser() -> None:
    """`recogniser.py`, which stands for a reader's own: noise at 20 ms a frame."""
    recordings(Path("RECORDINGS"))
    Path("recogniser.py").write_text(
        "import numpy as np\n\n"
        'SYMBOLS = ["<blank>", " ", *"abcdefghijklmnopqrstuvwxyz"]\n\n\n'
        "def logits_of(wave, rate):\n"
        "    return np.random.default_rng(len(wave)).normal(size=(int(len(wave) / rate / 0.02), len(SYMBOLS)))\n"
    )


def saved(name: str, transcribed: int = 99) -> Callable[[], None]:
    """A recogniser that lies in assets, of the digits' words, and recordings of them."""

    def make() -> None:
        shutil.copytree(ROOT / "assets/teachers" / name, "TEACHER")
        recordings(Path("RECORDINGS"), transcribed)

    return make


def scans() -> None:
    """Streets as a sensor of 40 beams sees them, of which no label is kept."""
    from xmodal_kd.modalities.points.data.simulator.cast import simulate
    from xmodal_kd.modalities.points.data.simulator.sensors import SensorSpec

    seen = simulate("train", 0, SensorSpec(beams=40, fov=(-16, 7)).sensor().with_columns(128), sweeps=3)
    Path("SCANS/velodyne").mkdir(parents=True)
    for i, frame in enumerate(seen):
        points = np.concatenate([frame.scan.xyz, frame.scan.intensity[:, None]], axis=1)
        points.astype(np.float32).tofile(f"SCANS/velodyne/{i:06d}.bin")


def pipeline(name: str, scheduler: Callable[[], Any]) -> Callable[[], None]:
    """A pipeline of random weights, and images of its size."""

    def make() -> None:
        from diffusers import DDPMPipeline, UNet2DModel

        torch.manual_seed(0)
        net = UNet2DModel(
            sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8, 16), layers_per_block=1,
            down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            norm_num_groups=8,
        )  # fmt: skip
        DDPMPipeline(net, scheduler()).save_pretrained(name)
        pictures(Path("IMAGES"))

    return make


def epsilon() -> Any:
    from diffusers import DDPMScheduler

    return DDPMScheduler(num_train_timesteps=1000, beta_schedule="linear", prediction_type="epsilon")


def flow() -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000)


def weights() -> None:
    """Of torchvision's resnet18, untrained, as a file and as an encoder's folder."""
    from torchvision.models import resnet18

    torch.manual_seed(0)
    for folder in ("WEIGHTS", "ENCODER"):
        Path(folder).mkdir()
        torch.save(resnet18(weights=None).state_dict(), f"{folder}/resnet18.pth")
    Path("ENCODER/config.json").write_text('{"library": "torchvision", "architecture": "resnet18"}')


def images() -> None:
    pictures(Path("IMAGES"))


def nothing() -> None:
    """The recipe brings what it needs."""


@dataclass(frozen=True)
class Scene:
    """What a recipe of the page is played in.

    Attributes:
        make: fills the reader's folder.
        cuts: keys that make its trainings short; by nothing else does what is played differ from the page.
        guest: a package that it needs and the project does not.
        costs: whether `new` tries a few steps, to say what they cost.
        exports: whether runs make ONNX of their students.
        full: whether it takes longer than a part of every test run may.
    """

    make: Callable[[], None] = nothing
    cuts: Sequence[str] = ()
    guest: str | None = None
    costs: bool = False
    exports: bool = False
    full: bool = False


SCENES = {
    "My teacher is a wav2vec2": Scene(wav2vec2, SHORT, "transformers", costs=True),
    "My teacher is a Whisper": Scene(whisper, SHORT, "transformers"),
    "My logits are already computed": Scene(recogniser, SHORT),
    "Most of my audio has no transcript": Scene(saved("speech", transcribed=5), SHORT),
    "I have 100 labels": Scene(images, (*SHORT, *TAUGHT)),
    "My LiDAR has 40 beams": Scene(scans, (*SCANNED, "data.scenes={train: 4, dev: 2, test: 2}"), full=True),
    "My classes are not yours": Scene(nothing, SCANNED),
    "My diffusion teacher predicts epsilon": Scene(pipeline("PIPELINE", epsilon), SAMPLED, full=True),
    "My diffusion teacher is an EDM or flow model": Scene(pipeline("FLOW", flow), SAMPLED, full=True),
    "I have a network of my own": Scene(images, (*SHORT, *TAUGHT)),
    "I have an encoder of photographs": Scene(weights, (*SHORT, *TAUGHT, FEW_STREETS), full=True),
    "I train in transformers.Trainer": Scene(guest="transformers"),
    "It must run on a device, in int8": Scene(saved("speech"), SHORT, exports=True, full=True),
    "I have several teachers": Scene(nothing, (*SHORT, *TAUGHT, FEW_DIGITS)),
    "Which method should I take": Scene(nothing, (*SHORT, *TAUGHT, FEW_DIGITS), full=True),
    "My run takes days": Scene(nothing, (*SHORT, *TAUGHT, FEW_DIGITS)),
}


# ---------------------------------------------------------------- the page


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A reader's folder; what is allowed and imported there is forgotten afterwards. Nothing starts a process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.setattr(registry, "allowed_imports", set(), raising=True)
    monkeypatch.setattr(alerts, "allowed_hooks", set(), raising=True)
    before = set(sys.modules)
    yield tmp_path
    for name in {"mynet", "recogniser"} & (set(sys.modules) - before):
        del sys.modules[name]


@pytest.fixture
def inside(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the program does in other processes is done in this one: cells of a comparison, the gate of samplers."""
    monkeypatch.setattr("xmodal_kd.compare.command.Pool", lambda settings: Pool(settings, Inside()))

    def gate(folders: Sequence[Path], samples: int) -> None:
        from xmodal_kd.modalities.diffusion.export import reload_gate

        for one in folders:
            reload_gate.main(str(one), samples)

    monkeypatch.setattr("xmodal_kd.modalities.diffusion.export.reload_gate._in_a_fresh_process", gate)


def quick(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without what takes long and is some other recipe's matter: what a recipe costs, ONNX."""
    if not scene.costs:
        monkeypatch.setattr("xmodal_kd.draft.measured", lambda loaded, device: ["not measured here"])
    if not scene.exports:
        for name in ("speech", "points", "images"):
            monkeypatch.setattr(adapter_class(name), "export", lambda self, model, folder: {})


@pytest.mark.parametrize(
    "head", [pytest.param(head, marks=pytest.mark.full if SCENES[head].full else ()) for head in RECIPES]
)
def test_a_recipe_is_what_it_says(
    head: str, folder: Path, inside: None, monkeypatch: pytest.MonkeyPatch, capfd: Capture
) -> None:
    scene = SCENES[head]
    quick(scene, monkeypatch)
    if scene.guest is not None:
        pytest.importorskip(scene.guest, reason=f"of use to those who have {scene.guest}, which nothing here needs")
    play = Play(capfd, scene.cuts)
    with warnings.catch_warnings():
        if scene.guest is not None:
            warnings.simplefilter("ignore")  # theirs of each other
        scene.make()
        for block in RECIPES[head]:
            play(block)
    for words in play.others:
        assert words[0] == "torchrun" and understood(words[words.index("xmodal_kd") + 1 :])


def understood(arguments: Sequence[str]) -> bool:
    """Whether a command is one of the program, with options that it has."""
    found = typer.main.get_command(app).commands[arguments[0]]  # type: ignore[attr-defined]
    return bool(found.make_context(arguments[0], list(arguments[1:])).params)


def test_every_situation_has_a_way_to_it_and_is_played() -> None:
    heads = re.findall(r"^## (.+)$", PAGE.read_text(), flags=re.MULTILINE)
    assert heads == list(RECIPES) == list(SCENES) and len(heads) >= 12
    for head in heads:
        anchor = re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-")
        assert f"](#{anchor}) |" in PAGE.read_text(), head
    for target in re.findall(r"\]\((?!http|#)([^)#]+)", PAGE.read_text()):
        assert (PAGE.parent / target).is_file(), target
    assert all("**Look at**" in text and "**Where it fails.**" in text for text in PAGE.read_text().split("\n## ")[1:])


def test_commands_named_in_passing_are_there() -> None:
    """Those within sentences, which are not played."""
    prose = re.sub(r"^```.*?^```", "", PAGE.read_text(), flags=re.DOTALL | re.MULTILINE)
    named = [span.split()[1:] for span in re.findall(r"`(xmodal-kd [^`]+)`", prose)]
    known = set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
    assert named and not [words for words in named if words[0] not in known]
    assert all(command(line.words, ()) for head in RECIPES for b in RECIPES[head] if b.kind == "sh" for line in lines(b)
               if line.words[0] == "xmodal-kd")  # fmt: skip
