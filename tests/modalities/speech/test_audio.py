from __future__ import annotations

import numpy as np
import pytest
import soundfile as sf
from shared_data import shared

from xmodal_kd.modalities.speech.data import audio
from xmodal_kd.runtime.errors import UserError


def tone(seconds=1.0, rate=16000, hertz=440.0):
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def noise(samples, seed=0):
    return (0.1 * np.random.default_rng(seed).standard_normal(samples)).astype(np.float32)


def cut(path, share):
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


def one_line(error):
    message = str(error.value)
    assert "\n" not in message
    return message


def test_stereo_is_averaged_and_keeps_its_rate(tmp_path):
    path = tmp_path / "stereo.wav"
    left, right = tone(rate=44100), np.zeros(44100, np.float32)
    sf.write(path, np.stack([left, right], axis=1), 44100, subtype="FLOAT")
    wave, rate = audio.read(path)
    assert (rate, wave.shape, wave.dtype) == (44100, (44100,), np.float32)
    np.testing.assert_allclose(wave, left / 2, atol=1e-6)
    assert audio.duration(path) == 1.0


@pytest.mark.parametrize("old, new", [(44100, 16000), (8000, 16000), (48000, 8000), (16000, 44100)])
def test_resampling_keeps_a_tone_and_its_length(old, new):
    wave = audio.resample(tone(rate=old), old, new)
    assert wave.dtype == np.float32 and len(wave) == new
    middle = slice(new // 4, -new // 4)
    np.testing.assert_allclose(wave[middle], tone(rate=new)[middle], atol=2e-3)


def test_resampling_removes_what_the_new_rate_cannot_hold():
    wave = audio.resample(tone(rate=44100, hertz=12000.0), 44100, 16000)
    assert np.abs(wave[2000:-2000]).max() < 0.01


@pytest.mark.parametrize("seconds", [0.013, 0.25, 1.0, 60.0])
@pytest.mark.parametrize("rate, new", [(16000, None), (44100, 16000), (8000, 16000), (16000, 8000), (11025, 16000)])
def test_blocks_join_to_the_whole_file(tmp_path, rate, new, seconds):
    path = tmp_path / "long.wav"
    sf.write(path, noise(2 * rate + 77), rate, subtype="FLOAT")
    blocks = list(audio.blocks(path, seconds, new))
    whole, _ = audio.read(path)
    np.testing.assert_allclose(np.concatenate(blocks), audio.resample(whole, rate, new or rate), atol=1e-6)
    assert all(len(block) <= (seconds + 0.1) * (new or rate) + 2 for block in blocks)


@pytest.mark.parametrize("call", [audio.read, audio.duration, lambda path: list(audio.blocks(path, 0.1))])
@pytest.mark.parametrize("share", [0.99, 0.5, 0.1])
def test_a_cut_wav_is_named(tmp_path, call, share):
    path = tmp_path / "cut.wav"
    sf.write(path, noise(8000), 16000)
    cut(path, share)
    with pytest.raises(UserError, match=r"cut\.wav: truncated: its header promises 16000 bytes") as error:
        call(path)
    one_line(error)


@pytest.mark.parametrize("name", ["cut.flac", "cut.ogg"])
def test_other_cut_files_are_named(tmp_path, name):
    path = tmp_path / name
    sf.write(path, noise(16000), 16000)
    cut(path, 0.5)
    for call in (audio.read, lambda path: list(audio.blocks(path, 0.1))):
        with pytest.raises(UserError, match=f"{name}: truncated") as error:
            call(path)
        one_line(error)


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_an_ogg_cut_within_a_page_is_named(tmp_path, subtype):
    """What is left of it ends in whole audio pages, which libsndfile reads as if they were all."""
    path = tmp_path / "cut.ogg"
    sf.write(path, noise(8 * 8000), 8000, format="OGG", subtype=subtype)
    assert len(audio.read(path)[0]) == 8 * 8000
    cut(path, 0.8)
    for call in (audio.read, audio.duration):
        with pytest.raises(UserError, match=r"cut\.ogg: truncated") as error:
            call(path)
        one_line(error)


def test_a_file_without_a_byte_is_empty(tmp_path):
    path = tmp_path / "nothing.wav"
    path.touch()
    with pytest.raises(UserError, match=r"nothing\.wav: empty"):
        audio.read(path)


def test_a_damaged_flac_is_named(tmp_path):
    path = tmp_path / "damaged.flac"
    sf.write(path, noise(16000), 16000)
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 100] = bytes(100)
    path.write_bytes(bytes(content))
    with pytest.raises(UserError, match=r"damaged\.flac: truncated or corrupt"):
        audio.read(path)


