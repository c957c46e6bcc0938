"""Teachers whose pipelines hold an autoencoder, and perhaps a text encoder: read, guided, distilled, saved, refused."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, PixArtTransformer2DModel

sys.path.insert(0, str(Path(__file__).parent))
import tiny_pipelines
from tiny_pipelines import FLOWING, KINDS, LARGE, LATENT, PROMPTED, WORDS, adapter, pictures, refusal

from xmodal_kd.adapter.sketch import SIZES, Given
from xmodal_kd.cli.main import call
from xmodal_kd.modalities.diffusion.adapter import DiffusionAdapter
from xmodal_kd.modalities.diffusion.data.captions import read_captions
from xmodal_kd.modalities.diffusion.data.condition import Text, each
from xmodal_kd.modalities.diffusion.data.config import DiffusionData
from xmodal_kd.modalities.diffusion.export.pipeline import load_denoiser, save_pipeline
from xmodal_kd.modalities.diffusion.export.reload_gate import reload_gates
from xmodal_kd.modalities.diffusion.export.schedulers import scheduler_for
from xmodal_kd.modalities.diffusion.methods.few_step import copy_weights, same_network
from xmodal_kd.modalities.diffusion.models.asked import ask
from xmodal_kd.modalities.diffusion.models.denoiser import Denoiser, Sampling
from xmodal_kd.modalities.diffusion.models.lora import FILE, is_adapted
from xmodal_kd.modalities.diffusion.models.networks import build_like
from xmodal_kd.modalities.diffusion.models.parts import Parts, parts_of
from xmodal_kd.modalities.diffusion.use.sketch import sketch
from xmodal_kd.runtime.random_streams import Streams
from xmodal_kd.signals.signals import Signals

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


# ---------------------------------------------------------------- teachers


@pytest.mark.parametrize(
    ("kind", "guidance"),
    [
        ("stable", 1.0), ("stable", 3.0), ("unconditional", 1.0), ("transformer", 1.0), ("larger", 3.0),
        ("pixels", 3.0), ("sigma", 3.0), ("tokens", 3.5), ("linear", 2.0),
    ],
)  # fmt: skip
def test_a_teacher_samples_as_its_pipeline_does(place: Path, kind: str, guidance: float) -> None:
    """With the pipeline's own scheduler; Sana's rounds times, so with that of a student of as many steps."""
    side, how = LARGE if kind == "linear" else 16, Sampling("ddim", 10 if kind not in FLOWING else 8)
    model = load_denoiser(place / kind, sampling=how, quiet=True, image=(3, side, side))
    model.guidance = guidance
    pipeline = DiffusionPipeline.from_pretrained(place / kind)
    if kind == "linear":
        pipeline.scheduler = scheduler_for(model.process, model.prediction, how)
    pipeline.set_progress_bar_config(disable=True)
    prompts, labels = ["a red square", "blue"], torch.tensor([0, 2])
    given: dict[str, Any] = {
        "unconditional": {"batch_size": 2}, "transformer": {"class_labels": [0, 2], "guidance_scale": 1.0},
    }.get(kind, {"prompt": prompts, "guidance_scale": guidance})  # fmt: skip
    if kind in ("pixels", "sigma", "linear"):
        given["use_resolution_binning"] = False
    if kind in ("tokens", "linear"):
        given |= {"height": side, "width": side}
    said = model.parts.prompts(prompts) if kind in PROMPTED else labels if kind == "transformer" else None
    made = pipeline(num_inference_steps=how.steps, generator=torch.manual_seed(3), output_type="pt", **given).images
    theirs = made.numpy() if isinstance(made, torch.Tensor) else made.transpose(0, 3, 1, 2)
    noise = torch.randn(2, *model.shape, generator=torch.Generator().manual_seed(3))
    ours = model.parts.decode(model.sample(noise, said))
    np.testing.assert_allclose((ours / 2 + 0.5).clamp(0, 1).numpy(), theirs, atol=1e-4)


def test_a_prompt_and_the_null_condition_tell(place: Path) -> None:
    for kind in (*PROMPTED, "transformer"):
        model = load_denoiser(place / kind, quiet=True)
        noise, t = torch.randn(3, *model.shape), torch.full((3,), 500)
        said = model.parts.prompts(WORDS) if kind in PROMPTED else torch.arange(3)
        plain = model(noise, t, said)
        model.guidance = 4.0
        assert float((model(noise, t, said) - plain).abs().max()) > 1e-4
        assert model.classes == (None if kind in PROMPTED else 3) and model.prompted == (kind in PROMPTED)


def test_latents_and_embeddings_are_computed_once_and_kept(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = adapter(place, "stable", flip=True)
    source = made.data("train")
    batch = source.collate([source.sample(i, 0) for i in range(4)])
    parts, images = parts_of(place / "stable"), source.images.tensor(range(4))
    assert batch["x"].shape == batch["noise"].shape == (4, 4, LATENT, LATENT) and isinstance(batch["labels"], Text)
    either = [parts.encode(images), parts.encode(images.flip(-1))]
    for i in range(4):
        assert min(float((batch["x"][i] - side[i]).abs().max()) for side in either) < 1e-4
    said = parts.prompts([f"a {source.images.keys[i].partition('/')[0]} square" for i in range(4)])
    torch.testing.assert_close(batch["labels"].embedding, said.embedding)
    monkeypatch.setattr(Parts, "encode", None)
    monkeypatch.setattr(Parts, "prompts", None)
    again = adapter(place, "stable", flip=True).data("train")
    assert torch.equal(again.sample(2, 0).x, batch["x"][2])
    assert isinstance(made.signals("teacher", made.teacher, batch), Signals)


def test_some_prompts_are_left_empty_and_nothing_else_changes(place: Path) -> None:
    made, whole = (adapter(place, "larger", **told) for told in ({"unprompted": 0.5}, {}))
    nothing, empty = each(made.parts.nothing), []
    assert not any(part.any() for part in nothing[:2])  # as SDXL's pipeline says it
    assert nothing[2].tolist() == [[16, 16]]
    for i in range(16):
        one, usual = made.data("train").sample(i, 0), whole.data("train").sample(i, 0)
        assert torch.equal(one.noise, usual.noise) and torch.equal(one.x, usual.x) and one.u == usual.u
        empty.append(all(torch.equal(a, b[0]) for a, b in zip(one.said, nothing, strict=True)))
        assert empty[-1] or all(torch.equal(a, b) for a, b in zip(one.said, usual.said, strict=True))
    assert 2 < sum(empty) < 14
    assert not any(torch.equal(made.data("dev").sample(i, 0).said[0], nothing[0][0]) for i in range(8))
    with pytest.raises(ValueError, match="unprompted: is of models that are prompted"):
        DiffusionData(sources="digits", unprompted=0.1)


def test_pixart_is_told_the_size_of_large_images() -> None:
    net = PixArtTransformer2DModel(
        num_attention_heads=1, attention_head_dim=12, in_channels=4, out_channels=8, num_layers=1, sample_size=128,
        patch_size=8, caption_channels=16, cross_attention_dim=12,
    ).eval()  # fmt: skip
    z, t = torch.randn(1, 4, 128, 128), torch.tensor([500])
    words, mask, sizes = torch.randn(1, 6, 16), torch.tensor([[1.0, 1, 1, 0, 0, 0]]), torch.tensor([[1024.0, 512.0]])
    told = {"resolution": sizes, "aspect_ratio": sizes[:, :1] / 512}
    with torch.no_grad():
        theirs = net(z, words, t, told, encoder_attention_mask=mask).sample[:, :4]
        ours = [ask(net, z, t, Text(words, mask, size)) for size in (sizes, sizes.flip(1))]
    torch.testing.assert_close(ours[0], theirs)
    assert float((ours[1] - theirs).abs().max()) > 1e-5


def test_evaluation_prompts_are_the_dev_captions_and_samples_are_images(place: Path) -> None:
    made = adapter(place, "stable", guidance=2.0)
    samples = made.sample(made.teacher)
    assert samples.shape == (8, 3, 16, 16) and made.teacher.nfe == 16
    names = made.data("dev").images.class_names
    shown = [key.partition("/")[0] for key in made.data("dev").images.keys]
    assert [names[i] for i in made.labels()] == shown[:8]
    said = made.conditions(slice(2, 4), "cpu")
    told = made.parts.prompts([f"a {word} square" for word in shown[2:4]])
    torch.testing.assert_close(said.embedding, told.embedding)


# ---------------------------------------------------------------- students


@pytest.fixture(scope="module")
def students(place: Path) -> dict[str, tuple[Path, Denoiser]]:
    """Saved, of each kind: of few steps by LCM's sampler and by DDIM, one of them told the scale."""
    found = {}
    for kind, how in (("stable", Sampling("lcm", 2, 50)), ("unconditional", Sampling("lcm", 3, 50)),
                      ("transformer", Sampling("ddim", 4)), ("flowing", Sampling("lcm", 2, 64)),
                      ("larger", Sampling("lcm", 2, 50)), ("pixels", Sampling("lcm", 2, 50)),
                      ("sigma", Sampling("ddim", 3)), ("tokens", Sampling("lcm", 2, 64)),
                      ("linear", Sampling("ddim", 4))):  # fmt: skip
        made = adapter(place, kind)
        params = {"guidance": 16} if kind == "stable" else {}
        student = made.build(
            "student", "like_teacher", {**params, **({} if kind in FLOWING else {"prediction": "epsilon"})}
        )
        student.guidance = 3.5 if kind == "tokens" else 1.0
        student.net.load_state_dict({**student.net.state_dict(), **made.teacher.net.state_dict()})
        if kind == "stable":
            torch.nn.init.normal_(student.net.time_embedding.cond_proj.weight)
            student.guidance = 3.0
        student.sampling = how
        facts = {"role": "student", "prompts": ["a red square", "blue"] if kind in PROMPTED else []}
        found[kind] = save_pipeline(student.eval(), place / "students" / kind, facts), student
    return found


