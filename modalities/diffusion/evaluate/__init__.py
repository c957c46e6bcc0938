"""The judge: a classifier's features, distances between sets, curves over step counts.

May import ``methods``, ``losses``, ``models`` and ``data``, beside the core. Public are the names of metrics in
reports.
"""

PAGE = "modalities/diffusion/README.md#the-judge"
