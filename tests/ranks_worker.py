"""One of two processes of `test_connectors` (``norm``: a batch norm over both ranks' rows) and of `test_ranks`
(``steps``: an optimizer's steps on parameters that not all ranks use)."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from launch import ranks
from safetensors.torch import load_file, save_file
from torch import nn

from xmodal_kd.losses.connectors import RowNorm
from xmodal_kd.runtime.distributed import ProcessRanks, Ranks


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


def stepped(ranks: Ranks, rank: int) -> dict[str, torch.Tensor]:
    """Three parameters after two steps of Adam. In the second, both ranks use the first one, rank 0 the second."""
    names = ("both", "one", "none")
    values = {name: nn.Parameter(torch.ones(2, 3)) for name in names}
    adam = torch.optim.Adam(values.values(), lr=0.1)
    for used in (names, ("both", "one") if rank == 0 else ("both",)):
        adam.zero_grad()
        summing = ranks.summing(list(values.values()))
        with summing.during():
            torch.stack([(rank + 1) * values[name].square().sum() for name in used]).sum().backward()
        summing.finish()
        adam.step()
    grads = {f"{name}.grad": p.grad for name, p in values.items() if p.grad is not None}
    return grads | {name: p.detach() for name, p in values.items()}


def main(what: str, folder: Path) -> None:
    rank = int(os.environ["RANK"])
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    out = folder / f"rank{rank}.safetensors"
    if what == "steps":
        save_file(stepped(ProcessRanks(torch.device("cpu")), rank), out)
    else:
        save_file(norm_of(folder, rank), out)
    torch.distributed.destroy_process_group()


def norm_of(folder: Path, rank: int) -> dict[str, torch.Tensor]:
    given = load_file(folder / "given.safetensors")
    mine = slice(0, 5) if rank == 0 else slice(5, None)
    return normed(given["rows"][mine], given["wanted"][mine])


def two(what: str, folder: Path) -> list[dict[str, torch.Tensor]]:
    """What each of two processes found."""
    with ranks(main, what, folder):
        pass
    return [load_file(folder / f"rank{rank}.safetensors") for rank in range(2)]
