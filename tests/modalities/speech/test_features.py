from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torchaudio.transforms import MelSpectrogram

from xmodal_kd.modalities.speech.data import audio
from xmodal_kd.modalities.speech.data.features import FLOOR, PRIOR, PRIOR_FRAMES, Features, Frontend
from xmodal_kd.runtime.errors import UserError


def noise(samples, seed=0):
    return 0.1 * torch.randn(samples, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("rate, mels", [(16000, 40), (8000, 40), (16000, 80), (22050, 64)])
def test_log_mels_are_those_of_torchaudio(rate, mels):
    config = Features(sample_rate=rate, mels=mels, normalise="none")
    frontend, wave = Frontend(config), noise(rate)
    theirs = MelSpectrogram(
        rate, n_fft=frontend.fft, win_length=config.window, hop_length=config.hop, n_mels=mels, center=False
    )
    # torchaudio centres its window within the FFT: silence on either side puts our frames under its windows
    left = (frontend.fft - config.window) // 2
    padded = torch.nn.functional.pad(wave, (left, frontend.fft - config.window - left))
    torch.testing.assert_close(frontend(wave), theirs(padded).clamp(min=FLOOR).log().T, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("samples", [0, 1, 399, 400, 401, 559, 560, 16000, 16159])
def test_the_number_of_frames_is_known_beforehand(samples):
    frontend = Frontend(Features())
    x = frontend(noise(samples))
    assert x.shape == (frontend.frames(samples), 40) and x.dtype == torch.float32
    assert torch.isfinite(x).all()
    if samples >= 400:
        assert len(x) == 1 + (samples - 400) // 160


def test_utterance_mean_is_zero_and_removes_gain():
    frontend = Frontend(Features(normalise="utterance"))
    x = frontend(noise(16000))
    torch.testing.assert_close(x.mean(dim=0), torch.zeros(40), atol=1e-5, rtol=0)
    torch.testing.assert_close(frontend(3 * noise(16000)), x, atol=1e-4, rtol=0)


def test_running_mean_by_hand():
    raw = Frontend(Features(normalise="none"))(noise(8000)).double().numpy()
    got = Frontend(Features(normalise="running"))(noise(8000)).numpy()
    for t in range(len(raw)):
        mean = (PRIOR_FRAMES * PRIOR + raw[: t + 1].sum(axis=0)) / (PRIOR_FRAMES + t + 1)
        np.testing.assert_allclose(got[t], raw[t] - mean, atol=1e-5)


@pytest.mark.parametrize("normalise", ["running", "none"])
@pytest.mark.parametrize("seed", range(8))
def test_streaming_equals_the_whole_file_over_any_chunking(normalise, seed):
    rng = np.random.default_rng(seed)
    frontend, wave = Frontend(Features(normalise=normalise)), noise(int(rng.integers(1, 40000)), seed)
    stream, at, out = frontend.stream(), 0, []
    largest = int(rng.choice([10, 300, 5000]))
    while at < len(wave):
        size = int(rng.integers(0, largest))
        out.append(stream.push(wave[at : at + size]))
        at += size
    out.append(stream.finish())
    torch.testing.assert_close(torch.cat(out), frontend(wave), atol=1e-5, rtol=0)


def test_a_stream_gives_a_frame_as_soon_as_its_samples_are_there():
    stream = Frontend(Features()).stream()
    assert [len(stream.push(noise(n))) for n in (399, 1, 159, 1, 320)] == [0, 1, 0, 1, 2]


def test_a_stream_shorter_than_a_window_gives_one_frame_at_its_end():
    frontend, stream = Frontend(Features()), Frontend(Features()).stream()
    assert len(stream.push(noise(100))) == 0
    torch.testing.assert_close(stream.finish(), frontend(noise(100)))
    assert len(stream.finish()) == 0


def test_utterance_mean_cannot_stream():
    with pytest.raises(UserError, match=r"features\.normalise: 'utterance' needs the whole recording"):
        Frontend(Features(normalise="utterance")).stream()


def test_impossible_features_are_refused():
    with pytest.raises(ValidationError, match="hop_ms"):
        Features(hop_ms=30.0)
    with pytest.raises(ValidationError, match="mells"):
        Features(mells=40)
    with pytest.raises(UserError, match=r"features\.mels: 400 is too many"):
        Frontend(Features(mels=400))
    with pytest.raises(ValueError, match="1-D"):
        Frontend(Features())(torch.zeros(2, 16000))


def test_the_prior_is_about_the_average_of_speech(fsdd):
    frontend = Frontend(Features(normalise="none"))
    paths = sorted((fsdd / "recordings").glob("*_2*.wav"))[::10]
    waves = [audio.resample(*audio.read(path), 16000) for path in paths]
    mean = torch.cat([frontend(torch.from_numpy(wave)) for wave in waves]).mean().item()
    assert abs(mean - PRIOR) < 1.0
