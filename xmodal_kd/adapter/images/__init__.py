"""Images with or without classes, as several modalities take them: folders, zips in the EDM convention, digits.

May import what ``adapter`` may, and needs Pillow (``digits`` also scikit-learn), which the extras of those modalities
bring. Public are `Images` (``read``), `ImageSection` (``section``), `split_images` (``splits``) and `listed_images`
(``listed``).
"""
