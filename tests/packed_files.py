"""Shards of tars and saved tables, written for tests as WebDataset and datasets write them."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile as sf
from PIL import Image


def wav(seconds: float, seed: int = 0, rate: int = 16000, kind: str = "WAV") -> bytes:
    """Noise."""
    out = io.BytesIO()
    sf.write(out, np.random.default_rng(seed).normal(0, 0.1, round(seconds * rate)), rate, format=kind)
    return out.getvalue()


def png(value: int, size: tuple[int, int] = (8, 8), mode: str = "L") -> bytes:
    out, channels = io.BytesIO(), {"L": (), "RGB": (3,)}[mode]
    pixels = np.random.default_rng(value).integers(0, 256, (*size, *channels)).astype(np.uint8)
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def tar(path: Path, samples: Sequence[tuple[str, Mapping[str, bytes]]]) -> Path:
    """A shard of samples: their keys, and their members by ending."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as out:
        for key, members in samples:
            for ending, content in members.items():
                info = tarfile.TarInfo(f"{key}{ending}")
                info.size = len(content)
                out.addfile(info, io.BytesIO(content))
    return path


def table(folder: Path, rows: Sequence[Mapping[str, Any]], features: Mapping[str, Any], files: int = 2) -> Path:
    """A data set as datasets saves it; of Audio and Image columns a row has the bytes."""
    import pyarrow as pa

    kinds = {"string": pa.string(), "int64": pa.int64(), "float64": pa.float64(), "float32": pa.float32()}
    held = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    schema = pa.schema(
        {
            name: held if one["_type"] in ("Audio", "Image") else kinds[one.get("dtype", "int64")]
            for name, one in features.items()
        }
    )
    folder.mkdir(parents=True)
    names = []
    for part in range(files):
        mine = rows[part * len(rows) // files : (part + 1) * len(rows) // files]
        names.append(f"data-{part:05d}-of-{files:05d}.arrow")
        with pa.OSFile(str(folder / names[-1]), "wb") as out, pa.ipc.new_stream(out, schema) as stream:
            for start in range(0, len(mine), 3):
                made = [{k: _held(v) for k, v in row.items()} for row in mine[start : start + 3]]
                stream.write_batch(pa.RecordBatch.from_pylist(made, schema))
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    (folder / "dataset_info.json").write_text(json.dumps({"features": features}))
    return folder


def _held(value: Any) -> Any:
    return {"bytes": value, "path": None} if isinstance(value, bytes) else value


def tables(folder: Path, splits: Mapping[str, Sequence[Mapping[str, Any]]], features: Mapping[str, Any]) -> Path:
    """A DatasetDict."""
    for name, rows in splits.items():
        table(folder / name, rows, features)
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": list(splits)}))
    return folder
