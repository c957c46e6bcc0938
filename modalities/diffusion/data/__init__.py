"""Images and other arrays: folders, zips, the batches of a split.

May import the core alone. Public are the keys of the recipe's ``data`` section.
"""

PAGE = "docs/own_data.md#diffusion-images-or-arrays"
