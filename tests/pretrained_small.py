"""CTC models as transformers saves them, as small as they get."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

LETTERS = "etaonihsrdlumwcfgypbvkxjqz'"


def vocabulary(upper: bool = True) -> dict[str, int]:
    letters = LETTERS.upper() if upper else LETTERS
    return {name: i for i, name in enumerate(["<pad>", "<s>", "</s>", "<unk>", "|", *letters])}


def tiny(kind: str, **changes: Any) -> Any:
    import transformers

    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
        "vocab_size": 32, "pad_token_id": 0, **changes,
    }  # fmt: skip
    if kind == "bert":
        return transformers.Wav2Vec2BertForCTC(transformers.Wav2Vec2BertConfig(add_adapter=False, **sizes))
    convolutions = {"conv_dim": [8] * 7, "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2}
    config = transformers.Wav2Vec2Config(
        **sizes, **convolutions, feat_extract_norm=kind, do_stable_layer_norm=kind == "layer"
    )
    return transformers.Wav2Vec2ForCTC(config)


def write_encoder(folder: Path, name: str, **changes: Any) -> Path:
    """A folder of an encoder without a head, as published ones are: `name` is its class in transformers."""
    import transformers

    torch.manual_seed(0)
    kind = getattr(transformers, name)
    masks = changes.get("feat_extract_norm") == "layer"
    config = kind.config_class(
        hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=16, conv_dim=[8] * 7,
        num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=2, **changes,
    )  # fmt: skip
    kind(config).save_pretrained(folder)
    transformers.Wav2Vec2FeatureExtractor(return_attention_mask=masks).save_pretrained(folder)
    return folder


def write(folder: Path, kind: str, **changes: Any) -> Path:
    """A folder as `save_pretrained` of a model and of its processor leaves it."""
    import transformers

    tiny(kind, **changes).save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps(vocabulary()))
    tokens = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps({**tokens, "word_delimiter_token": "|"}))
    name = "SeamlessM4TFeatureExtractor" if kind == "bert" else "Wav2Vec2FeatureExtractor"
    made = getattr(transformers, name)(**({} if kind == "bert" else {"return_attention_mask": kind == "layer"}))
    made.save_pretrained(folder)
    return folder
