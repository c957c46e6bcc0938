from __future__ import annotations

import json
import pickle
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import soundfile as sf
import torch
from pydantic import ValidationError
from spoken_digits import ALL, OFF, make

from xmodal_kd.modalities.speech.data.augment import Augment, spec_augment
from xmodal_kd.modalities.speech.data.source import SpeechData, SpeechSource, build_tokens, utterances
from xmodal_kd.modalities.speech.data.tokens import Tokens
from xmodal_kd.runtime.bounded_cache import BoundedCache
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.runtime.random_streams import Streams

__all__ = ["make"]  # a fixture


def manifest(folder, split, entries):
    """Write ``split.jsonl`` and its audio: entries of (name, seconds, text)."""
    lines = []
    for i, (name, seconds, text) in enumerate(entries):
        wave = 0.1 * np.random.default_rng(i).standard_normal(round(16000 * seconds))
        sf.write(folder / f"{name}.wav", wave, 16000)
        lines.append(json.dumps({"audio_filepath": f"{name}.wav", "text": text}))
    (folder / f"{split}.jsonl").write_text("\n".join(lines))


def equal(one, other):
    return torch.equal(one.clean, other.clean) and torch.equal(one.features, other.features)


# The plan


@pytest.mark.parametrize("buckets", [1, 4, 1000])
def test_an_epoch_has_every_sample_once_in_full_batches_but_one(make, buckets):
    source = make(buckets=buckets)
    for epoch in range(3):
        plan = source.plan(epoch)
        assert sorted(i for batch in plan for i in batch) == list(range(150))
        assert sorted(map(len, plan)) == [6, *[16] * 9]


def test_training_order_is_a_function_of_seed_and_epoch(make):
    source = make()
    assert source.plan(3) == make().plan(3)
    assert source.plan(3) != source.plan(4) and source.plan(3) != make(seed=2).plan(3)


def test_batches_hold_similar_durations_in_random_order(make):
    def spread(source):
        lengths = [[source.items[i].seconds for i in batch] for batch in source.plan(0)]
        return np.mean([max(batch) - min(batch) for batch in lengths])

    source = make(buckets=8)
    assert spread(source) < 0.5 * spread(make(buckets=1))
    firsts = [source.items[batch[0]].seconds for batch in source.plan(0)]
    assert firsts != sorted(firsts)


def test_the_small_batch_is_not_always_of_the_same_durations(make):
    source = make()
    small = [min(source.plan(epoch), key=len) for epoch in range(10)]
    means = [np.mean([source.items[i].seconds for i in batch]) for batch in small]
    assert max(means) - min(means) > 0.1


def test_evaluation_goes_by_length_and_is_never_augmented(make):
    source = make("dev", augment=ALL)
    order = [i for batch in source.plan(0) for i in batch]
    lengths = [source.items[i].seconds for i in order]
    assert lengths == sorted(lengths) and sorted(order) == list(range(100))
    assert source.plan(0) == source.plan(7)
    assert equal(source.sample(3, 0), source.sample(3, 1)) and source.sample(3, 0).clean is source.sample(3, 0).features


# Augmentation


def test_augmentation_is_replayed_whatever_the_order_or_the_worker(make):
    one, other = make(augment=ALL), make(augment=ALL)
    expected = [one.sample(i, 2) for i in range(12)]
    [other.sample(i, epoch) for epoch in (0, 1) for i in range(12)]
    with ThreadPoolExecutor(4) as pool:
        replayed = list(pool.map(lambda i: other.sample(i, 2), reversed(range(12))))
    assert all(equal(a, b) for a, b in zip(expected, reversed(replayed), strict=True))
    assert not equal(one.sample(0, 2), one.sample(0, 3))
    assert not equal(one.sample(0, 2), make(augment=ALL, seed=2).sample(0, 2))


def test_a_source_reaches_worker_processes(make):
    source = make(augment=ALL, compose={"utterances": {"train": 4}})
    assert equal(pickle.loads(pickle.dumps(source)).sample(2, 1), source.sample(2, 1))


def test_wave_augmentation_is_shared_and_masks_are_not(make):
    sample = make(augment={"speed": (0.5, 0.5)}).sample(0, 0)
    plain = make(augment=OFF).sample(0, 0)
    assert len(sample.clean) == len(sample.features) > 1.8 * len(plain.clean)
    changed = (sample.clean != sample.features).any()
    assert changed and (sample.clean == sample.features).float().mean() > 0.4


def test_noise_is_heard_by_the_augmented_view_alone(make):
    sample = make(augment={**OFF, "noise_snr_db": (10, 10)}).sample(0, 0)
    torch.testing.assert_close(sample.clean, make(augment=OFF).sample(0, 0).clean)
    assert not torch.equal(sample.clean, sample.features)


