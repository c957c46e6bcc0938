"""Recipes of folders as people bring them: the teachers of the project, its recordings, images made here."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
from PIL import Image
from pretrained_small import write_encoder
from refusals import Capture
from source_files import ROOT

from xmodal_kd.adapter.adapter import adapter_class
from xmodal_kd.adapter.sketch import SIZES, Given
from xmodal_kd.cli.main import call
from xmodal_kd.draft import Unfit, draft
from xmodal_kd.modalities.images.use import restoration_sketch
from xmodal_kd.recipe.recipe import Loaded, load
from xmodal_kd.runtime.errors import UserError

ASSETS = ROOT / "assets"
#: A training in no time.
TINY = [word for item in ("train.steps=1", "train.eval_every=1", "train.batch_size=8", "teacher.train.steps=1",
                                        "teacher.train.eval_every=1", "teacher.train.batch_size=8")
        for word in ("--set", item)]  # fmt: skip


def made(
    path: Path, name: str, teacher: str | None, data: object, teacher_at: Path | None = None, **more: str
) -> Loaded:
    """A recipe that was written and of whose data section the modality approves."""
    folder = teacher_at if teacher is None else ASSETS / "teachers" / teacher
    draft(name, path / "mine.yaml", folder, Path(str(data)), estimate=False, **more)
    loaded = load(str(path / "mine.yaml"))
    loaded.validate(adapter_class(name).Data, loaded.recipe.data, ("data",))
    return loaded


def test_speech_is_of_the_teachers_words_and_rate(tmp_path: Path) -> None:
    recipe = made(tmp_path, "speech", "speech", ASSETS / "digits", size="small").recipe
    assert recipe.data["sources"] == "fsdd" and recipe.data["tokens"] == "words" and "vocabulary" not in recipe.data
    assert recipe.data["features"]["sample_rate"] == 8000
    speakers = [set(recipe.data[f"{split}_speakers"]) for split in ("train", "dev", "test")]
    assert all(speakers) and len(set.union(*speakers)) == sum(map(len, speakers)) == 6
    assert recipe.teacher is not None and recipe.teacher.path == ASSETS / "teachers/speech"
    assert [term.loss for term in recipe.objective] == ["ctc", "kd"]


def test_speech_of_an_encoder_without_a_head_is_taught_by_its_layers(tmp_path: Path) -> None:
    pytest.importorskip("transformers", exc_type=ImportError)
    folder = write_encoder(tmp_path / "hubert", "HubertModel")
    recipe = made(tmp_path, "speech", None, ASSETS / "digits", teacher_at=folder, size="small").recipe
    assert recipe.data["tokens"] == "words" and "vocabulary" not in recipe.data
    assert [term.loss for term in recipe.objective] == ["ctc", "distilhubert"]
    assert recipe.objective[1].signals("teacher") == tuple(f"encoder.layers.{i}" for i in range(3))
    assert recipe.objective[1].signals("student") == ("blocks.3",)


def test_speech_without_a_teacher_trains_one(tmp_path: Path) -> None:
    recipe = made(tmp_path, "speech", None, ASSETS / "digits", like="conformer").recipe
    assert recipe.teacher is not None and recipe.teacher.model == "conformer" and recipe.student.model == "conformer"
    text = (tmp_path / "mine.yaml").read_text()
    assert "few words, each often" in text and "--like conformer" in text


def test_speech_of_other_words_is_compared_by_name(tmp_path: Path) -> None:
    clips = {"0_anna_0": "zero", "1_anna_0": "one", "2_anna_0": "deux"}
    lines = [
        json.dumps({"audio_filepath": str(ASSETS / f"digits/recordings/{clip}.wav"), "text": text})
        for clip, text in clips.items()
    ]
    for split in ("train", "dev", "test"):
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines if split == "train" else []))
    with pytest.raises(Unfit, match="no utterance for the dev split"):
        made(tmp_path, "speech", "speech", tmp_path)
    (tmp_path / "dev.jsonl").write_text(lines[0].replace("0_anna_0", "0_brian_0"))
    (tmp_path / "test.jsonl").write_text(lines[0].replace("0_anna_0", "0_carla_0").replace("zero", "null"))
    recipe = made(tmp_path, "speech", "speech", tmp_path).recipe
    assert recipe.data["vocabulary"] == "by_name" and recipe.data["unknown"] == "keep"
    assert recipe.objective[1].loss == "uhc"
    assert "cannot write 'deux'" in (tmp_path / "mine.yaml").read_text()


def logits(folder: Path, seconds: dict[str, float], frame: float = 0.02) -> Path:
    """Of a recogniser elsewhere, by the names of the digits' recordings."""
    folder.mkdir()
    words = ["<blank>", "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    (folder / "vocab.json").write_text(json.dumps(words))
    for key, lasts in seconds.items():
        np.savez(folder / f"{key}.npz", logits=np.zeros((int(lasts / frame), len(words)), np.float32))
    return folder


def test_speech_of_logits_that_were_stored(tmp_path: Path) -> None:
    clips = sorted((ASSETS / "digits/recordings").glob("*.wav"))
    seconds = {clip.stem: sf.info(clip).duration for clip in clips}
    recipe = made(tmp_path, "speech", None, ASSETS / "digits", teacher_at=logits(tmp_path / "all", seconds)).recipe
    assert recipe.teacher is not None and recipe.teacher.signals == tmp_path / "all"
    assert recipe.teacher.on_missing == "error" and recipe.data["tokens"] == "words"
    assert "speed" not in recipe.data["augment"] and recipe.objective[1].loss == "kd"
    assert "answers every 20 ms" in (tmp_path / "mine.yaml").read_text()
    (tmp_path / "few").mkdir()
    few = logits(tmp_path / "some", {key: seconds[key] for key in list(seconds)[::2]})
    lacking = made(tmp_path / "few", "speech", None, ASSETS / "digits", teacher_at=few).recipe
    assert lacking.teacher is not None and lacking.teacher.on_missing == "skip"
    parts = [sum(clip.stem.split("_")[1] in lacking.data[f"{split}_speakers"] for clip in clips[1::2])
             for split in ("train", "dev", "test")]  # fmt: skip
    told = f"no logits of {parts[0]} training recordings, which teach by their texts alone, and of {sum(parts[1:])} of"
    assert told in " ".join((tmp_path / "few/mine.yaml").read_text().replace("#", " ").split())
    with pytest.raises(Unfit, match="holds logits of none"):
        draft("speech", tmp_path / "x.yaml", logits(tmp_path / "none", {"other": 1.0}), ASSETS / "digits")
    with pytest.raises(Unfit, match="its logits are of words, by recording"):
        draft("speech", tmp_path / "x.yaml", few, None)


def test_images_are_of_their_classes_and_size(tmp_path: Path) -> None:
    for name, count in (("cat", 12), ("dog", 12)):
        images(tmp_path / "x" / name, count, size=24)
    recipe = made(tmp_path, "images", None, tmp_path / "x", size="small").recipe
    assert (recipe.data["size"], recipe.data["mode"], recipe.data["shift"]) == (24, "L", 3)
    assert recipe.data["dev"] == recipe.data["test"] == 6 and recipe.train.batch_size == 12
    assert recipe.teacher is not None and recipe.teacher.model == recipe.student.model == "resnet"
    assert "2 classes: cat, dog" in (tmp_path / "mine.yaml").read_text()
    images(tmp_path / "one/cat", 24)
    with pytest.raises(Unfit, match="its images are of one class"):
        draft("images", tmp_path / "y.yaml", None, tmp_path / "one")
    with pytest.raises(Unfit, match="a classifier needs labels: a subfolder for each class"):
        draft("images", tmp_path / "y.yaml", None, tmp_path / "x/cat")


def test_a_classifier_of_other_images_is_refused(tmp_path: Path) -> None:
    card = {"format": 1, "modality": "images", "model": "cnn", "params": {"width": 4}, "shape": [1, 8, 8],
            "classes": list("0123456789")}  # fmt: skip
    (tmp_path / "card.json").write_text(json.dumps(card))
    recipe = made(tmp_path, "images", None, "digits", teacher_at=tmp_path, like=str(tmp_path)).recipe
    assert recipe.teacher is not None and recipe.teacher.path == tmp_path
    assert (recipe.student.model, recipe.student.params) == ("cnn", {"width": 4})
    for name in ("cat", "dog"):
        images(tmp_path / "x" / name, 12, size=9)
    with pytest.raises(Unfit, match="sees images of 8x8 grey, the data's are 9x9 grey") as refused:
        draft("images", tmp_path / "y.yaml", tmp_path, tmp_path / "x")
    assert "its class 0 is '0', the data's 'cat'" in refused.value.problems[1]
    with pytest.raises(Unfit, match="images of 8x8 grey, as the teacher sees, in 10 classes"):
        draft("images", tmp_path / "y.yaml", tmp_path, None)


def joints(folder: Path, images_: int, split: str) -> Path:
    """COCO's layout, of one person in each image."""
    names = {"id": 1, "name": "person", "keypoints": ["nose", "left_hand", "right_hand"], "skeleton": [[1, 2]]}
    (folder / "annotations").mkdir(parents=True, exist_ok=True)
    images(folder / split, images_, size=48)
    content = {
        "images": [{"id": i, "file_name": f"{i}.png"} for i in range(images_)], "categories": [names],
        "annotations": [
            {"id": i, "image_id": i, "category_id": 1, "bbox": [8, 4, 24, 40], "keypoints": [9, 9, 2] * 3}
            for i in range(images_)
        ],
    }  # fmt: skip
    (folder / f"annotations/person_keypoints_{split}.json").write_text(json.dumps(content))
    return folder


def test_joints_are_of_cocos_annotations(tmp_path: Path) -> None:
    folder = joints(tmp_path / "x", 40, "train2017")
    recipe = made(tmp_path, "images", None, folder, size="small").recipe
    assert recipe.data["task"] == "keypoints" and recipe.data["sources"] == "coco" and recipe.data["flip"] is True
    assert recipe.data["size"] == [64, 48] and recipe.data["dev"] == recipe.data["test"] == 6
    assert recipe.student.model == "hourglass" and recipe.student.params == {"width": 8, "depth": 2}
    assert [term.loss for term in recipe.objective] == ["heatmap_mse", "logit_mse"]
    (tmp_path / "mine.yaml").unlink()
    recipe = made(tmp_path, "images", None, joints(folder, 10, "val2017"), size="small").recipe
    assert recipe.data["test_path"] == str(folder / "annotations/person_keypoints_val2017.json")
    with pytest.raises(Unfit, match=r"it holds .*_other\.json, .*: name one of them"):
        draft("images", tmp_path / "y.yaml", None, joints(folder, 8, "other"))
    card = {"format": 1, "modality": "images", "task": "keypoints", "model": "hourglass", "params": {}, "stride": 2,
            "shape": [3, 32, 32], "joints": ["nose", "tail"], "edges": []}  # fmt: skip
    (tmp_path / "card.json").write_text(json.dumps(card))
    with pytest.raises(Unfit, match="knows the joints nose, tail, the data nose, left_hand, right_hand"):
        draft("images", tmp_path / "y.yaml", tmp_path, joints(tmp_path / "z", 40, "train2017"))


def test_drawn_figures_have_a_name(tmp_path: Path) -> None:
    recipe = made(tmp_path, "images", None, "skeletons", size="small").recipe
    assert recipe.data["sources"] == "skeletons" and "path" not in recipe.data


def test_photographs_have_a_name_and_images_a_restorer(tmp_path: Path) -> None:
    recipe = made(tmp_path, "images", None, "photos", size="small").recipe
    assert recipe.data["task"] == "restoration" and recipe.student.params == {"width": 8, "blocks": 1}
    card = {"format": 1, "modality": "images", "task": "restoration", "model": "edsr", "params": {}, "scale": 3,
            "noise": 5.0, "shape": [3, 16, 16]}  # fmt: skip
    (tmp_path / "teacher").mkdir()
    (tmp_path / "teacher" / "card.json").write_text(json.dumps(card))
    with pytest.raises(Unfit, match="sees images of 3 channels, the data's have 1: convert them, or leave --teacher"):
        draft("images", tmp_path / "y.yaml", tmp_path / "teacher", images(tmp_path / "x", 40, size=48))
    with pytest.raises(Unfit, match="--data is missing: a folder of images of any size, an EDM zip, or photos"):
        draft("images", tmp_path / "y.yaml", tmp_path / "teacher", None)
    (tmp_path / "teacher" / "card.json").write_text(json.dumps(card | {"shape": [1, 16, 16]}))
    given = restoration_sketch.sketch(Given(tmp_path / "teacher", tmp_path / "x", SIZES["small"]))
    assert {key: one.value for key, one in given.sections["data"]["restoration"].items()} == {"scale": 3, "noise": 5.0}
    assert "size" not in given.sections["data"] and given.sections["train"]["batch_size"] == 16
    small = images(tmp_path / "small", 40, size=28)
    given = restoration_sketch.sketch(Given(tmp_path / "teacher", small, SIZES["small"]))
    assert given.sections["data"]["restoration"]["crop"].value == 27, "a multiple of 3 that fits into an image"


def images(folder: Path, count: int, size: int = 8) -> Path:
    folder.mkdir(parents=True)
    for i in range(count):
        Image.fromarray(np.full((size, size), i % 256, np.uint8)).save(folder / f"{i}.png")
    return folder


def test_diffusion_is_of_the_teachers_images_and_halves(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    told = draft("diffusion", path, ASSETS / "teachers/diffusion", images(tmp_path / "x", 40), "small", device="cpu")
    recipe, data = load(str(path)).recipe, load(str(path)).recipe.data
    assert [line.partition(" ")[0] for line in told] == ["parameters:", "time,", "memory,"]
    head = path.read_text().partition("modality:")[0].replace("\n#  ", "")
    assert all(line in head for line in told)
    assert (
        data["size"] == 8 and data["mode"] == "L" and data["conditional"] is False and data["dev"] == data["test"] == 6
    )
    assert data["sampling"]["steps"] == 16 and recipe.method.params["end"] == 4
    assert recipe.student.params["channels"] == [8, 16] and recipe.train.batch_size == 28


def test_diffusion_of_a_teacher_of_other_classes(tmp_path: Path) -> None:
    """One class more than the data is that of none; of many a recipe says which; by name they are found."""
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    net = UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8, 8), down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2, norm_num_groups=4, layers_per_block=1, num_class_embeds=4,
    )  # fmt: skip
    teacher, data = tmp_path / "teacher", tmp_path / "x"
    DDPMPipeline(net, DDPMScheduler()).save_pretrained(teacher)
    for name in ("cat", "dog"):
        images(data / name, 20)
    with pytest.raises(Unfit, match=r"knows 4 classes by number, the data have 2: .*data.teacher_classes .*\{cat: 0\}"):
        draft("diffusion", tmp_path / "no.yaml", teacher, data)
    images(data / "eel", 20)
    recipe = made(tmp_path, "diffusion", None, data, teacher_at=teacher).recipe
    assert recipe.data["conditional"] is True
    text = " ".join((tmp_path / "mine.yaml").read_text().replace("#", "").split())
    assert "the last of which is taken for that of none" in text
    for name in ("fox", "gnu"):
        images(data / name, 20)
    with pytest.raises(Unfit, match="conditioned on 4 classes, the data have 5 classes: give a subfolder for each"):
        draft("diffusion", tmp_path / "no.yaml", teacher, data)


