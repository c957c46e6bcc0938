"""Ends of the names of scans. Light, for a command line is parsed before anything is read."""

#: The longest that fits is cut from a name.
SUFFIXES = (".pcd.bin", ".bin", ".ply", ".pcd", ".las", ".laz", ".npz", ".npy", ".csv", ".txt", ".xyz", ".asc", ".pts")
#: What is taken for a scan because it lies in a folder: of text and single arrays there are others beside scans.
IN_FOLDERS = (".bin", ".ply", ".pcd", ".las", ".laz", ".npz", ".xyz", ".pts")
#: And what for a photograph.
PHOTOGRAPHS = (".png", ".jpg", ".jpeg")