def test_masks_do_not_depend_on_whether_waves_are_augmented(make):
    still = make(augment={"gain_db": (0, 0)}).sample(5, 1)
    assert equal(still, make().sample(5, 1))


def test_spec_augment_hides_bands_and_stretches_behind_the_mean():
    x = torch.randn(200, 40, generator=torch.Generator().manual_seed(0))
    config = Augment(freq_masks=1, freq_width=8, time_masks=1, time_width=0.1)
    sizes = set()
    for seed in range(50):
        y = spec_augment(x, config, np.random.default_rng(seed))
        hidden = y != x
        torch.testing.assert_close(y[hidden], x.mean(dim=0).expand_as(x)[hidden])
        sizes.add((int(hidden.all(dim=0).sum()), int(hidden.all(dim=1).sum())))
    assert {bands for bands, _ in sizes} == set(range(9)) and max(times for _, times in sizes) <= 20
    short = spec_augment(torch.randn(1, 40), Augment(time_width=50), np.random.default_rng(0))
    assert short.shape == (1, 40) and torch.isfinite(short).all()


# Batches


def test_a_batch_of_training_samples(make):
    source = make(tokens="characters")
    indexes = source.plan(0)[0]
    samples = [source.sample(i, 0) for i in indexes]
    batch = source.collate(samples)
    longest = max(len(s.clean) for s in samples)
    assert batch["ids"].tolist() == indexes and batch["ids"].dtype == torch.int64
    assert batch["clean"].shape == batch["features"].shape == (len(indexes), longest, 40)
    assert batch["clean"].dtype == batch["features"].dtype == torch.float32
    for i, sample in enumerate(samples):
        n, length = len(sample.target), len(sample.clean)
        assert batch["lengths"][i] == length and batch["target_lengths"][i] == n
        assert torch.equal(batch["features"][i, :length], sample.features) and not batch["features"][i, length:].any()
        assert batch["targets"][i, :n].tolist() == sample.target and (batch["targets"][i, n:] == -1).all()
        assert source.tokens.decode(sample.target) == batch["texts"][i]
    assert batch["keys"] == [source.items[i].key for i in indexes]
    assert batch["speakers"] == [source.items[i].speaker for i in indexes]


def test_views_that_do_not_differ_are_one_tensor(make):
    for source in (make(augment=OFF), make(augment={**OFF, "speed": (0.9, 1.1)}), make("dev")):
        batch = source.collate([source.sample(i, 0) for i in range(4)])
        assert batch["features"] is batch["clean"]
    source = make()
    batch = source.collate([source.sample(i, 0) for i in range(4)])
    assert not torch.equal(batch["features"], batch["clean"])


def test_features_are_computed_once(make):
    source = make(augment=OFF)
    assert source.sample(0, 0).clean is source.sample(0, 5).clean


def test_a_full_cache_computes_anew():
    cache = BoundedCache(100)
    assert cache.get("a", lambda: np.zeros(10)) is cache.get("a", lambda: np.ones(10))
    assert cache.get("b", lambda: np.zeros(10))[0] == 0 and cache.get("b", lambda: np.ones(10))[0] == 1
    assert cache.used == 80


# What is left out


def test_what_cannot_be_aligned_is_left_out_of_training_and_listed(tmp_path):
    # 0.085 s are 7 frames, 2 output frames; 0.125 s are 11 and 3: "one one" needs 3 of them
    entries = [("a", 0.085, "one one"), ("b", 0.125, "one one"), ("c", 1.0, "two"), ("d", 2.5, "two")]
    manifest(tmp_path, "train", entries)
    manifest(tmp_path, "dev", [("e", 0.085, "one one"), ("f", 2.5, "two")])
    data = SpeechData(sources="manifest", path=tmp_path, max_seconds=2.0, augment=OFF)
    tokens = build_tokens(data)
    source = SpeechSource(data, "train", tokens, Streams(0), 4)
    assert [item.key for item in source.items] == ["b.wav", "c.wav"]
    assert source.left_out == [
        ("a.wav", "its text needs 3 output frames, its audio gives 2"),
        ("d.wav", "2.5 s is longer than data.max_seconds (2)"),
    ]
    facts = source.describe()
    assert (facts["utterances"], facts["left_out"], facts["speakers"]) == (2, 2, ["unknown"])
    assert facts["hours"] == pytest.approx(1.125 / 3600)
    assert facts["left_out_examples"][1] == {"key": "d.wav", "reason": "2.5 s is longer than data.max_seconds (2)"}
    json.dumps(facts)
    assert len(SpeechSource(data, "dev", tokens, Streams(0), 4)) == 2

    faster = data.model_copy(update={"augment": Augment(speed=(0.9, 1.3))})
    left_out = SpeechSource(faster, "train", tokens, Streams(0), 4).left_out
    assert [key for key, _ in left_out] == ["a.wav", "b.wav", "d.wav"]