@pytest.mark.full
def test_students_are_pipelines_of_their_teachers_class(
    place: Path, students: dict[str, tuple[Path, Denoiser]]
) -> None:  # fmt: skip
    differences = reload_gates(dict(students.values()))
    assert max(differences.values()) < 1e-4
    for kind, (folder, student) in students.items():
        index = json.loads((folder / "model_index.json").read_text())
        assert index["_class_name"] == json.loads((place / kind / "model_index.json").read_text())["_class_name"]
        back = load_denoiser(folder, quiet=True)
        assert back.sampling == student.sampling and back.guidance == student.guidance and back.shape == student.shape
        assert back.parts.folder == folder
    assert "tokenizer_3=None" in (students["flowing"][0] / "README.md").read_text()
    assert "guidance_scale=3.5, height=16, width=16" in (students["tokens"][0] / "README.md").read_text()
    card = (students["stable"][0] / "README.md").read_text()
    assert "text-to-image" in card and "prompt=['a red square', 'blue'], guidance_scale=3" in card


def test_a_prompted_student_is_sampled_by_prompt(
    students: dict[str, tuple[Path, Denoiser]], place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    folder = str(students["stable"][0])
    asked = ["--prompt", "green", "--guidance", "2", "--out", str(tmp_path / "a"), "--json"]
    assert call(["sample", folder, "-n", "2", *asked]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["prompts"] == ["green"] and told["guidance"] == 2 and told["nfe"] == 2
    assert len(list((tmp_path / "a" / "images").glob("*.png"))) == 2
    for arguments, words in (
        ([str(place / "stable")], "--prompt is missing"),
        ([str(place / "unconditional"), "--prompt", "red"], "not prompted by text"),
        ([str(place / "unconditional"), "--guidance", "3"], "--guidance 3"),
    ):
        assert call(["sample", *arguments, "-n", "1", "--out", str(tmp_path / "b")]) == 2
        assert words in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("kind", "method"),
    [
        *(
            pytest.param(kind, method, marks=pytest.mark.full)
            for kind, method in (
                ("stable", "lcm"), ("unconditional", "progressive"), ("transformer", "consistency"),
                ("flowing", "lcm"), ("larger", "lcm"), ("pixels", "lcm"), ("sigma", "lcm"), ("tokens", "pcm"),
                ("tokens", "dmd2"), ("linear", "lcm"), ("linear", "dmd2"), ("linear", "pcm"),
            )
        ),
        ("tokens", "lcm"),
    ],
)  # fmt: skip
def test_whole_runs(place: Path, tmp_path: Path, kind: str, method: str) -> None:
    params = {"progressive": {"end": 4, "features": 1}, "dmd2": {"steps": 2, "critic": 1}}.get(method, {"steps": 2})
    recipe = {
        "modality": "diffusion", "seed": 1, "threads": 1,
        "data": {"sources": "folder", "path": str(pictures(place, kind)), "captions": kind in PROMPTED,
                 "conditional": kind == "transformer", "dev": 8, "test": 8, "samples": 8, "draws": 1, "curve": "ends",
                 "cache": str(tmp_path / "cache"),
                 "sampling": {"steps": 8, "guidance": 1.0 if kind == "unconditional" else 2.0}},
        "teacher": {"path": str(place / kind)}, "student": {"model": "like_teacher"},
        "method": {"name": method, "params": params}, "objective": [{"loss": "denoising", "on": "prediction"}],
        "train": {"steps": 2, "batch_size": 4, "optimizer": {"name": "adam", "lr": 1e-4}, "eval_every": 2},
    }  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    assert call(["run", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "run"), "--quiet"]) == 0
    report = json.loads((tmp_path / "run/report.json").read_text())
    assert report["export"]["student"]["reload_difference"] < 1e-4
    assert report["roles"]["teacher"]["metrics"]["nfe"] == (8 if kind in ("unconditional", "tokens") else 16)
    told = json.loads((tmp_path / "run/student/sampler.json").read_text())
    assert told["guidance"] == (2.0 if kind == "tokens" else 1.0)


