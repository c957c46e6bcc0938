"""Labelled images: configuration, splits, batches.

May import the core alone. Public are the recipe's data section and its source.
"""
