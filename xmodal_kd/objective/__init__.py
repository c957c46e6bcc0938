"""Weighted terms between a student's and a teacher's signals: valid rows in, sums and counts out.

May import ``recipe``, ``losses`` and what these may. Public are `Objective` (``objective``) and `LossOut` (``parts``).
"""