def test_new_writes_a_recipe_for_a_prompted_teacher(place: Path, tmp_path: Path) -> None:
    made = sketch(Given(teacher=place / "stable", data=place / "images", like=None, size=SIZES["medium"]))
    assert not made.problems
    data, method = made.sections["data"], made.sections["method"]
    assert data["captions"].value is True and data["conditional"].value is False
    assert data["sampling"].value["guidance"] == 7.5 and method.value["name"] == "lcm"
    shutil.copytree(place / "images", tmp_path / "bare", ignore=shutil.ignore_patterns("*.jsonl"))
    made = sketch(Given(teacher=place / "stable", data=tmp_path / "bare", like=None, size=SIZES["medium"]))
    assert len(made.problems) == 1 and "has no captions: write metadata.jsonl" in made.problems[0]


@pytest.mark.parametrize("kind", list(KINDS))
def test_adapters_alone_learn_and_are_saved_merged(place: Path, tmp_path: Path, kind: str) -> None:
    pytest.importorskip("peft")
    made = adapter(place, kind)
    student, teacher = (
        made.build("student", "like_teacher", {"lora": 2, "prediction": made.teacher.prediction}).eval(),
        made.teacher,
    )
    assert same_network(teacher, student) and is_adapted(student.net) and not same_network(student, teacher)
    learns = {name for name, value in student.named_parameters() if value.requires_grad}
    assert learns and all(".lora_" in name for name in learns)
    assert student.saved_parameters == teacher.saved_parameters == sum(p.numel() for p in teacher.parameters())
    copy_weights(teacher, student)
    z, t = torch.randn(2, *teacher.shape), torch.full((2,), 300)
    assert student.guidance == teacher.guidance == 1.0
    said = made.parts.prompts(WORDS[:2]) if kind in PROMPTED else torch.arange(2) if kind == "transformer" else None
    torch.testing.assert_close(student(z, t, said), teacher(z, t, said))
    for name, value in student.named_parameters():
        if ".lora_B" in name:
            torch.nn.init.normal_(value, std=0.1)
    moved = student(z, t, said)
    assert float((moved - teacher(z, t, said)).abs().max()) > 1e-3
    student.sampling = Sampling("lcm", 2, 64 if kind in FLOWING else 50)
    folder = save_pipeline(student, tmp_path / "student", {})
    torch.testing.assert_close(load_denoiser(folder, quiet=True)(z, t, said), moved, rtol=1e-3, atol=1e-3)
    assert (folder / FILE).is_file() == (kind in ("stable", "larger"))
    if kind in ("stable", "larger"):  # on the teacher's own pipeline, as diffusers loads them
        loaded, whole = DiffusionPipeline.from_pretrained(place / kind), DiffusionPipeline.from_pretrained(folder)
        loaded.load_lora_weights(folder)
        loaded.scheduler = whole.scheduler
        images = []
        for pipeline in (loaded, whole):
            pipeline.set_progress_bar_config(disable=True)
            call = {"prompt": ["red"], "num_inference_steps": 2, "guidance_scale": 1.0, "output_type": "pt"}
            images.append(pipeline(generator=torch.manual_seed(1), **call).images)
        torch.testing.assert_close(*images, rtol=0, atol=1e-4)


