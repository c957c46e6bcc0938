"""Commands spoken by a program: what a text encoder teaches a student that hears them (Kim et al., 2021).

    python benchmarks/textual.py --out runs/textual        (espeak-ng must be on the path)

No corpus of spoken commands comes with this project, so one is made in the layout of Fluent Speech Commands: 23 intents
with seven phrasings each, by voices of espeak-ng under noise. Voices of train, dev and test differ; two phrasings of
each intent are spoken in test alone. A small BERT learns masked words on texts without intents, a copy of it intents of
training texts. Then `speech/textual_kd` is compared with its second stage alone and with the control. What is
finished is not made again. Writes the files of `ARMS` in ``benchmarks/results`` and prints a table.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import soundfile as sf
import torch
from cells import shown
from torch import Tensor, nn
from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification, BertTokenizer

from xmodal_kd.modalities.speech.data import audio
from xmodal_kd.modalities.speech.data.layouts import SLOTS, TABLES
from xmodal_kd.report.statistics import Interval

RATE = 16000
RESULTS = Path(__file__).parent / "results"
#: Of an action on an object: four phrasings that are trained on, one more of dev, two more of test; and where.
HOUSE = ("none", "kitchen", "bedroom", "washroom")
UPSTAIRS = ("none", "kitchen", "bedroom")
SAID: Mapping[tuple[str, str], tuple[Sequence[str], tuple[str, ...]]] = {
    ("activate", "lights"): (HOUSE, (
        "turn on the lights", "switch the lights on", "lights on", "i need some light",
        "turn the lights on", "switch on the lights", "i need the lights on")),
    ("deactivate", "lights"): (HOUSE, (
        "turn off the lights", "switch the lights off", "lights off", "i need no light",
        "turn the lights off", "switch off the lights", "i want the lights off")),
    ("increase", "heat"): (UPSTAIRS, (
        "turn up the heat", "make it warmer", "increase the temperature", "i want more heat",
        "turn the heat up", "turn the temperature up", "it is too cold")),
    ("decrease", "heat"): (UPSTAIRS, (
        "turn down the heat", "make it cooler", "decrease the temperature", "i want less heat",
        "turn the heat down", "turn the temperature down", "it is too hot")),
    ("increase", "volume"): (("none",), (
        "turn up the volume", "make it louder", "increase the sound", "i want it louder",
        "turn the volume up", "turn the sound up", "i can not hear this")),
    ("decrease", "volume"): (("none",), (
        "turn down the volume", "make it quieter", "decrease the sound", "i want it quieter",
        "turn the volume down", "turn the sound down", "this is too loud")),
    ("activate", "music"): (("none",), (
        "play some music", "turn on the music", "music on", "start the music",
        "turn the music on", "switch on the music", "play a song")),
    ("deactivate", "music"): (("none",), (
        "stop the music", "turn off the music", "music off", "i want no music",
        "turn the music off", "switch off the music", "stop the song")),
    ("bring", "newspaper"): (("none",), (
        "bring me the newspaper", "get the newspaper", "i want the newspaper", "fetch me the paper",
        "get me the newspaper", "bring the paper", "i need the newspaper")),
    ("bring", "shoes"): (("none",), (
        "bring me my shoes", "get my shoes", "i want my shoes", "fetch me my boots",
        "get me my shoes", "bring my boots", "i need my shoes")),
    ("bring", "juice"): (("none",), (
        "bring me some juice", "get the juice", "i want some juice", "fetch me a drink",
        "get me some juice", "bring me a drink", "i need some juice")),
    ("change language", "english"): (("none",), (
        "change the language to english", "switch to english", "speak english", "set the language to english",
        "change to english", "switch the language to english", "i want to speak english")),
    ("change language", "german"): (("none",), (
        "change the language to german", "switch to german", "speak german", "set the language to german",
        "change to german", "switch the language to german", "i want to speak german")),
}  # fmt: skip
#: What is put around phrasings in the texts that have no intents, and where else things are.
AROUND = ("{}", "please {}", "{} please", "could you {}", "{} now", "well {}", "{} thank you", "{} right now")
ELSEWHERE = (*HOUSE, "hall", "garage")


class Split(NamedTuple):
    """Phrasings by their place in `SAID`, voices (name, pitch, words a minute), how many of them speak each text."""

    phrasings: tuple[int, ...]
    voices: tuple[tuple[str, int, int], ...]
    takes: int


SPLITS: Mapping[str, Split] = {
    "train": Split((0, 1, 2, 3), (
        ("en-us+m1", 35, 150), ("en-us+f1", 60, 165), ("en-gb+m3", 45, 140), ("en-gb+f2", 55, 170),
        ("en-us+m5", 25, 175), ("en-gb-scotland+m4", 40, 150), ("en-gb-x-rp+f4", 70, 155), ("en-us+klatt2", 50, 160),
    ), 4),
    "dev": Split((0, 2, 4), (("en-us+f3", 65, 150), ("en-gb+m7", 30, 165), ("en-029+m2", 50, 160)), 1),
    "test": Split((1, 3, 5, 6), (
        ("en-us+Annie", 55, 160), ("en-gb+m6", 38, 150), ("en-029+f5", 60, 170), ("en-gb-x-gbclan+m8", 28, 145),
        ("en-us+steph", 50, 155), ("en-gb-x-gbcwmd+Michael", 42, 165),
    ), 3),
}  # fmt: skip
#: Around a voice's pitch and tempo, and dB by which speech is above noise.
PITCH, TEMPO, SNR_DB = (-8, 8), (0.9, 1.15), (5.0, 20.0)


#: Of the text encoder, and steps of 32 texts.
SIZES: Mapping[str, float] = {
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128,
    "max_position_embeddings": 24, "initializer_range": 0.08, "hidden_dropout_prob": 0,
    "attention_probs_dropout_prob": 0,
}  # fmt: skip
MASKED_STEPS, TUNED_STEPS = 2000, 300

#: What all arms share, beside the folders of data and teachers; then the arms, by the file of their results: the
#: recipe, and its second stage alone.
SHARED = (
    "student.params={width: 32, lookahead: 4, embedding: 64}",
    "data.augment={freq_masks: 2, time_masks: 2}",
    "train={steps: 800, batch_size: 16, eval_every: 100, optimizer: {lr: 5.0e-3, weight_decay: 0.01}}",
)
ARMS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "schemes_speech_two_stage": ("scheme:two_stage", (
        "teacher.path={out}/bert", "teachers.intents.path={out}/bert-intents")),
    "losses_speech_textual_kd": ("textual_kd", (
        "teacher.path={out}/bert-intents", "teachers={{}}", "scheme=null",
        "objective=[{{loss: ce}}, {{loss: textual_kd, params: {{summed: true}}}}]")),
    "losses_speech_textual_kd_tenth": ("textual_kd=0.1", (
        "teacher.path={out}/bert-intents", "teachers={{}}", "scheme=null",
        "objective=[{{loss: ce}}, {{loss: textual_kd, weight: 0.1, params: {{summed: true}}}}]")),
}  # fmt: skip


class Command(NamedTuple):
    """A text and what it wants: action, object, location."""

    text: str
    intent: tuple[str, str, str]


def commands(phrasings: Sequence[int]) -> Iterator[Command]:
    for (action, thing), (places, said) in SAID.items():
        for place in places:
            for i in phrasings:
                yield Command(there(said[i], place), (action, thing, place))


def there(text: str, place: str) -> str:
    return text if place == "none" else f"{text} in the {place}"


# ---------------------------------------------------------------- voices


def write_corpus(folder: Path) -> None:
    """Recordings and tables as Fluent Speech Commands has them, from one seed."""
    if shutil.which("espeak-ng") is None:
        sys.exit("espeak-ng is not on the path, and speaks the commands: install it (apt install espeak-ng)")
    for name, split in SPLITS.items():
        draw, rows = random.Random(name), []
        for i, one in enumerate(commands(split.phrasings)):
            for voice in draw.sample(split.voices, split.takes):
                speaker = voice[0].replace("+", "_")
                path = f"wavs/speakers/{speaker}/{name}{i:03d}.wav"
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                sf.write(folder / path, say(one.text, voice, folder / path, draw), RATE, subtype="PCM_16")
                rows.append([len(rows), path, speaker, one.text, *one.intent])
        (folder / "data").mkdir(exist_ok=True)
        with (folder / TABLES[name]).open("w", newline="") as file:
            csv.writer(file).writerows([["", "path", "speakerId", "transcription", *SLOTS], *rows])


def say(text: str, voice: tuple[str, int, int], path: Path, draw: random.Random) -> audio.Wave:
    """`text` at `RATE` Hz, at any loudness, under noise between white and pink; `path` is written over."""
    name, pitch, tempo = voice
    pitch, tempo = pitch + draw.randint(*PITCH), round(tempo * draw.uniform(*TEMPO))
    subprocess.run(["espeak-ng", "-v", name, "-p", str(pitch), "-s", str(tempo), "-w", str(path), text], check=True)
    wave = audio.resample(*audio.read(path), RATE)
    loud = np.flatnonzero(np.abs(wave) > 0.02 * np.abs(wave).max())
    wave = wave[loud[0] : loud[-1] + 1]
    wave = np.pad(wave * (draw.uniform(0.05, 0.15) / wave.std()), [draw.randint(800, 4800) for _ in range(2)])
    spectrum = np.fft.rfft(np.random.default_rng(draw.getrandbits(32)).standard_normal(len(wave)))
    noise = np.fft.irfft(spectrum / np.arange(1, len(spectrum) + 1) ** draw.uniform(0, 0.5), len(wave))
    noise *= wave.std() / noise.std() * 10 ** (-draw.uniform(*SNR_DB) / 20)
    return np.clip(wave + noise, -1, 1).astype(np.float32)


# ---------------------------------------------------------------- text encoders


def unlabelled() -> list[str]:
    """Texts without intents, sorted: every phrasing, in more places and words; none as dev or test has it."""
    kept = {one.text for name in ("dev", "test") for one in commands(SPLITS[name].phrasings)}
    kept -= {one.text for one in commands(SPLITS["train"].phrasings)}
    said = {there(text, place) for places, texts in SAID.values() for text in texts
            for place in (ELSEWHERE if len(places) > 1 else places)}  # fmt: skip
    return sorted({around.format(text) for text in said for around in AROUND} - kept)


def write_teachers(plain: Path, tuned: Path, seed: int = 1) -> None:
    """A BERT of two layers that has learnt masked words, and the same with a head for the intents of training."""
    torch.manual_seed(seed)
    texts = unlabelled()
    words = sorted({word for text in texts for word in text.split()})
    tokenizer = BertTokenizer(
        vocab={word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words])}
    )
    reader = BertForMaskedLM(BertConfig(vocab_size=len(tokenizer), **SIZES))
    given = tokenizer(texts, padding=True, return_tensors="pt")
    learn(reader, MASKED_STEPS, lambda: masked(drawn(given), tokenizer.mask_token_id))
    save(reader.bert, tokenizer, plain)
    labelled = list(commands(SPLITS["train"].phrasings))
    intents = ["/".join(one.intent) for one in labelled]
    names = sorted(set(intents))
    classes = {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
    head = BertForSequenceClassification.from_pretrained(plain, **classes)
    known = tokenizer([one.text for one in labelled], padding=True, return_tensors="pt")
    known["labels"] = torch.tensor([names.index(name) for name in intents])
    learn(head, TUNED_STEPS, lambda: drawn(known))
    save(head, tokenizer, tuned)


def drawn(rows: Mapping[str, Tensor], count: int = 32) -> dict[str, Tensor]:
    """Some of the rows, with replacement."""
    some = torch.randint(len(rows["input_ids"]), (count,))
    return {name: value[some] for name, value in rows.items()}


def masked(rows: dict[str, Tensor], mask: int, share: float = 0.25) -> dict[str, Tensor]:
    """Of the words a quarter is to be guessed (Devlin et al., 2019, have 15 %, of longer texts)."""
    words = rows["input_ids"]
    asked = (torch.rand(words.shape) < share) & (words > mask)
    return {**rows, "input_ids": words.masked_fill(asked, mask), "labels": words.masked_fill(~asked, -100)}


def learn(model: nn.Module, steps: int, batch: Callable[[], Mapping[str, Any]]) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
    falling = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        model(**batch()).loss.backward()
        optimizer.step()
        falling.step()


def save(model: Any, tokenizer: BertTokenizer, folder: Path) -> None:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


# ---------------------------------------------------------------- the comparison


def compare(out: Path, arm: str, sets: Sequence[str], seeds: int) -> dict[str, Any]:
    """What `xmodal-kd compare` finds of the recipe as `sets` make it; its one arm is called `arm`, no path is kept."""
    given = [*SHARED, f"data.path={out / 'commands'}", *(one.format(out=out) for one in sets)]
    command = [sys.executable, "-m", "xmodal_kd", "compare", "speech/textual_kd", "--methods", "recipe", "--quiet",
               "--seeds", str(seeds), "--out", str(out / "compare")]  # fmt: skip
    subprocess.run([*command, *(part for one in given for part in ("--set", one))], check=True)
    text = (out / "compare" / "compare.json").read_text().replace(f"{out}/", "")
    found: dict[str, Any] = json.loads(text) | {"recipe": "speech/textual_kd"}
    for entry in (*found["arms"], *found["against_control"]):
        key = "name" if "name" in entry else "arm"
        entry[key] = arm
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/textual"))
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    out = args.out.resolve()
    if not (out / "commands" / TABLES["test"]).exists():
        write_corpus(out / "commands")
    if not (out / "bert-intents" / "config.json").exists():
        write_teachers(out / "bert", out / "bert-intents")
    for name, (arm, sets) in ARMS.items():
        found = compare(out, arm, sets, args.seeds)
        (RESULTS / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")
        for role in (*found["controls"], *found["arms"]):
            print(name, role["name"], shown(Interval(**{k: 100 * v for k, v in role["test"].items()})))


if __name__ == "__main__":
    main()
