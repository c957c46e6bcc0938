"""Recordings and transcripts: files, manifests, features, augmentation, the batches of a split.

May import the core alone. Public are the keys of the recipe's ``data`` section.
"""

PAGE = "docs/own_data.md#speech-recordings-and-their-words"