def test_a_training_split_with_nothing_left_is_an_error(tmp_path):
    manifest(tmp_path, "train", [("a", 2.0, "one")])
    data = SpeechData(sources="manifest", path=tmp_path, max_seconds=1.0)
    with pytest.raises(UserError, match=r"every utterance of the train split is left out; the first, a\.wav: 2\.0 s"):
        SpeechSource(data, "train", build_tokens(data), Streams(0), 4)


def test_a_manifest_that_lies_about_a_duration_is_found_out(tmp_path):
    manifest(tmp_path, "train", [("a", 0.05, "one two one two")])
    line = {"audio_filepath": "a.wav", "text": "one two one two", "duration": 0.149}
    (tmp_path / "train.jsonl").write_text(json.dumps(line))
    data = SpeechData(sources="manifest", path=tmp_path)
    source = SpeechSource(data, "train", Tokens.build("words", ["one two"]), Streams(0), 4)
    with pytest.raises(UserError, match=r"train utterance a\.wav: its text needs 4 output frames"):
        source.sample(0, 0)


# Errors of the data section


def test_an_unknown_word_in_dev_names_the_utterance(tmp_path):
    manifest(tmp_path, "train", [("a", 1.0, "one two")])
    manifest(tmp_path, "dev", [("b", 1.0, "one ten")])
    data = SpeechData(sources="manifest", path=tmp_path)
    with pytest.raises(UserError, match=r"dev utterance b\.wav: unknown word 'ten'"):
        SpeechSource(data, "dev", build_tokens(data), Streams(0), 4)


def test_a_speaker_in_two_splits(digits):
    with pytest.raises(ValidationError, match="train_speakers and test_speakers: 'anna' is in both"):
        SpeechData(sources="fsdd", path=digits, train_speakers=["anna", "brian"], test_speakers=["anna"])


def test_an_unknown_speaker_gets_the_nearest_name(make):
    with pytest.raises(UserError, match=r"data\.dev_speakers: no recording of 'dunkan' \(nearest: duncan\)"):
        make(dev_speakers=["dunkan"])


def test_fsdd_needs_speaker_lists(digits):
    with pytest.raises(ValidationError, match="train_speakers: fsdd has no splits of its own"):
        SpeechData(sources="fsdd", path=digits)


def test_an_empty_split_is_named(make, tmp_path):
    with pytest.raises(UserError, match=r"data\.test_speakers: the test split is empty"):
        make("test", test_speakers=[])
    (tmp_path / "train.jsonl").touch()
    data = SpeechData(sources="manifest", path=tmp_path)
    with pytest.raises(UserError, match="has no utterance for the train split"):
        utterances(data, "train")
    with pytest.raises(UserError, match=r"dev\.jsonl is missing"):
        utterances(data, "dev")
    with pytest.raises(UserError, match=r"no split 'tset' \(nearest: test\)"):
        utterances(data, "tset")


def test_a_missing_path_is_named(make, tmp_path):
    with pytest.raises(UserError, match=r"data\.path: .*nowhere does not exist"):
        make(path=tmp_path / "nowhere")


def test_an_unknown_source_or_key_is_refused(digits):
    with pytest.raises(ValidationError, match="sources"):
        SpeechData(sources="fssd", path=digits)
    with pytest.raises(ValidationError, match="bucket"):
        SpeechData(sources="manifest", path=digits, bucket=3)


def test_a_recording_in_two_manifests_is_a_leak(tmp_path):
    manifest(tmp_path, "train", [("a", 1.0, "one")])
    manifest(tmp_path, "test", [("a", 1.0, "one")])
    with pytest.raises(UserError, match=r"'a\.wav' is in train\.jsonl and in test\.jsonl"):
        utterances(SpeechData(sources="manifest", path=tmp_path), "train")


def test_a_broken_file_is_named_when_it_is_drawn(tmp_path):
    manifest(tmp_path, "train", [("a", 1.0, "one")])
    data = SpeechData(sources="manifest", path=tmp_path)
    source = SpeechSource(data, "train", build_tokens(data), Streams(0), 4)
    (tmp_path / "a.wav").write_bytes((tmp_path / "a.wav").read_bytes()[:-1000])
    with pytest.raises(UserError, match=r"a\.wav: truncated"):
        source.sample(0, 0)


# Several sources, other layouts