def test_a_wav_that_was_piped_is_whole(tmp_path):
    """A writer that cannot seek back leaves a huge size in the header: nothing is missing."""
    path = tmp_path / "piped.wav"
    sf.write(path, noise(8000), 16000)
    content = bytearray(path.read_bytes())
    for at in (4, content.index(b"data") + 4):
        content[at : at + 4] = b"\xff" * 4
    path.write_bytes(bytes(content))
    assert len(audio.read(path)[0]) == 8000


def test_an_empty_file_is_named(tmp_path):
    path = tmp_path / "empty.wav"
    sf.write(path, np.zeros(0, np.float32), 16000)
    for call in (audio.read, audio.duration):
        with pytest.raises(UserError, match=r"empty\.wav: empty"):
            call(path)


@pytest.mark.parametrize("content", [b"one two three\n", b"RIFF1234WAVEfmt "])
def test_what_is_not_audio_is_named(tmp_path, content):
    path = tmp_path / "text.wav"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"text\.wav: not an audio file") as error:
        audio.read(path)
    one_line(error)


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    with pytest.raises(UserError, match=r"none\.wav: no such file"):
        audio.read(tmp_path / "none.wav")
    with pytest.raises(UserError, match="a folder"):
        audio.duration(tmp_path)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_samples_that_are_not_finite_are_named(tmp_path, bad):
    path = tmp_path / "nan.wav"
    wave = tone()
    wave[1234] = bad
    sf.write(path, wave, 16000, subtype="FLOAT")
    with pytest.raises(UserError, match=r"nan\.wav: sample 1234 is NaN or Inf"):
        audio.read(path)
    with pytest.raises(UserError, match="NaN or Inf"):
        list(audio.blocks(path, 0.01))


@pytest.mark.parametrize("suffix, subtype", [("ogg", "VORBIS"), ("ogg", "OPUS")])
@pytest.mark.parametrize("kept", [0.35, 0.6, 0.8, 0.97])
def test_an_ogg_file_cut_within_a_page_is_refused(tmp_path, suffix, subtype, kept):
    """Wherever it is cut; libsndfile plays what comes before. A cut between two pages looks like a broadcast."""
    wave = 0.1 * np.random.default_rng(0).standard_normal(16000 * 8)
    whole, cut = tmp_path / f"whole.{suffix}", tmp_path / f"cut.{suffix}"
    sf.write(whole, wave, 16000, format="OGG", subtype=subtype)
    assert abs(audio.duration(whole) - 8) < 0.01
    held = whole.read_bytes()
    cut.write_bytes(held[: int(kept * len(held))])
    for look in (audio.duration, audio.read):
        with pytest.raises(UserError, match=r"truncated|not an audio file") as found:
            look(cut)
        assert "cut.ogg" in str(found.value)


def test_cut_files_that_people_bring():
    files = sorted(shared("../cases/speech").glob("cut_*"))
    assert len(files) == 4
    for path in files:
        with pytest.raises(UserError, match=f"{path.name}: truncated"):
            audio.read(path)


def test_integers_written_as_floats_are_noticed(tmp_path):
    wave = np.random.default_rng(0).standard_normal(1600) * 3000
    sf.write(tmp_path / "loud.wav", wave.astype(np.float32), 16000, subtype="FLOAT")
    with pytest.raises(UserError, match=r"loud\.wav: floats up to \d+, where a wave lies within \[-1, 1\]"):
        audio.read(tmp_path / "loud.wav")
    sf.write(tmp_path / "driven.wav", (wave / 1500).astype(np.float32), 16000, subtype="FLOAT")
    assert float(np.abs(audio.read(tmp_path / "driven.wav")[0]).max()) > 1


