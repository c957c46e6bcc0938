"""What a run stands on, whatever it trains: random streams, processes, checkpoints, devices, progress, errors, names.

May import nothing of this package. Public are `RunError` and `UserError` (``errors``), `Registry` (``registry``),
`Streams` (``random_streams``) and `make_accelerator` (``device``); the rest serves the other packages.
"""
