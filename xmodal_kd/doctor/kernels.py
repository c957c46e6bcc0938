"""One call of each compiled package, of the kind that a run makes, with a result that is known beforehand.

`probe` makes them at once and apart, each in a process of its own: a library that ends its process (an instruction that
the CPU has not, a structure of another release) is then a line, too.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import isclose, log
from time import perf_counter
from typing import Any

from ..runtime.binary_packages import load, loading
from ..runtime.errors import RunError, UserError
from ..runtime.installed import version
from ..runtime.isolated import Ended, ask
from .hardware import kinds


@dataclass(frozen=True)
class Kernel:
    """A call of `project`, imported as `module`."""

    project: str
    module: str
    call: Callable[[], str | None]
    """Says what it did; None where nothing here can run it. Raises `RunError` for a wrong result."""
    needs: tuple[str, ...] = ()
    """Other projects without which it cannot be tried."""


@dataclass(frozen=True)
class Answer:
    """What came of a call."""

    project: str
    works: bool | None
    """None: not tried, as `found` says."""
    found: str
    seconds: float = 0.0


def _expect(what: str, found: Iterable[float], expected: Iterable[float]) -> None:
    found, expected = list(map(float, found)), list(map(float, expected))
    if len(found) != len(expected) or not all(map(_close, found, expected)):
        raise RunError(f"{what} gives {found} in the place of {expected}")


def _close(a: float, b: float) -> bool:
    return isclose(a, b, rel_tol=1e-3, abs_tol=1e-4)


def _torch() -> str:
    """A convolution and its gradient: ones under ones, and how often each weight is used."""
    torch = load("torch")
    devices = kinds()
    for device in devices:
        weight = torch.ones(1, 1, 2, 2, device=device, requires_grad=True)
        out = torch.nn.functional.conv2d(torch.ones(1, 1, 3, 3, device=device), weight)
        out.sum().backward()
        _expect(f"a convolution on {device}", [*out.flatten().tolist(), *weight.grad.flatten().tolist()], [4.0] * 8)
    return f"a convolution and its gradient on {' and '.join(devices)}"


def _torchaudio() -> str:
    """A spectrogram of ones, all in its lowest bin; and the RNN-T loss of even odds, (1/3)^3 on each of two ways."""
    torch = load("torch")
    spectrogram = load("torchaudio.transforms").Spectrogram(n_fft=64)(torch.ones(1, 256))
    _expect("a spectrogram", spectrogram[0, [0, 8], 4].tolist(), [32.0**2, 0.0])
    devices = [device for device in kinds() if device != "mps"]
    for device in devices:
        target, frames, labels = (torch.tensor(x, dtype=torch.int32, device=device) for x in ([[1]], [2], [1]))
        loss = load("torchaudio.functional").rnnt_loss(
            torch.zeros(1, 2, 2, 3, device=device), target, frames, labels, blank=0
        )
        _expect(f"an RNN-T loss on {device}", [loss], [log(27 / 2)])
    return f"a spectrogram and an RNN-T loss on {' and '.join(devices)}"


def _torchvision() -> str:
    """Of three boxes the second lies almost on the first."""
    torch = load("torch")
    nms = load("torchvision.ops").nms
    devices = [device for device in kinds() if device != "mps"]
    for device in devices:
        boxes = torch.tensor([[0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 2.0, 1.9], [5.0, 5.0, 6.0, 6.0]], device=device)
        kept = nms(boxes, torch.tensor([0.9, 0.8, 0.7], device=device), 0.5)
        _expect(f"non-maximum suppression on {device}", kept.tolist(), [0, 2])
    return f"non-maximum suppression on {' and '.join(devices)}"


def _open3d() -> str:
    """A ray along z meets a triangle at z = 1."""
    import numpy as np

    open3d = load("open3d")
    scene = open3d.t.geometry.RaycastingScene(nthreads=1)
    corners = np.array([[0, 0, 1], [1, 0, 1], [0, 1, 1]], np.float32)
    scene.add_triangles(open3d.core.Tensor(corners), open3d.core.Tensor(np.array([[0, 1, 2]], np.uint32)))
    rays = open3d.core.Tensor(np.array([[0.2, 0.2, 0, 0, 0, 1]], np.float32))
    _expect("a ray cast", scene.cast_rays(rays, nthreads=1)["t_hit"].numpy(), [1.0])
    return "a ray cast"


def _graph() -> Any:
    """``x @ [1, 2]`` as an ONNX model."""
    onnx = load("onnx")
    helper, real = load("onnx.helper"), onnx.TensorProto.FLOAT
    x, y = (helper.make_tensor_value_info(name, real, shape) for name, shape in (("x", [1, 2]), ("y", [1, 1])))
    weight = helper.make_tensor("w", real, [2, 1], [1.0, 2.0])
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "product", [x], [y], [weight])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _onnx() -> str:
    load("onnx.checker").check_model(_graph())
    return "a graph, checked"


def _onnxruntime() -> str:
    import numpy as np

    runtime = load("onnxruntime")
    session = runtime.InferenceSession(_graph().SerializeToString(), providers=["CPUExecutionProvider"])
    [found] = session.run(None, {"x": np.array([[3, 4]], np.float32)})
    _expect("a session", found.flatten(), [11.0])
    return "a session"


def _soundfile() -> str:
    import io

    import numpy as np

    soundfile = load("soundfile")
    file, wave = io.BytesIO(), [0.0, 0.5, -0.5, 0.25]
    soundfile.write(file, np.array(wave, np.float32), 8000, format="WAV", subtype="PCM_16")
    file.seek(0)
    read, rate = soundfile.read(file)
    _expect("a wave that was written", [*read, rate], [*wave, 8000])
    return "a wave, written and read"


def _flashlight() -> str:
    """Three frames of which each is sure of its token; the first token is the blank."""
    import numpy as np

    decoder = load("flashlight.lib.text.decoder")
    options = decoder.LexiconFreeDecoderOptions(
        beam_size=4, beam_size_token=3, beam_threshold=50.0, lm_weight=0.0, sil_score=0.0, log_add=True,
        criterion_type=decoder.CriterionType.CTC,
    )  # fmt: skip
    search = decoder.LexiconFreeDecoder(options, decoder.ZeroLM(), 0, 0, [])
    frames = np.log(np.array([[0.1, 0.8, 0.1], [0.8, 0.1, 0.1], [0.1, 0.1, 0.8]], np.float32))
    [best, *_] = search.decode(frames.ctypes.data, *frames.shape)
    _expect("a beam search", [token for token in best.tokens if token], [1, 2])
    return "a beam search"


def _sentencepiece() -> str:
    """Pieces of two words, of which one occurs in the other."""
    import io

    pieces, made = load("sentencepiece"), io.BytesIO()
    pieces.SentencePieceTrainer.train(
        sentence_iterator=iter(["on one", "one"]), model_writer=made, model_type="bpe", vocab_size=7, minloglevel=2,
        bos_id=-1, eos_id=-1,
    )  # fmt: skip
    found = pieces.SentencePieceProcessor(model_proto=made.getvalue()).encode("one", out_type=str)
    _expect("pieces of a word", [ord(c) for c in "".join(found)], [ord(c) for c in "▁one"])
    return "pieces of a word"


def _lazrs() -> str:
    """Three points, packed and unpacked."""
    import io

    import numpy as np

    laspy = load("laspy")
    load("lazrs")
    header, file = laspy.LasHeader(point_format=0, version="1.2"), io.BytesIO()
    header.scales = [0.5, 0.5, 0.5]
    points = laspy.LasData(header)
    points.x, points.y, points.z = np.array([[1.0, 2.5, -3.0]] * 3)
    points.write(file, do_compress=True, laz_backend=laspy.LazBackend.Lazrs)
    file.seek(0)
    _expect("points that were packed", laspy.read(file).xyz.flatten(), np.repeat([1.0, 2.5, -3.0], 3))
    return "points, packed and unpacked"


def _pyarrow() -> str:
    """A column written as a stream, and read from it without a copy."""
    arrow = load("pyarrow")
    out, batch = arrow.BufferOutputStream(), arrow.RecordBatch.from_pydict({"x": [b"ab", b"c"]})
    with arrow.ipc.new_stream(out, batch.schema) as stream:
        stream.write_batch(batch)
    [read] = arrow.ipc.open_stream(out.getvalue())
    _expect("a column", bytes(read.column("x").buffers()[2])[:3], b"abc")
    return "a column of a stream"


def _xformers() -> str | None:
    """Attention to keys that are all alike gives the mean of the values."""
    torch = load("torch")
    if not torch.cuda.is_available():
        return None
    ops = load("xformers.ops")
    q, k = (torch.ones(1, 4, 2, 32, device="cuda", dtype=torch.float16) for _ in range(2))
    v = torch.arange(4.0, device="cuda").half()[None, :, None, None].expand(1, 4, 2, 32).contiguous()
    out = ops.memory_efficient_attention(q, k, v)
    _expect("attention", out.flatten()[:3].tolist(), [1.5] * 3)
    return "attention on cuda"


#: In the order in which they are told. A project that is not installed is not tried.
KERNELS: tuple[Kernel, ...] = (
    Kernel("torch", "torch", _torch),
    Kernel("torchaudio", "torchaudio", _torchaudio, ("torch",)),
    Kernel("torchvision", "torchvision", _torchvision, ("torch",)),
    Kernel("xformers", "xformers", _xformers, ("torch",)),
    Kernel("open3d", "open3d", _open3d),
    Kernel("onnx", "onnx", _onnx),
    Kernel("onnxruntime", "onnxruntime", _onnxruntime, ("onnx",)),
    Kernel("soundfile", "soundfile", _soundfile),
    Kernel("flashlight-text", "flashlight", _flashlight),
    Kernel("sentencepiece", "sentencepiece", _sentencepiece),
    Kernel("lazrs", "lazrs", _lazrs, ("laspy",)),
    Kernel("pyarrow", "pyarrow", _pyarrow),
)


def probe(kernels: Iterable[Kernel] = KERNELS) -> list[Answer]:
    """The answers of those that are installed, in their order; as many processes at once as there are cores."""
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        return list(pool.map(_answer, [kernel for kernel in kernels if version(kernel.project) is not None]))


def _answer(kernel: Kernel) -> Answer:
    if missing := [project for project in kernel.needs if version(project) is None]:
        return Answer(kernel.project, None, f"not tried, for want of {' and '.join(missing)}")
    began = perf_counter()
    found = ask(f"{__name__}:call", kernel.project)
    seconds = perf_counter() - began
    if isinstance(found, Ended):
        return Answer(kernel.project, False, _crashed(kernel.project, found), seconds)
    works, text = found
    return Answer(kernel.project, works, text, seconds)


def _crashed(project: str, end: Ended) -> str:
    again = f"pip install --force-reinstall {project}"
    advice = {
        "SIGILL": f"this CPU lacks an instruction that the wheel was built for; an older one may do without: {again}",
        "SIGKILL": "the system stopped it, most likely for want of memory: free some and call doctor again",
    }.get(end.signal or "", again)
    return f"{project} {version(project)} {end}: {advice}"


def call(project: str) -> tuple[bool | None, str]:
    """Whether the kernel of a project works here, None if nothing here can run it, and what it did or why not."""
    kernel = next(one for one in KERNELS if one.project == project)
    try:
        with loading(kernel.module):
            found = kernel.call()
    except (UserError, RunError) as error:
        if type(error.__cause__).__name__ == "OutOfMemoryError":
            return None, "not tried: the GPU has no memory free"
        return False, " ".join(str(error).split())
    return (True, found) if found else (None, "not tried: it has kernels for CUDA only")


__all__ = ["KERNELS", "Answer", "Kernel", "call", "probe"]
