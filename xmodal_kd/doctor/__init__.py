"""Does what is installed work here: versions, one call of each compiled package, devices, memory, disk.

May import ``runtime`` and ``models``. Public is the command ``xmodal-kd doctor``.
"""

PAGE = "docs/installing.md#installing"