def test_diffusion_steps_halve_on_any_number_of_timesteps() -> None:
    from xmodal_kd.modalities.diffusion.models.process import Process
    from xmodal_kd.modalities.diffusion.use.sketch import halving

    assert [halving(Process.linear(steps), 64, 1) for steps in (1000, 1024, 100, 50)] == [64, 64, 64, 32]
    with pytest.raises(UserError, match="take a teacher with more"):
        halving(Process.linear(3), 16, 4)


def test_diffusion_like_another_pipeline(tmp_path: Path) -> None:
    teacher = ASSETS / "teachers/diffusion"
    recipe = made(tmp_path, "diffusion", "diffusion", "digits", like=str(teacher)).recipe
    assert (recipe.student.model, recipe.student.params) == ("unet", {"channels": [16, 32]})
    assert recipe.method.params["features"] > 0
    config = json.loads((teacher / "unet/config.json").read_text())
    for key, value, says in (("norm_num_groups", 5, "do not divide"), ("time_embedding_type", "fourier", "fourier")):
        (tmp_path / key / "unet").mkdir(parents=True)
        (tmp_path / key / "unet/config.json").write_text(json.dumps({**config, key: value}))
        with pytest.raises(UserError, match=f"none that a recipe can name .*{says}"):
            draft("diffusion", tmp_path / "x.yaml", teacher, Path("digits"), like=str(tmp_path / key))
    with pytest.raises(UserError, match="nor a saved student's folder"):
        draft("diffusion", tmp_path / "x.yaml", teacher, Path("digits"), like=str(ASSETS))


