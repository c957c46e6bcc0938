"""IoU, calibration, agreement; what takes all roles to see.

May import ``models``, ``views`` and ``data``, beside the core. Public are the names of metrics in reports.
"""