# ---------------------------------------------------------------- refusals


def test_captions_are_read_from_lines_and_from_files(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "a.txt").write_text(" first \n")
    (tmp_path / "b/c.txt").write_text("second")
    assert read_captions(tmp_path, ["a.png", "b/c.jpg"]) == ["first", "second"]
    assert "caption for d.png" in refusal(lambda: read_captions(tmp_path, ["a.png", "d.png"]))
    lines = tmp_path / "metadata.jsonl"
    lines.write_text('{"file_name": "a.png", "caption": "third"}\n')
    assert read_captions(tmp_path, ["a.png"]) == ["third"]
    for text, words in (
        ("{", "metadata.jsonl:1: not a line of JSON"), ('{"text": "x"}', "has no file_name"),
        ('{"file_name": "a.png"}', "a.png has no text"),
        ('{"file_name": "a.png", "text": " "}', "no caption for a.png"),
    ):  # fmt: skip
        lines.write_text(text)
        assert words in refusal(lambda: read_captions(tmp_path, ["a.png"]))


def test_what_does_not_fit_is_refused(place: Path, tmp_path: Path) -> None:
    assert "set data.captions to true" in refusal(lambda: adapter(place, "stable", captions=False))
    assert "set data.captions to false" in refusal(lambda: adapter(place, "unconditional", captions=True))
    assert "data.sampling.guidance" in refusal(lambda: adapter(place, "unconditional", guidance=2.0))
    assert "(3, 16, 16)" in refusal(lambda: adapter(place, "unconditional", sources="digits", path=None))
    made = adapter(place, "stable")
    assert "is no UNet2DConditionModel" in refusal(lambda: made.build("student", "unet", {"channels": [8, 16]}))
    whole = adapter(place, "transformer")
    assert "cannot be told" in refusal(lambda: whole.build("student", "like_teacher", {"guidance": 16}))
    with pytest.raises(ValueError, match="captions: are of sources folder, webdataset or datasets"):
        DiffusionData(sources="digits", captions=True)
    wide = tiny_pipelines.stable(
        tmp_path / "wide", addition_embed_type="text", addition_embed_type_num_heads=2
    )  # fmt: skip
    assert "addition_embed_type is 'text'" in refusal(lambda: load_denoiser(wide, quiet=True))
    index = wide / "model_index.json"
    content = json.loads(index.read_text())
    index.write_text(json.dumps({**content, "image_encoder": ["transformers", "CLIPVisionModel"]}))
    assert "has image_encoder beside" in refusal(lambda: load_denoiser(wide, quiet=True))
    index.write_text(json.dumps({**content, "text_encoder": [None, None]}))
    assert "without text_encoder" in refusal(lambda: load_denoiser(wide, quiet=True))


