"""One of the processes of `test_connectors`: a batch norm over both ranks' rows. Started as a program."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from xmodal_kd.losses.connectors import RowNorm


def normed(rows: torch.Tensor, wanted: torch.Tensor) -> dict[str, torch.Tensor]:
    """Values, and gradients of their product with `wanted`, of a norm over `rows`."""
    norm, rows = RowNorm("batch", rows.shape[1]).double(), rows.clone().requires_grad_()
    out = norm(rows)
    (out * wanted).sum().backward()
    assert rows.grad is not None and norm.weight.grad is not None and norm.bias.grad is not None
    return {
        "out": out.detach(), "rows": rows.grad, "weight": norm.weight.grad, "bias": norm.bias.grad,
        "mean": norm.running_mean, "var": norm.running_var,
    }  # fmt: skip


def main(folder: Path, rank: int) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    given = load_file(folder / "given.safetensors")
    mine = slice(0, 5) if rank == 0 else slice(5, None)
    save_file(normed(given["rows"][mine], given["wanted"][mine]), folder / f"rank{rank}.safetensors")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
