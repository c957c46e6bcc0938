"""The data section of a diffusion recipe: what is learnt from, and the process and sampler of the teacher."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from xmodal_kd.adapter.images.section import SPLITS, TEST, ImageSection, Split
from xmodal_kd.adapter.packed.packing import KINDS as PACKED
from xmodal_kd.adapter.source import Strict

SourceName = Literal["digits", "folder", "edm", "arrays", "webdataset", "datasets"]
#: What `sources` are, for people.
LAYOUTS = {
    "digits": "scikit-learn's handwritten digits: 1,797 images of 8x8",
    "folder": "images in a folder; subfolders or dataset.json are the classes",
    "edm": "a zip of images with dataset.json (the EDM convention)",
    "arrays": "an .npz with x (n, ...) in [-1, 1], or latents, and if known labels and classes",
    "webdataset": "WebDataset's shards (.tar): an image (or latent .npy) with .cls, .txt or .json of one name",
    "datasets": "a folder of Hugging Face's datasets, as save_to_disk writes it: an Image column, labels or text",
}
Extent = Literal["all", "students", "ends"]
#: Samples, generated or real, below which density and coverage (five neighbours) are not defined.
FEWEST = 6


class ProcessConfig(Strict):
    """The forward process and what a teacher trained by the recipe predicts; a loaded teacher brings its own."""

    #: Of betas, or EDM's (Karras et al., 2022), or flow matching.
    schedule: Literal["cosine", "linear", "edm", "flow"] = "cosine"
    #: T. A power of two, so that every halving of the sampling steps falls on whole timesteps.
    steps: int = Field(default=1024, ge=2, le=1 << 20)
    #: v unless said; networks of EDM and flow matching predict what these prescribe.
    prediction: Literal["v_prediction", "epsilon", "sample"] | None = None

    @model_validator(mode="after")
    def _check(self) -> ProcessConfig:
        if self.schedule in ("edm", "flow"):
            if self.prediction is not None:
                raise ValueError(f"prediction: {self.schedule} prescribes what is predicted: leave it out")
            if self.steps & (self.steps - 1):
                raise ValueError(f"steps: {self.steps}: a power of two suits {self.schedule}: leave it out")
        return self


class SamplingConfig(Strict):
    """How the teacher is sampled."""

    solver: Literal["ddim", "heun", "dpmpp_2m"] = "ddim"
    steps: int = Field(default=64, ge=1)
    #: Scale of classifier-free guidance, as diffusers counts it: 1 is none. Each evaluation is then two.
    guidance: float = Field(default=1.0, ge=0, le=1000)


class JudgesConfig(Strict):
    """Networks in whose features test samples are measured, too. Nothing is fetched."""

    #: File of the FID's Inception: NVIDIA's ``inception-2015-12-05.pt``, or torch-fidelity's weights (extra ``fid``).
    inception: Path | None = None
    #: Folder of a DINOv2 of `transformers`, with its ``preprocessor_config.json``.
    dinov2: Path | None = None
    #: Folder of a CLIP of `transformers` with its tokenizer: how well images show their captions.
    clip: Path | None = None

    def __bool__(self) -> bool:
        return any(path is not None for path in (self.inception, self.dinov2, self.clip))


class DiffusionData(ImageSection):
    """Which samples there are (`path` may also be an .npz), and how generated ones are judged."""

    sources: SourceName
    #: Class-conditional models: every sample needs a label.
    conditional: bool = False
    #: Of a teacher of more classes than the data, or of others' numbers: the number or the name in it of each of the
    #: data's classes, as ``{goldfish: 1, tench: 0}``. Classes of the same name need not be told.
    teacher_classes: dict[str, int | str] = Field(default_factory=dict)
    #: Models are prompted by text: every image of a folder needs a caption, in its metadata.jsonl (``file_name`` and
    #: ``text``) or in a .txt beside it; of shards in its .txt or .json, of a table in a column (``text``).
    captions: bool = False
    #: Share of the training samples whose prompt is left empty, so that a student which learns of data can be guided.
    unprompted: float = Field(default=0.0, ge=0, lt=1)
    #: Where latents of the images and embeddings of the captions are kept, which a teacher with an autoencoder or a
    #: text encoder needs: by content, for all runs.
    cache: Path = Path("runs/encoded")
    #: Samples are latents of an autoencoder: they may lie beyond [-1, 1], are not clamped, and a zip holds .npy arrays.
    latents: bool = False
    #: Images generated for each evaluation.
    samples: int = Field(default=1000, ge=FEWEST, le=10_000_000)
    #: Repetitions of an evaluation on test, for intervals.
    draws: int = Field(default=3, ge=1, le=10_000)
    #: Beside the classifier that is trained on the data, on test alone: it takes a pass of each over all samples.
    judges: JudgesConfig = JudgesConfig()
    #: What is measured for the curve of quality against evaluations, which takes most of a short run: the teacher by
    #: every solver in every number of steps and all students; the teacher as it is sampled and all students; or it and
    #: the last student, which are measured anyway.
    curve: Extent = "all"
    #: Images sampled at once.
    batch: int = Field(default=500, ge=1, le=1_000_000)
    #: The student's network as ONNX, too, its sampler as a table and its autoencoder's decoder: samples without torch.
    #: It takes a minute or more, and as much disk as the weights.
    onnx: bool = False
    process: ProcessConfig = ProcessConfig()
    sampling: SamplingConfig = SamplingConfig()

    def __hash__(self) -> int:
        return hash(self.model_dump_json())  # mappings have none of their own

    @model_validator(mode="after")
    def _check_arrays(self) -> DiffusionData:
        if self.sources == "arrays":
            for key in ("size", "mode", "flip"):
                if getattr(self, key):
                    raise ValueError(f"{key}: is for images; arrays are taken as they are: leave it out")
        if self.latents and (self.sources in ("digits", "folder", "datasets") or self.size or self.mode or self.flip):
            raise ValueError(
                "latents: are of sources arrays (.npz), edm (a zip of .npy) or webdataset (shards of .npy), without "
                "size, mode, flip"
            )
        return self

    @model_validator(mode="after")
    def _check_captions(self) -> DiffusionData:
        if self.captions and (self.sources not in ("folder", *PACKED) or self.conditional):
            raise ValueError(
                "captions: are of sources folder, webdataset or datasets, in the place of labels: set conditional to "
                "false"
            )
        if self.unprompted and not self.captions:
            raise ValueError("unprompted: is of models that are prompted: set captions to true, or leave it out")
        return self

    @model_validator(mode="after")
    def _check_classes(self) -> DiffusionData:
        if self.teacher_classes and not self.conditional:
            raise ValueError("teacher_classes: are of a conditional model: set conditional to true, or leave it out")
        return self

    @model_validator(mode="after")
    def _check_judges(self) -> DiffusionData:
        if self.judges and (self.latents or self.sources == "arrays"):
            raise ValueError("judges: see images, and these samples are none: leave it out")
        if self.judges.clip is not None and not self.captions:
            raise ValueError("judges.clip: compares images with captions: set captions to true, or leave it out")
        return self

    @model_validator(mode="after")
    def _check_steps(self) -> DiffusionData:
        if self.sampling.steps > self.process.steps:
            raise ValueError(f"sampling.steps: {self.sampling.steps} is more than process.steps ({self.process.steps})")
        return self


__all__ = [
    "FEWEST",
    "LAYOUTS",
    "SPLITS",
    "TEST",
    "DiffusionData",
    "Extent",
    "JudgesConfig",
    "ProcessConfig",
    "SamplingConfig",
    "Split",
]
