"""From logits to transcripts to error rates.

May import ``losses``, ``models`` and ``data``, beside the core. Public are the names of metrics in reports.
"""
