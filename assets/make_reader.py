"""Make ``reader/``: a tiny BERT of ``transformers`` that reads a digit's name and says which digit it is.

    python assets/make_reader.py

It was trained on the ten words in seconds and is for smoke recipes and tests: a teacher of text that needs no download.
"""

from __future__ import annotations

from pathlib import Path

import torch

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
STEPS = 60


def main(folder: Path) -> None:
    import transformers

    torch.manual_seed(0)
    names = sorted(DIGITS)  # as a recipe's classes are
    vocabulary = {name: i for i, name in enumerate([*SPECIAL, *names])}
    tokenizer = transformers.BertTokenizer(vocab=vocabulary, model_max_length=16)
    config = transformers.BertConfig(
        vocab_size=len(SPECIAL) + len(names), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=16, initializer_range=0.2, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0, id2label=dict(enumerate(names)),
        label2id={name: i for i, name in enumerate(names)},
    )  # fmt: skip
    model = transformers.BertForSequenceClassification(config).train()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    tokens = tokenizer(names, padding=True, return_tensors="pt")
    for _ in range(STEPS):
        loss = model(**tokens, labels=torch.arange(len(names))).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    right = (model.eval()(**tokens).logits.argmax(dim=1) == torch.arange(len(names))).all()
    assert right, "it does not know its ten words"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    print(f"{folder}: loss {float(loss.detach()):.3f}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(__file__).with_name("reader"))
