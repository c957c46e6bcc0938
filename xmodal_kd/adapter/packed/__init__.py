"""Samples that lie many in a file, as every modality takes them: tar shards by WebDataset's names, `datasets` folders.

May import what ``adapter`` may. Public are `Member` (``member``), `Packing` (``packing``) with its `Row`, and what says
which files a path means (``shards``).
"""
