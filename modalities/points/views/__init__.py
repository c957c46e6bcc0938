"""What one side sees of a frame, and which of its rows shows which point of another view.

May import ``data``, beside the core. Public is nothing.
"""

PAGE = "modalities/points/README.md#conventions"
