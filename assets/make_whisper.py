"""Makes ``assets/whisper`` and ``assets/whisper_letters``: what a Whisper's folder says beside its weights, for digits.

    python assets/make_whisper.py

Ten words are ten tokens, or as many as they have letters; four seconds are heard at once, and the model is as small as
it gets. No weights: recipes train them, ``recipes/smoke/whisper.yaml`` and ``recipes/smoke/two_tokenizers.yaml``.
"""

from __future__ import annotations

from pathlib import Path

from transformers import GenerationConfig, WhisperConfig, WhisperFeatureExtractor, WhisperTokenizer

FOLDER = Path(__file__).parent
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
END, START, NO_TIMES = "<|endoftext|>", "<|startoftranscript|>", "<|notimestamps|>"
RATE, SECONDS, HOP, MELS = 16000, 4, 320, 40


def main() -> None:
    merges = list(dict.fromkeys(("Ġ" + word[:i], word[i]) for word in WORDS for i in range(len(word))))
    write(FOLDER / "whisper", merges, positions=16)
    write(FOLDER / "whisper_letters", [], positions=32)


def write(folder: Path, merges: list[tuple[str, str]], positions: int) -> None:
    letters = sorted({letter for word in WORDS for letter in word})
    names = list(dict.fromkeys(["Ġ", *letters, *("".join(pair) for pair in merges), END, START, NO_TIMES]))
    index = {name: i for i, name in enumerate(names)}
    config = WhisperConfig(
        vocab_size=len(names), d_model=32, encoder_layers=2, decoder_layers=4, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=64, decoder_ffn_dim=64, num_mel_bins=MELS,
        max_source_positions=SECONDS * RATE // HOP // 2, max_target_positions=positions, pad_token_id=index[END],
        bos_token_id=index[END], eos_token_id=index[END], decoder_start_token_id=index[START], suppress_tokens=None,
        begin_suppress_tokens=None, architectures=["WhisperForConditionalGeneration"],
    )  # fmt: skip
    generation = GenerationConfig(
        max_length=positions, is_multilingual=False, no_timestamps_token_id=index[NO_TIMES], pad_token_id=index[END],
        bos_token_id=index[END], eos_token_id=index[END], decoder_start_token_id=index[START],
    )  # fmt: skip
    extractor = WhisperFeatureExtractor(
        feature_size=MELS, sampling_rate=RATE, hop_length=HOP, chunk_length=SECONDS, n_fft=512
    )
    tokenizer = WhisperTokenizer(vocab=index, merges=merges, additional_special_tokens=[START, NO_TIMES])
    for part in (config, generation, extractor, tokenizer):
        part.save_pretrained(folder)


if __name__ == "__main__":
    main()
