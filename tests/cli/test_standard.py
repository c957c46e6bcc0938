"""Standard streams that are closed, full or that nobody reads."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from xmodal_kd.cli.drafts import _run
from xmodal_kd.cli.main import _plain
from xmodal_kd.cli.standard import NobodyReads, Output
from xmodal_kd.runtime import progress
from xmodal_kd.runtime.errors import UserError
from xmodal_kd.runtime.progress import Lasting, each

#: What opens the streams, and then a file, which must not have the number of any.
CLOSED = """
import os, sys
from xmodal_kd.cli.standard import open_closed
open_closed()
assert sys.stdin.buffer.read() == b""
print("lost")
os.write(1, b"lost")
with open(sys.argv[1], "w") as file:
    assert file.fileno() > 2
    file.write("kept")
"""


class Broken(io.StringIO):
    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def write(self, text: str) -> int:
        raise self.error


def test_streams_that_are_closed_take_no_file(tmp_path) -> None:
    out = tmp_path / "file"
    line = f"exec '{sys.executable}' -c \"$CODE\" '{out}' <&- >&- 2>&-"
    done = subprocess.run(["sh", "-c", line], env=os.environ | {"CODE": CLOSED}, check=False)
    assert done.returncode == 0 and out.read_text() == "kept"


def test_what_cannot_be_said_names_standard_output() -> None:
    with pytest.raises(OSError, match="standard output") as told:
        Output(Broken(OSError(28, "No space left on device"))).write("x")
    assert told.value.errno == 28
    with pytest.raises(UserError, match=r"^standard output: ascii has no '\\\\xdf': set PYTHONUTF8=1$"):
        Output(io.TextIOWrapper(io.BytesIO(), encoding="ascii")).write("Stra\u00dfe")


def test_a_reader_that_has_gone_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with os.fdopen(os.dup(1), "w") as stream:
        monkeypatch.setattr(sys, "__stdout__", stream)
        with pytest.raises(NobodyReads):
            Output(Broken(BrokenPipeError(32, "Broken pipe"))).write("x")


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), BrokenPipeError(32, "Broken pipe")])
def test_progress_that_nobody_sees_ends_no_work(error: OSError) -> None:
    Lasting(file=Broken(error)).print("half of it is done")


def test_progress_in_a_log_is_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    written, clock = io.StringIO(), iter(range(0, 900, 9))
    monkeypatch.setattr(progress, "monotonic", lambda: float(next(clock)))
    assert list(each(range(4), "writing", Lasting(file=written))) == [0, 1, 2, 3]
    assert written.getvalue() == "writing  3/4  12 s left\n"


def test_numbers_on_a_line_have_their_intervals() -> None:
    metrics = {"wer": 0.5, "wer_interval": [0.25, 0.75], "wer_interval_over": "utterances", "words": 20, "by": [1, 2]}
    assert _plain({"metrics": metrics}) == "wer 0.5000 [0.2500, 0.7500]  words 20"


def test_a_command_to_copy_quotes_names() -> None:
    assert _run(Path("my runs/draft.yaml"), Path("my runs")) == "xmodal-kd run 'my runs/draft.yaml' --out 'my runs'"
