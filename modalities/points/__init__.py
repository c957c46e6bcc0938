"""3D points: dense LiDAR teachers, sparse LiDAR and image students. Nothing heavy is imported until the adapter is
asked for."""

ADAPTER = "adapter:PointsAdapter"
COMMANDS = "use.commands"
