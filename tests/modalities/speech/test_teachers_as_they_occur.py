"""Folders of transformers that are wrapped, damaged, never fetched, of other heads, or the folder around."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pretrained_small import vocabulary, write
from safetensors.torch import load_file, save_file

from xmodal_kd.modalities.speech.models.pretrained import check_folder, load_pretrained, traps
from xmodal_kd.runtime.errors import UserError

transformers = pytest.importorskip("transformers", exc_type=ImportError)


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    return write(tmp_path / "teacher", "group")


def change(folder: Path, **tensors: Any) -> None:
    path = folder / "model.safetensors"
    save_file(load_file(path) | tensors, path, metadata={"format": "pt"})


def refusal(folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        check_folder(folder)
        load_pretrained(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_weights_that_will_not_do(teacher: Path) -> None:
    path = teacher / "model.safetensors"
    right = load_file(path)
    save_file({f"_orig_mod.{name}": one for name, one in right.items()}, path, metadata={"format": "pt"})
    assert "begin with '_orig_mod.'" in (told := refusal(teacher)) and "model._orig_mod.save_pretrained" in told
    save_file(right, path, metadata={"format": "pt"})
    change(teacher, **{"lm_head.weight": right["lm_head.weight"] * float("inf")})
    assert "'lm_head.weight' is NaN or infinite" in refusal(teacher)
    path.write_text("version https://git-lfs.github.com/spec/v1\nsize 1234\n")
    assert "a pointer of Git LFS" in refusal(teacher)
    path.rename(teacher / "model.fp16.safetensors")
    assert "rename model.fp16.safetensors to it" in refusal(teacher)


def test_the_folder_around_a_model_names_the_one_in_it(tmp_path: Path, teacher: Path) -> None:
    for name in ("run/checkpoint-90", "run/checkpoint-200", "cache/snapshots/abc"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        write(tmp_path / name, "group")
    assert "name the folder in it" in (told := refusal(tmp_path / "run")) and told.endswith("checkpoint-200")
    assert refusal(tmp_path / "cache").endswith("abc")
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / "adapter_config.json").write_text("{}")
    assert "merge_and_unload" in refusal(tmp_path / "lora")


def test_a_vocabulary_that_does_not_fit_its_head(teacher: Path) -> None:
    names = vocabulary()
    (teacher / "vocab.json").write_text(json.dumps(names | {"\u00e9": 32, "<s>": 33}))
    assert "'\u00e9' behind the last class of its head" in next(traps(teacher))[0]
    (teacher / "vocab.json").write_text(json.dumps(names | {"Z": names["E"]}))
    assert f"calls class {names['E']} both 'E' and 'Z'" in refusal(teacher)


def test_a_head_of_another_name_answers(tmp_path: Path) -> None:
    """Parakeet's is a convolution called ``ctc_head``; its pieces are SentencePiece's."""
    if not hasattr(transformers, "ParakeetForCTC"):
        pytest.skip("transformers has no Parakeet")
    tokenizers = pytest.importorskip("tokenizers")
    torch.manual_seed(0)
    encoder = {
        "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
        "num_mel_bins": 80, "subsampling_conv_channels": 8,
    }  # fmt: skip
    config = transformers.ParakeetCTCConfig(vocab_size=6, encoder_config=encoder, pad_token_id=5)
    model = transformers.ParakeetForCTC(config).eval()
    model.save_pretrained(tmp_path)
    transformers.ParakeetFeatureExtractor().save_pretrained(tmp_path)
    pieces = [("<unk>", 0.0), ("\u2581", -1.0), ("a", -1.0), ("b", -1.0), ("\u2581ab", -1.0)]
    tokenizer = tokenizers.Tokenizer(tokenizers.models.Unigram(pieces, unk_id=0))
    tokenizer.add_special_tokens(["<pad>"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"pad_token": "<pad>", "unk_token": "<unk>"}))
    loaded = load_pretrained(tmp_path)
    assert loaded.vocabulary is not None and loaded.vocabulary.blank == 5
    assert loaded.vocabulary.known == {"<blank>", "|", "a", "b", "\u2581ab"}
    front_end = loaded.front_end
    waves = [torch.randn(16000), torch.randn(9000)]
    answers = [next(front_end._answers(loaded.model, [wave], ()))[0] for wave in waves]
    assert [answer.shape[1] for answer in answers] == [6, 6] and len(answers[0]) > len(answers[1])
    assert front_end.frame == pytest.approx(0.08, abs=0.005)
