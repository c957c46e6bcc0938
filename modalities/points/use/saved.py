"""What a segmenter and a detector of a saved folder share: how they are loaded, how a scan is made ready for them."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Self

from xmodal_kd.adapter.hub import fetched

from ..data.config import View
from ..data.frame import Scan
from ..data.rings import banded, find_rings
from ..data.simulator.sensors import Sensor
from ..export.saved_folder import load_model


class Saved:
    """Works with what a run left in a folder, and with nothing else.

    Args:
        device: that the model runs on.

    Raises:
        UserError: the folder is not a saved segmenter, or detector.
    """

    detects: ClassVar[bool] = False

    def __init__(self, folder: Path | str, device: str = "cpu") -> None:
        self.model, self.card = load_model(Path(folder), detects=self.detects)
        self.model.to(device)
        self.device, self.classes, self.view, self.sensor = device, self.card.classes, self.card.view, self.card.lidar

    @classmethod
    def from_pretrained(cls, name: Path | str, revision: str | None = None, *, device: str = "cpu") -> Self:
        """Of a folder, or of a repository of the Hugging Face Hub (``owner/name``), which is fetched once and kept.

        Args:
            revision: a branch, a tag or a commit of the repository.
        """
        return cls(fetched(name, revision), device)


def prepared(scan: Scan, view: View, sensor: Sensor, beams: int | None) -> tuple[Scan, tuple[str, ...]]:
    """The scan with the rings that a view needs, and what was done to it."""
    wanted, notes = view.beams or (len(sensor.elevations) if view.sees == "range" else None), list[str]()
    if view.sweeps > 1:
        return scan, (f"the model was trained on {view.sweeps} fused sweeps and is given one",)
    if wanted is None:
        return scan, ()
    if not sensor.turns:
        scan = banded(scan, sensor.beams, sensor)
    elif scan.ring is None:
        scan = find_rings(scan, beams or len(sensor.elevations))
        notes.append(f"the file does not name rings: {scan.beams} were looked for")
    assert scan.beams is not None
    if view.beams and scan.beams > wanted and scan.beams % wanted == 0:
        notes.append(f"{wanted} of {scan.beams} beams are shown to the model, other points take the nearest's class")
    elif scan.beams != wanted:
        notes.append(f"the scan has {scan.beams} beams, the model knows {wanted}: bands of elevation stand for them")
        scan = banded(scan, wanted, sensor)
    return scan, tuple(notes)


__all__ = ["Saved", "prepared"]
