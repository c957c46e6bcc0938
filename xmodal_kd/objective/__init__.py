"""Weighted terms between a student's and a teacher's signals: valid rows in, sums and counts out.

May import ``recipe`` and what it may. Public are `Objective` (``objective``) and `LossOut` (``parts``).
"""

PAGE = "recipes/README.md#rows-and-weights"
