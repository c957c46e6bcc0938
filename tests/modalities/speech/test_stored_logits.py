"""A teacher that ran elsewhere: by its logits it teaches what it would teach itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf
import torch
from safetensors.torch import save_file

from xmodal_kd.cli.main import call
from xmodal_kd.modalities.speech.adapter import SpeechAdapter
from xmodal_kd.modalities.speech.data.stored_logits import StoredLogits
from xmodal_kd.recipe.recipe import load
from xmodal_kd.run.roles import make_adapter
from xmodal_kd.runtime.checkpoint import read_json
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.runtime.random_streams import Streams
from xmodal_kd.teacher_cache.codecs import TopK
from xmodal_kd.teacher_cache.entries import Item, StoredSignal
from xmodal_kd.teacher_cache.folder import Shards, arrays_of

#: In another order than ours, the blank among them.
SYMBOLS = ["|", "E", "S", "<pad>", "N", "O", "Y", "</s>"]


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recordings")
    rng = np.random.default_rng(0)
    for split, count in (("train", 4), ("dev", 2), ("test", 2)):
        lines = []
        for i in range(count):
            sf.write(folder / f"{split}{i}.wav", 0.1 * rng.standard_normal(16000 + 3000 * i), 16000)
            lines.append(json.dumps({"audio_filepath": f"{split}{i}.wav", "text": ("yes no", "no yes")[i % 2]}))
        (folder / f"{split}.jsonl").write_text("\n".join(lines))
    return folder


def frames(recordings: Path, key: str, seconds: float) -> int:
    return int(sf.info(recordings / key).duration / seconds)


@pytest.fixture
def logits(recordings: Path, tmp_path: Path) -> Path:
    """Of all splits, 20 ms a frame; npz and safetensors by turns, with and without the audio's suffix."""
    rng, folder = np.random.default_rng(1), tmp_path / "logits"
    folder.mkdir()
    for i, path in enumerate(sorted(recordings.glob("*.wav"))):
        rows = rng.standard_normal((frames(recordings, path.name, 0.02), len(SYMBOLS))).astype(np.float16)
        if i % 2:
            np.savez(folder / f"{path.name}.npz", logits=rows)
        else:
            save_file({"logits": torch.from_numpy(rows)}, folder / f"{path.stem}.safetensors")
    (folder / "vocab.json").write_text(json.dumps({name: i for i, name in enumerate(SYMBOLS)}))
    return folder


def sets(recordings: Path, folder: Path, *more: str) -> list[str]:
    return [
        f"data.path={recordings}", f"teacher={{signals: {folder}}}", "student.params={width: 8, dilations: [1]}",
        "train.batch_size=4", "train.steps=2", "trackers=[]", "data.augment.speed=null", *more,
    ]  # fmt: skip


def adapter_of(recordings: Path, folder: Path, *more: str) -> SpeechAdapter:
    made: Any = make_adapter(load("speech/kathleen", sets(recordings, folder, *more)), Streams(1), 4)
    made.build("student", "conv", {"width": 8, "dilations": [1]})
    return made  # type: ignore[no-any-return]


def batch_of(adapter: SpeechAdapter) -> Any:
    source = adapter.data("train")
    return source.collate([source.sample(i, 0) for i in range(len(source))])


def test_what_was_said_is_said_again(recordings: Path, logits: Path) -> None:
    """Found by key in either format, symbols by name, 20 ms on the student's 40."""
    adapter = adapter_of(recordings, logits)
    model = adapter.load("teacher", logits)
    batch = batch_of(adapter)
    scores, lengths = adapter.recognised("teacher", model, batch)
    stored = np.load(logits / "train1.wav.npz") if (logits / "train1.wav.npz").is_file() else None
    i = next(i for i, key in enumerate(batch["keys"]) if (logits / f"{key}.npz").is_file())
    stored = np.load(logits / f"{batch['keys'][i]}.npz")["logits"].astype(np.float32)
    order = [SYMBOLS.index({"<blank>": "<pad>"}.get(name, name.upper())) for name in adapter.tokens.symbols]
    np.testing.assert_array_equal(scores[i, : int(lengths[i])].numpy(), stored[:, order])
    said = adapter.signals("teacher", model, batch)
    student = adapter.signals("student", adapter.build("student", "conv", {"width": 8, "dilations": [1]}), batch)
    assert said.layout("logits").same_rows(student.layout("logits"))
    assert torch.equal(said.layout("logits").mask, student.layout("logits").mask)


def test_what_is_missing_is_an_error_or_no_row(recordings: Path, logits: Path) -> None:
    next(logits.glob("train2*")).unlink()
    adapter = adapter_of(recordings, logits)
    model = adapter.load("teacher", logits)
    with pytest.raises(UserError, match=r"no logits of 'train2.wav': add its file, or say teacher.on_missing=skip"):
        adapter.signals("teacher", model, batch_of(adapter))
    adapter = adapter_of(recordings, logits, "teacher.on_missing=skip")
    layout = adapter.signals("teacher", adapter.load("teacher", logits), batch_of(adapter)).layout("logits")
    valid = torch.bincount(layout.item[layout.mask], minlength=4)
    assert (valid > 0).tolist() == [True, True, False, True]


