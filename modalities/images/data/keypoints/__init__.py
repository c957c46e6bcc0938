"""Figures whose joints are known: what a joint is, skeletons that are drawn here, COCO's annotations, their batches."""
