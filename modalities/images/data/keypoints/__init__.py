"""Figures whose joints are known: what a joint is, skeletons that are drawn here, COCO's annotations, their batches.

May import the recipe's data section, beside the core. Public are the figures of a split and their source.
"""