@pytest.mark.parametrize(
    "change, said",
    [
        ("vocabulary", "no vocab.json: it says which column"),
        ("blank", "which symbol is the blank"),
        ("names", "holds logits of none of the 4 training utterances, whose keys are as in 'train0.wav'"),
        ("width", r"logits of shape \(.*, 5\): \(frames, 8\) is expected"),
        ("probabilities", "these are probabilities, not logits"),
        ("nan", "hold NaN or Inf"),
        ("array", "no array called logits: it holds scores"),
        ("damaged", "cannot be read"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_it_is_one_line(recordings: Path, logits: Path, change: str, said: str) -> None:
    for path in logits.glob("train*"):
        path.unlink()
        key = path.stem.removesuffix(".wav")
        rows = np.random.default_rng(0).standard_normal((frames(recordings, f"{key}.wav", 0.02), len(SYMBOLS)))
        rows = rows[:, :5] if change == "width" else rows
        rows = np.exp(rows) / np.exp(rows).sum(axis=1, keepdims=True) if change == "probabilities" else rows
        rows[0, 0] = np.nan if change == "nan" else rows[0, 0]
        where = logits / ("other" + path.stem if change == "names" else f"{key}.npz")
        np.savez(where, **{"scores" if change == "array" else "logits": rows})
        if change == "damaged":
            where.write_bytes(where.read_bytes()[:100])
    if change == "vocabulary":
        (logits / "vocab.json").unlink()
    if change == "blank":
        (logits / "vocab.json").write_text(json.dumps(["|", "E", "S", "P", "N", "O", "Y", "Q"]))
    with pytest.raises(UserError, match=said) as found:
        adapter = adapter_of(recordings, logits)
        adapter.signals("teacher", adapter.load("teacher", logits), batch_of(adapter))
    assert "\n" not in str(found.value)


@pytest.mark.parametrize("frame, guessed", [(0.02, 0.02), (0.04, 0.04), (0.03, 0.03), (0.08, 0.08), (0.02322, None)])
def test_the_frame_rate_is_found_by_the_durations_or_asked_for(tmp_path: Path, frame: float, guessed: float) -> None:
    """Of a model that drops up to a window at the end."""
    (tmp_path / "vocab.json").write_text(json.dumps(["<pad>", "A"]))
    seconds = {f"u{i}": 1.7 + 0.37 * i for i in range(30)}
    for key, held in seconds.items():
        np.savez(tmp_path / f"{key}.npz", logits=np.zeros((int((held - 0.025) / frame), 2)))
    stored = StoredLogits(tmp_path, "error")
    if guessed is None:
        with pytest.raises(
            UserError, match=r"say \{\"frame_seconds\": SECONDS\} in signals.json: its frames last about 0.023"
        ):
            stored.frame(seconds)
        (tmp_path / "signals.json").write_text(json.dumps({"frame_seconds": frame}))
        stored = StoredLogits(tmp_path, "error")
    assert float(stored.frame(seconds)) == pytest.approx(guessed or frame)


def test_speed_is_refused(recordings: Path, logits: Path) -> None:
    with pytest.raises(UserError, match=r"data.augment.speed: the logits in .* are of the recordings as they are"):
        adapter_of(recordings, logits, "data.augment.speed=[0.9, 1.1]").load("teacher", logits)


def test_a_run_from_logits(recordings: Path, logits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xmodal_kd.run.runner.LATENCY", 0.01)
    given = [word for one in sets(recordings, logits) for word in ("--set", one)]
    out = tmp_path / "run"
    assert call(["run", "speech/kathleen", "--out", str(out), "--quiet", "--no-export", *given]) == 0
    assert list(read_json(out / "report.json")["roles"]) == ["teacher", "control", "student"]


def test_shards_say_what_files_say(recordings: Path, logits: Path, tmp_path: Path) -> None:
    """As `cache export` writes them: dense, or the highest two with the mass of the rest."""
    plain, keys = StoredLogits(logits, "error"), [path.name for path in sorted(recordings.glob("*.wav"))]
    dense, top = tmp_path / "dense", tmp_path / "top"
    codec = TopK(len(SYMBOLS), 2)
    kept = StoredSignal("logits", 0, "frame", False, codec)
    about = {"classes": SYMBOLS, "signals": {"logits": {"kind": "frame", "vector": False, **codec.describe()}}}
    writers = Shards(dense, {"classes": SYMBOLS}), Shards(top, about)
    for key in keys:
        writers[0].add(key, {"logits": plain[key].half().numpy()})
        writers[1].add(key, arrays_of(kept, Item.of_rows(codec.encode(plain[key]))))
    for writer in writers:
        writer.close()
    for key in keys:
        assert torch.equal(StoredLogits(dense, "error")[key], plain[key])
        few = StoredLogits(top, "error")[key]
        assert torch.equal(few.argmax(dim=1), plain[key].argmax(dim=1))
        torch.testing.assert_close(few.logsumexp(dim=1), plain[key].logsumexp(dim=1), rtol=1e-3, atol=1e-3)
    with pytest.raises(UserError, match=r"no logits of 'gone.wav'"):
        StoredLogits(dense, "error")["gone.wav"]
