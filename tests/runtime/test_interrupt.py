"""Signals that end a training with a checkpoint."""

import os
import signal

import pytest

from xmodal_kd.runtime.interrupt import Stop


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_are_noticed_and_their_handlers_come_back(number: signal.Signals) -> None:
    outside, stop = signal.getsignal(number), Stop()
    if outside is signal.SIG_IGN:  # these tests run under nohup themselves
        signal.signal(number, signal.SIG_DFL)
    before = signal.getsignal(number)
    try:
        with stop.listening():
            assert stop.reason is None
            os.kill(os.getpid(), number)
            assert stop.reason == "interrupted"
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), number)
        assert signal.getsignal(number) is before
    finally:
        signal.signal(number, outside)


def test_a_run_under_nohup_outlives_its_terminal() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        stop = Stop()
        with stop.listening():
            os.kill(os.getpid(), signal.SIGHUP)
        assert stop.reason is None
    finally:
        signal.signal(signal.SIGHUP, before)
