"""Images and other arrays: folders, zips, the batches of a split."""
