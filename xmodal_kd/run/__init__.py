"""A whole run: which models are trained, each from what and on which samples; evaluation, report, export; again later.

May import everything below but no modality, which it finds by name. Public are only the files that a run
leaves.
"""