def test_a_broken_autoencoder_is_one_line(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "unconditional", tmp_path / "broken")
    (tmp_path / "broken/vqvae/diffusion_pytorch_model.safetensors").write_bytes(b"none")
    model = load_denoiser(tmp_path / "broken", quiet=True)
    assert "cannot be read" in refusal(lambda: model.parts.decode(torch.zeros(1, 3, LATENT, LATENT)))


def test_one_class_more_than_the_data_has_is_that_of_none(tmp_path: Path) -> None:
    from diffusers import ConsistencyModelPipeline, DDPMScheduler, UNet2DModel

    net = UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8, 8), norm_num_groups=4, layers_per_block=1,
        down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2, num_class_embeds=11,
        add_attention=False,
    )  # fmt: skip
    ConsistencyModelPipeline(net, DDPMScheduler()).save_pretrained(tmp_path / "teacher")
    data = DiffusionData.model_validate({"sources": "digits", "conditional": True, "sampling": {"guidance": 2.0}})
    made = DiffusionAdapter(data, Streams(1), 8)
    made.method = "consistency"
    teacher = made.load("teacher", tmp_path / "teacher")
    assert teacher.classes == 10 and teacher.null_class.tolist() == [10] and teacher.cost == 2
    student = made.build("student", "like_teacher", {})
    student.sampling = Sampling("lcm", 1, 50)
    assert student.net.config.num_class_embeds == 11 and student.classes == 10 and student.cost == 1
    back = load_denoiser(save_pipeline(student, tmp_path / "student", {}), quiet=True)
    assert back.classes == 10 and back.null_class.tolist() == [10]
    assert build_like(net, 11).config.num_class_embeds == 11
