"""What all tests share.

Shapes in annotations are checked at run time, in tests only: it costs 35 microseconds a call. Not in the core's
losses, which refuse wrong shapes with messages of their own, and not in models, which ONNX traces.
"""

import gc
from collections.abc import Generator, Iterator

import pytest
from jaxtyping import install_import_hook

SHAPED = ("data.features", "evaluate.decode", "evaluate.score", "losses")
install_import_hook([f"xmodal_kd.modalities.speech.{name}" for name in SHAPED], "beartype.beartype")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What is imported and collected is no garbage: its collector need not look at it, then or ever after."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.fixture(scope="session", autouse=True)
def brief() -> Iterator[None]:
    """Whole runs measure how long an answer takes for a tenth of a second a role, in place of two seconds."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("xmodal_kd.run.runner.LATENCY", "xmodal_kd.schemes.exits.LATENCY"):
            patch.setattr(name, 0.1)
        yield