def patched(path, told, behind=b""):
    """A WAV whose header tells of `told` bytes of sound."""
    content = bytearray(path.read_bytes())
    at = content.find(b"data")
    content[at + 4 : at + 8] = told.to_bytes(4, "little")
    path.write_bytes(bytes(content) + behind)


@pytest.mark.parametrize("told", [0, 16000])
def test_a_header_that_tells_of_less_than_there_is(tmp_path, told):
    path = tmp_path / "stopped.wav"
    sf.write(path, tone(), 16000)
    patched(path, told)
    for reader in (audio.read, audio.duration, audio.look):
        with pytest.raises(
            UserError, match=r"stopped\.wav: [\d,]+ bytes follow the 0\.[05]0 s that its header tells of"
        ):
            reader(path)


def test_joined_files_are_not_taken_for_their_first(tmp_path):
    for name in ("a.wav", "a.mp3"):
        path = tmp_path / name
        sf.write(path, tone(), 16000)
        path.write_bytes(path.read_bytes() * 2)
        with pytest.raises(UserError, match=r"bytes follow the 1\.0|No 'RIFF' chunk"):
            audio.read(path)
        with pytest.raises(UserError):
            audio.look(path)


def test_notes_and_padding_behind_a_recording_are_no_sound(tmp_path):
    path = tmp_path / "a.wav"
    note = b"LIST" + (4000).to_bytes(4, "little") + b"INFO" + bytes(3996)
    for behind in (note, bytes(9000), b"TAG" + bytes(125), note + note):
        sf.write(path, tone(), 16000)
        path.write_bytes(path.read_bytes() + behind)
        audio.look(path)
        assert len(audio.read(path)[0]) == 16000


def test_channels_that_cancel_each_other_out_are_refused(tmp_path):
    path = tmp_path / "turned.wav"
    sf.write(path, np.stack([tone(), -tone()], axis=1), 16000)
    for reader in (audio.read, lambda path: list(audio.blocks(path, 0.3))):
        with pytest.raises(UserError, match=r"turned\.wav: its 2 channels cancel each other out.*remix 1"):
            reader(path)
    sf.write(path, np.zeros((1600, 2)), 16000)
    assert not audio.read(path)[0].any(), "silence is silence"


@pytest.mark.parametrize(
    "name, head, told",
    [
        ("a.m4a", b"\0\0\0\x20ftypM4A ", "MPEG-4 audio.*ffmpeg -i"),
        ("a.wav", b"\x1aE\xdf\xa3", "WebM or Matroska.*ffmpeg -i"),
        ("b.wav", b"version https://git-lfs.github.com/spec/v1\n", "pointer of Git LFS: git lfs pull"),
        ("c.wav", b"<!DOCTYPE html>", "web page"),
        ("a.sph", b"NIST_1A\n   1024\nsample_coding -s26 pcm,embedded-shorten-v2.00\n", "convert|shorten"),
        ("a.raw", b"\1\0", "samples without a header.*sox -t raw"),
        ("a.pcm", b"\1\0", "sox -t raw"),
    ],
)
def test_what_is_no_audio_here_is_called_by_its_name(tmp_path, name, head, told):
    path = tmp_path / name
    path.write_bytes(head + bytes(3000))
    for reader in (audio.read, audio.look):
        with pytest.raises(UserError, match=told):
            reader(path)


def test_a_sample_rate_of_a_damaged_header(tmp_path):
    sf.write(tmp_path / "a.wav", tone(), 16)
    for reader in (audio.read, audio.look):
        with pytest.raises(UserError, match="sample rate of 16 Hz"):
            reader(tmp_path / "a.wav")


@pytest.mark.parametrize(
    "there, listed, told",
    [
        ("e\u0301.wav", "\u00e9.wav", "another Unicode form"),
        ("a.wav", "file:///a.wav", "write the path alone"),
        ("a.wav", "wav\\a.wav", "slashes, not backslashes"),
        ("a.ark", "a.ark:120", "Kaldi archive"),
    ],
)
def test_a_path_that_is_nearly_right(tmp_path, there, listed, told):
    sf.write(tmp_path / there, tone(0.1), 16000, format="WAV")
    with pytest.raises(UserError, match=f"no such file: .*{told}"):
        audio.read(tmp_path / listed)