def test_all_that_is_wrong_is_said_at_once(tmp_path: Path, capfd: Capture) -> None:
    folder, out = images(tmp_path / "x", 40, size=9), tmp_path / "mine.yaml"
    command = ["new", "diffusion", str(out), "--teacher", str(ASSETS / "teachers/diffusion"), "--data", str(folder)]
    assert call(command) == 2 and not out.exists()
    err = capfd.readouterr().err.replace("\n", " ")
    assert "makes samples of 8x8 grey, the data's are 9x9 grey: resize" in err
    nothing = str(tmp_path / "nothing")
    assert call(["new", "points", str(out), "--teacher", nothing, "--data", nothing]) == 2
    assert [line[:6] for line in capfd.readouterr().err.splitlines()] == ["error:", "error:"]


@pytest.mark.parametrize(("modality", "says"), [
    ("speech", "the teacher hears 8,000 Hz and writes words"),
    ("diffusion", "images of 8x8 grey, as the teacher makes,"),
    ("points", "the teacher sees range, of hdl64e"),
])  # fmt: skip
def test_a_teacher_alone_says_what_data_it_needs(modality: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(Unfit, match="--data is missing") as refused:
        draft(modality, tmp_path / "x.yaml", ASSETS / "teachers" / modality, None)
    assert says in str(refused.value) and "docs/own_data.md#" in str(refused.value)


@pytest.mark.parametrize("modality", ["speech", "diffusion", "points", "images"])
def test_folders_of_the_wrong_kind(modality: str, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing to learn from")
    for data in (tmp_path, tmp_path / "notes.txt", tmp_path / "gone"):
        with pytest.raises(Unfit, match=r"docs/own_data\.md#") as refused:
            draft(modality, tmp_path / "x.yaml", tmp_path, data)
        assert len(refused.value.problems) == 2 and not (tmp_path / "x.yaml").exists()


def test_what_cannot_be_chosen(tmp_path: Path, capfd: Capture) -> None:
    out, data = str(tmp_path / "x.yaml"), str(ASSETS / "digits")
    assert call(["new", "speech", out, "--data", data, "--small", "--large"]) == 2
    assert "choose one of --small, --medium and --large" in capfd.readouterr().err
    assert call(["new", "speech", out, "--data", data, "--like", "nosuch"]) == 2
    assert "neither a model of speech" in capfd.readouterr().err
    assert call(["new", "speech", out, "--small"]) == 2 and "give --data FOLDER" in capfd.readouterr().err
    assert call(["new", "speech", "-", "--data", data]) == 2 and "name a file" in capfd.readouterr().err
    Path(out).write_text("mine")
    assert call(["new", "speech", out, "--data", data]) == 2 and "is there already" in capfd.readouterr().err
    assert Path(out).read_text() == "mine"


def test_samples_that_cannot_be_used_are_left_out_by_name(tmp_path: Path, capfd: Capture) -> None:
    """A recipe is written all the same; where most are bad, it is not they that are odd."""
    for name in ("cat", "dog"):
        images(tmp_path / "x" / name, 20)
    (tmp_path / "x/cat/0.png").write_bytes(b"")
    Image.new("RGB", (8, 8)).save(tmp_path / "x/cat/5.png")
    Image.new("L", (9, 8)).save(tmp_path / "x/dog/2.png")
    path = tmp_path / "mine.yaml"
    told = draft("images", path, None, tmp_path / "x", estimate=False)
    assert "3 samples cannot be used" in told[-1] and "cat/0.png: empty" in told[-1] and "9x8 pixels" in told[-1]
    assert (tmp_path / "mine.bad.txt").read_text().split() == ["cat/0.png", "cat/5.png", "dog/2.png"]
    assert load(str(path)).recipe.data["skip"] == str(tmp_path / "mine.bad.txt")
    assert call(["run", str(path), "--out", str(tmp_path / "run"), "--quiet", "--no-export", *TINY]) == 0
    for i in range(20):
        (tmp_path / f"x/cat/{i}.png").write_bytes(b"")
    with pytest.raises(Unfit, match=r"21 of 40 files cannot be used, more than half: mend them; .*0.png: empty"):
        draft("images", tmp_path / "other.yaml", None, tmp_path / "x")
    assert not list(tmp_path.glob("other*"))
