"""3D points: dense LiDAR teachers, sparse LiDAR and image students.

Nothing heavy is imported until the adapter is asked for. May import the core below ``run``, and no other modality.
Public are `ADAPTER`, `COMMANDS` and `SKETCH`, which the core finds by the folder's name.
"""

ADAPTER = "adapter:PointsAdapter"
COMMANDS = "use.commands"
SKETCH = "use.sketch"
PAGE = "docs/own_data.md#a-teacher-of-other-classes"
