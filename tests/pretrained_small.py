"""CTC models as transformers saves them, as small as they get."""

from __future__ import annotations

import json
from collections.abc import Sequence
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


def write_whisper(
    folder: Path, *, letters: str = LETTERS, chunk: int = 30, many: bool = False, pieces: Sequence[str] = (),
    **changes: Any,
) -> Path:  # fmt: skip
    """A Whisper with random weights, as `save_pretrained` of model and processor leaves it: letters are its tokens.

    Args:
        chunk: seconds that it hears at once.
        many: whether it knows two languages and two tasks.
        pieces: pairs of tokens that are tokens, too.
    """
    import transformers

    torch.manual_seed(0)
    told = ["<|en|>", "<|de|>", "<|transcribe|>", "<|translate|>"] if many else []
    names = [*letters, *pieces, "Ġ", "<|endoftext|>", "<|startoftranscript|>", *told, "<|notimestamps|>"]
    index = {name: i for i, name in enumerate(names)}
    end, start = index["<|endoftext|>"], index["<|startoftranscript|>"]
    sizes: dict[str, Any] = {
        "vocab_size": len(names), "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
        "decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "max_target_positions": 12,
        "num_mel_bins": 16, "pad_token_id": end, "bos_token_id": end, "eos_token_id": end,
        "decoder_start_token_id": start, "suppress_tokens": None, "begin_suppress_tokens": None,
        "max_source_positions": 50 * chunk, **changes,
    }  # fmt: skip
    config = transformers.WhisperConfig(**sizes)
    model = transformers.WhisperForConditionalGeneration(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    model.generation_config.update(max_length=10, suppress_tokens=[start, len(names) - 1])
    model.generation_config.is_multilingual = many
    if many:
        model.generation_config._from_model_config = False
        model.generation_config.lang_to_id = {name: index[name] for name in told[:2]}
        model.generation_config.task_to_id = {name.strip("<|>"): index[name] for name in told[2:]}
    model.save_pretrained(folder)
    special = {"additional_special_tokens": names[names.index("<|startoftranscript|>") :]}
    merges = [(piece[:-1], piece[-1]) for piece in pieces]
    tokenizer = transformers.WhisperTokenizer(vocab=index, merges=merges, **special)
    tokenizer.save_pretrained(folder)
    transformers.WhisperFeatureExtractor(feature_size=config.num_mel_bins, chunk_length=chunk).save_pretrained(folder)
    return folder
