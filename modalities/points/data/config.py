"""The recipe's ``data`` section: where frames come from, and what teacher and student see of them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, GetJsonSchemaHandler, model_validator

from xmodal_kd.adapter.adapter import Strict, is_teacher
from xmodal_kd.adapter.listed import Listed
from xmodal_kd.adapter.source import DataSection
from xmodal_kd.runtime.errors import UserError, nearest
from xmodal_kd.signals.signals import teacher_name

from .augment_config import Augment
from .classes import EIGHT, LARGEST, SHIPPED, Classes, classes_of, read_classes
from .detection_config import Detection
from .simulator.sensors import Sensor, SensorField, sensor

Source = Literal["simulator", "kitti", "kitti_raw", "semantickitti", "nuscenes", "range_images"]
Sees = Literal["range", "image", "points", "pillars"]
#: Channels of a model's input by what it sees, without intensity.
CHANNELS: dict[Sees, int] = {"range": 5, "image": 3, "points": 4, "pillars": 8}
Task = Literal["segmentation", "detection"]
#: Height and width that photographs are brought to, where nobody says.
IMAGE = (96, 320)
#: Where things have boxes, or are made with them.
BOXED: tuple[Source, ...] = ("simulator", "kitti", "nuscenes")
#: Frames of a simulated world, a tenth of a second apart.
DRIVE = 40
#: Of frames, points, columns: more than any recording has, and a bound on what is made of it.
ALL = 10_000_000
Count = Annotated[int, Field(gt=0, le=ALL)]
#: A data set's number of a class.
Id = Annotated[int, Field(ge=0, le=LARGEST)]
Side = Annotated[int, Field(gt=0, le=1 << 14)]


class View(Strict):
    """What one side sees of a frame."""

    sees: Sees = "range"
    """The scan as a range image, the photograph, the scan as a set of points, or, to detect, in pillars."""
    beams: Annotated[int, Field(gt=0, le=1024)] | None = None
    """Of the sensor's, evenly spaced; None: all. An image has none."""
    columns: Side = 256
    """Of the range image, over the full turn."""
    sweeps: Annotated[int, Field(gt=0, le=1000)] = 1
    """Scans that are brought into one frame by their poses, the current one and those before it."""
    points: Count = 4096
    """At most so many points where a set of points is seen, drawn anew at every epoch."""
    cell: Annotated[float, Field(gt=0, le=10)] = 0.4
    """Side of a pillar, metres; boxes are found on cells of two by two."""
    intensity: bool = False
    """Whether a model is given how strongly each point reflects, 0 to 1, as its last channel."""
    classes: tuple[str, ...] | None = None
    """Of a teacher that tells only some classes apart: their names, of the data's; None: all."""
    cameras: tuple[str, ...] = ()
    """Of a detector of photographs: the names of the cameras that it looks through; empty: the first one's."""

    @property
    def channels(self) -> int:
        """Of a model's input."""
        return CHANNELS[self.sees] + self.intensity

    @model_validator(mode="after")
    def _fits(self) -> View:
        if self.sees == "image" and (self.beams is not None or self.sweeps > 1 or self.intensity):
            raise ValueError("an image has no beams, no sweeps and no intensity")
        if self.classes is not None and len(set(self.classes)) < max(2, len(self.classes)):
            raise ValueError("classes: give at least two, each once")
        if self.cameras and self.sees != "image":
            raise ValueError("cameras are of an image: leave them out, or set sees to image")
        if len(set(self.cameras)) < len(self.cameras):
            raise ValueError("cameras: name each once")
        return self


class Answers(View):
    """Of a teacher that ran elsewhere: what it said of every point stands for what it sees."""

    points: Count = ALL
    sees: Sees = "points"
    role: str