def test_manifests_with_speaker_lists(tmp_path):
    for name, speaker in (("a", "ann"), ("b", "bob"), ("c", "cid")):
        sf.write(tmp_path / f"{name}.wav", np.zeros(8000), 8000)
        record = {"audio_filepath": f"{name}.wav", "text": "one", "speaker": speaker}
        with (tmp_path / "all.jsonl").open("a") as file:
            file.write(json.dumps(record) + "\n")
    for path in (tmp_path, tmp_path / "all.jsonl"):
        data = SpeechData(sources="manifest", path=path, train_speakers=["ann", "cid"], dev_speakers=["bob"])
        assert [u.key for u in utterances(data, "train")] == ["a.wav", "c.wav"]
        assert [u.key for u in utterances(data, "dev")] == ["b.wav"]


def test_librispeech_splits_by_folder(tmp_path):
    for part, speaker in (("train-clean-100", "84"), ("train-other-500", "90"), ("dev-clean", "174")):
        place = tmp_path / part / speaker / "1"
        place.mkdir(parents=True)
        (place / f"{speaker}-1.trans.txt").write_text(f"{speaker}-1-0000 GO ON\n")
        sf.write(place / f"{speaker}-1-0000.flac", np.zeros(16000), 16000)
    data = SpeechData(sources="librispeech", path=tmp_path, tokens="characters")
    assert [u.speaker for u in utterances(data, "train")] == ["84", "90"]
    assert len(SpeechSource(data, "dev", build_tokens(data), Streams(0), 4)) == 1
    with pytest.raises(UserError, match=r"has no folder test\*"):
        utterances(data, "test")
    listed = data.model_copy(update={"train_speakers": ("174", "90")})
    assert [u.speaker for u in utterances(listed, "train")] == ["174", "90"]


def test_several_sources_lie_in_folders_of_their_names(tmp_path, digits):
    (tmp_path / "fsdd").symlink_to(digits)
    (tmp_path / "manifest").mkdir()
    manifest(tmp_path / "manifest", "all", [("a", 1.0, "ten")])
    data = SpeechData(sources=["fsdd", "manifest"], path=tmp_path, train_speakers=["anna", "unknown"])
    found = utterances(data, "train")
    assert len(found) == 51 and found[0].key == "fsdd/0_anna_0" and found[-1].key == "manifest/a.wav"
    (tmp_path / "fsdd").unlink()
    with pytest.raises(UserError, match="'fsdd' is expected at"):
        utterances(data, "train")


# Composed, real


def test_composed_digits(make):
    source = make(compose={"utterances": {"train": 40, "dev": 8}})
    batch = source.collate([source.sample(i, 0) for i in source.plan(0)[0]])
    assert len(source) == 40 and source.left_out == []
    assert set(batch["speakers"]) <= {"anna", "brian", "carla"}
    assert (batch["target_lengths"] >= 3).all() and (batch["target_lengths"] <= 7).all()
    same = make(compose={"utterances": {"train": 40, "dev": 8}}, seed=9)
    assert torch.equal(source.sample(3, 0).clean, same.sample(3, 0).clean)


def test_real_fsdd_is_composed_at_speed(fsdd):
    data = SpeechData(
        sources="fsdd", path=fsdd, compose={"utterances": {"train": 150}}, train_speakers=("george", "jackson", "lucas")
    )
    start = time.perf_counter()
    source = SpeechSource(data, "train", build_tokens(data), Streams(1), 16)
    batches = [source.collate([source.sample(i, 0) for i in indexes]) for indexes in source.plan(0)]
    assert sum(len(batch["ids"]) for batch in batches) == 150 and source.left_out == []
    assert time.perf_counter() - start < 30  # 1.0 s on one thread of the machine it was written on


def test_real_kathleen_fits_its_frames(kathleen):
    data = SpeechData(sources="manifest", path=kathleen, tokens="characters")
    tokens = build_tokens(data)
    assert "".join(tokens.symbols[1:]) == "'abcdefghijklmnopqrstuvwxyz|"
    for split, count in (("train", 440), ("dev", 40), ("test", 40)):
        source = SpeechSource(data, split, tokens, Streams(1), 16)
        assert (len(source), source.left_out) == (count, [])
        sample = source.sample(0, 0)
        assert tokens.decode(sample.target) == sample.text


def test_a_relative_path_that_is_missing_says_from_where(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = SpeechData.model_validate({"sources": "manifest", "path": "clips"})
    with pytest.raises(UserError, match=rf"data\.path: clips does not exist in {tmp_path}, where this was called"):
        utterances(config, "train")
    config = SpeechData.model_validate({"sources": "manifest", "path": "assets/digits"})
    with pytest.raises(UserError, match=r": it lies beside the recipes: --set data\.path=/.*/assets/digits$"):
        utterances(config, "train")