class Scenes(Strict):
    """How many simulated moments, each of a world of its own; the splits are separate families of worlds."""

    train: Count = 160
    dev: Count = 48
    test: Count = 96
    cyclists: Annotated[float, Field(ge=0, le=20)] = 0.0
    """On 100 m of a lane, on average, but for those whom a vehicle would touch. Their points are of the class person,
    their boxes are called cyclist."""
    drive: Annotated[int, Field(gt=0, le=DRIVE)] = 1
    """Frames of each training world, a tenth of a second apart, the oldest first; the drives follow one another."""
    first: Annotated[int, Field(ge=0, le=ALL)] = 0
    """Number of the first training world: of a second run on others than the first one's."""

    def frames(self, split: str) -> int:
        """Of a split."""
        return int(getattr(self, split)) * (self.drive if split == "train" else 1)


class Frames(Strict):
    """Frames of a folder: by their place in its order, from `first` up to, and without, `last`; or whole `sequences`.

    A list stands for sequences: ``train: [00, 01]`` is ``train: {sequences: [00, 01]}``.
    """

    @classmethod
    def __get_pydantic_json_schema__(cls, core: Any, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        names = {"type": "array", "items": {"type": ["string", "integer"]}, "minItems": 1}
        return {"anyOf": [handler(core), names]}

    first: Annotated[int, Field(ge=0)] = 0
    last: Count | None = None
    sequences: tuple[str, ...] | None = None
    """Names of sequences, as SemanticKITTI's 00 to 21; a number is written with two digits."""

    @model_validator(mode="before")
    @classmethod
    def _listed(cls, content: Any) -> Any:
        content = {"sequences": content} if isinstance(content, list | tuple) else content
        if isinstance(content, dict) and isinstance(content.get("sequences"), list | tuple):
            names = [f"{x:02d}" if isinstance(x, int) and not isinstance(x, bool) else x for x in content["sequences"]]
            return content | {"sequences": names}
        return content

    @model_validator(mode="after")
    def _some(self) -> Frames:
        if self.sequences is not None:
            if self.first or self.last is not None:
                raise ValueError("sequences are taken whole: leave first and last out")
            if not self.sequences or len(set(self.sequences)) < len(self.sequences):
                raise ValueError("sequences: name at least one, each once")
        if self.last is not None and self.last <= self.first:
            raise ValueError(f"no frames from {self.first} up to {self.last}: last is not among them")
        return self

    def overlaps(self, other: Frames) -> bool:
        """Whether a frame is among both; of sequences and places together nobody knows, so it is taken to be."""
        if self.sequences is not None and other.sequences is not None:
            return bool(set(self.sequences) & set(other.sequences))
        if self.sequences is not None or other.sequences is not None:
            return True
        ends = [frames.last if frames.last is not None else float("inf") for frames in (self, other)]
        return self.first < ends[1] and other.first < ends[0]


class Folder(Strict):
    """Recorded frames."""

    sources: Source
    path: Path
    frames: Frames = Frames()
    repeat: Count = 1
    """How often they stand among the training frames, so that a few are not lost among many."""


class PointsData(DataSection):
    """Frames, and who sees what of them."""

    task: Task = "segmentation"
    """A class for every point, or boxes of things: then `teacher` and `student` see pillars or photographs."""
    detection: Detection = Detection()
    """Of the task detection: where boxes are looked for, and of what."""
    sources: Source = "simulator"
    path: Path | None = None
    """The folder of recorded frames, in the layout of its data set."""
    license: str | None = None
    """Of the frames, which models made from them inherit: stands on their cards, as Hugging Face names it."""
    classes: str | dict[str, tuple[Id, ...]] | None = None
    """What points are labelled with: a shipped map by name (``semantickitti``, ``semantickitti_learnt``, ``nuscenes``),
    a file in the shape of ``semantic-kitti.yaml``, or the ids of each class, ``{car: [10, 252], road: [40]}``, where
    ids that are not listed are not counted. None: the eight of the simulator."""
    sensor: SensorField = "hdl64e"
    """Of the simulator; for recorded frames, whose number of beams and field of view: a preset by name, or its lasers,
    ``{beams: 40, fov: [-25, 15]}``."""
    scenes: Scenes = Scenes()
    """Of the simulator."""
    train: Frames | None = None
    """Of recorded frames, as `dev` and `test`: splits by time or lists of sequences, which must not overlap."""
    dev: Frames | None = None
    test: Frames | None = None
    unlabelled: Folder | None = None
    """Recorded frames without labels, which join the training frames."""
    real: tuple[Folder, ...] = ()
    """Recorded frames on which all roles are measured at the end, against the teacher and against labelled boxes."""
    teacher: View = View()
    teachers: dict[str, View] = Field(default_factory=dict)
    """What further teachers of the recipe see, by their names; one that is not here sees what the teacher sees."""
    student: View = View(beams=16)
    teacher_view: Literal["clean", "augmented"] = "clean"
    """Whether a frozen teacher sees a frame as it is, or with the student's augmentation. Detectors always meet on one
    augmented frame, whose ground both divide."""
    image: tuple[Side, Side] = IMAGE
    """Height and width that photographs are brought to."""
    pixel_labels: Literal["points", "all"] = "points"
    """Pixels with a label: those where a point is seen, as in labelled recordings, or all that the simulator knows."""
    balance: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Exponent of (commonest class / class) in the signal ``class_weight``; 0: all classes weigh the same."""
    supervoxels: Count = 4
    """Of PVKD's, drawn for each scan by difficulty: the signal ``supervoxels``."""
    superpixels: Annotated[int, Field(gt=1, le=100_000)] | None = None
    """Of SLidR's, in a photograph: the signal ``superpixels``, which of them shows a row of the student; None: none."""
    augment: Augment = Augment()
    measure: Literal["rows", "points"] = "rows"
    """What the test split is measured on: the student's rows, or all labelled points of its scans beside them, as
    benchmarks count: points that a role's view does not show have the answer of the nearest that it shows."""

    @cached_property
    def taxonomy(self) -> Classes:
        """The classes that models answer in."""
        return EIGHT if self.classes is None else classes_of(self.classes)

    @cached_property
    def lidar(self) -> Sensor:
        """The sensor."""
        return sensor(self.sensor)

    def listed(self) -> Iterator[Listed]:
        """The file that says what the classes are, where the recipe names one of its own."""
        if isinstance(self.classes, str) and self.classes not in SHIPPED:
            yield Listed("data.classes", Path(self.classes).expanduser(), read_classes)

    def label_ids(self, view: View) -> tuple[int, ...] | None:
        """A data set's id of each class of a view, to write labels with; None of the eight, whose names say it."""
        if self.classes is None:
            return None
        known = dict(zip(self.taxonomy.names, self.taxonomy.written, strict=True))
        return tuple(known[name] for name in view.classes or self.taxonomy.names)

    @model_validator(mode="after")
    def _classes_are_known(self) -> PointsData:
        try:
            names = self.taxonomy.names
        except UserError as error:
            raise ValueError(f"classes: {error}") from None
        for view in self.views:
            if unknown := sorted(set(view.classes or ()) - set(names)):
                raise ValueError(f"no class is called {unknown[0]!r}{nearest(unknown[0], names)}")
        if self.sources == "simulator" and self.classes is not None:
            raise ValueError(
                "classes: the simulator labels its streets with its own eight: leave classes out, or write its streets "
                "with xmodal-kd simulate and read them as semantickitti"
            )
        if self.sources == "range_images" and self.classes is None:
            raise ValueError("sources range_images needs classes: what the ids of its labels mean")
        return self

    @model_validator(mode="after")
    def _student_knows_all(self) -> PointsData:
        if self.student.classes is not None:
            raise ValueError("student.classes: a student tells all classes apart: leave it out")
        return self

    @model_validator(mode="after")
    def _fits_its_task(self) -> PointsData:
        detects = self.task == "detection"
        fits = {"pillars", "image"} if detects else set(CHANNELS) - {"pillars"}
        if odd := next((view.sees for view in self.views if view.sees not in fits), None):
            wanted = "pillars or image: set sees to one" if detects else "no pillars: set data.task to detection"
            raise ValueError(f"task {self.task} and a view that sees {odd}: it needs {wanted} in teacher and student")
        if not detects:
            if any(view.cameras for view in self.views):
                raise ValueError("cameras are of detection, a segmenter sees the first: leave them out")
            return self
        if len({view.cameras for view in self.views if view.sees == "image"}) > 1:
            raise ValueError("cameras of teacher and student differ, and things are those that the cameras show")
        if self.augment.crop is not None:
            raise ValueError("augment.crop is of segmentation: a detector's photographs stay whole: leave it out")
        for view in self.views:
            self.detection.steps(view.cell)
            if view.classes is not None:
                raise ValueError("classes of a view are of segmentation: leave them out")
        if self.sources not in BOXED:
            raise ValueError(f"sources {self.sources} has no boxes: detection needs one of {', '.join(BOXED)}")
        if self.real or self.measure != "rows":
            raise ValueError("real and measure are of segmentation: leave them out")
        return self

    @model_validator(mode="after")
    def _looks_one_way(self) -> PointsData:
        low, high = self.lidar.azimuth
        if self.lidar.turns or all(view.sees != "range" for view in self.views):
            return self
        told = f"of {np.degrees(low):.0f} to {np.degrees(high):.0f} degrees"
        if self.augment.rotate:
            raise ValueError(
                f"augment.rotate turns range images of full turns, and the sensor's are {told}: leave it out"
            )
        if self.augment.flip and abs(low + high) > 1e-9:
            raise ValueError(f"augment.flip needs a range image that is as wide to both sides, this one is {told}")
        return self

    @model_validator(mode="after")
    def _complete(self) -> PointsData:
        if self.sources == "simulator":
            if given := next((n for n in ("path", "train", "dev", "test") if getattr(self, n) is not None), None):
                raise ValueError(f"{given} is of recorded frames: the simulator has scenes")
            if (long := self.scenes.drive + max(view.sweeps for view in self.views) - 1) > DRIVE:
                raise ValueError(f"scenes.drive and sweeps ask for {long} frames of a world, which has {DRIVE}")
            self._apart()
            return self
        if self.path is None:
            raise ValueError(f"sources {self.sources} needs path, the folder of its frames")
        if self.train is None or self.dev is None or self.test is None:
            raise ValueError("recorded frames need train, dev and test, each a range of frames or a list of sequences")
        if len({split.sequences is None for split in (self.train, self.dev, self.test)}) > 1:
            raise ValueError("train, dev and test: give all as ranges of frames or all as lists of sequences")
        if any(a.overlaps(b) for a, b in combinations((self.train, self.dev, self.test), 2)):
            raise ValueError("train, dev and test overlap")
        self._apart()
        return self

    def _apart(self) -> None:
        """Frames without labels that are learnt from are none of those that are measured on."""
        if self.unlabelled is None:
            return
        measured = {f"real.{i}": (folder.path, folder.frames) for i, folder in enumerate(self.real)}
        for split, frames in (("dev", self.dev), ("test", self.test)):
            if self.path is not None and frames is not None:
                measured[split] = self.path, frames
        for name, (path, frames) in measured.items():
            if path == self.unlabelled.path and frames.overlaps(self.unlabelled.frames):
                raise ValueError(f"unlabelled and {name} overlap")

    def answered(self, role: str) -> PointsData:
        """The same, where `role` is a teacher that ran elsewhere: what it sees are its answers by point."""
        view = Answers(role=role)
        if role == "teacher":
            return self.model_copy(update={"teacher": view})
        return self.model_copy(update={"teachers": {**self.teachers, teacher_name(role): view}})

    @property
    def needs_pictures(self) -> bool:
        if self.superpixels is not None:
            return True
        return any(view.sees == "image" for view in self.views) or (self.task == "detection" and self.partly)

    @property
    def partly(self) -> bool:
        """Whether detectors look for what the photographs show alone: where only that has boxes, or one sees them."""
        return self.sources == "kitti" or any(view.sees == "image" for view in self.views)

    @property
    def cameras(self) -> tuple[str, ...]:
        """Names of those that detectors look through; empty: the first one's."""
        return next((view.cameras for view in self.views if view.sees == "image"), ())

    @property
    def views(self) -> tuple[View, ...]:
        """Every side's."""
        return self.teacher, *self.teachers.values(), self.student

    def view(self, role: str) -> View:
        """What a role of the run sees."""
        if not is_teacher(role):
            return self.student
        return self.teachers.get(teacher_name(role), self.teacher)
