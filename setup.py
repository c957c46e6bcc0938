"""Only the package list: automatic discovery cannot rename folders, and a new modality should edit no list."""

from setuptools import find_namespace_packages, find_packages, setup

setup(
    packages=[
        *find_packages(include=["xmodal_kd", "xmodal_kd.*"]),
        "xmodal_kd.modalities",
        *(f"xmodal_kd.modalities.{name}" for name in find_packages("modalities")),
        "xmodal_kd.recipes",
        *(f"xmodal_kd.recipes.{name}" for name in find_namespace_packages("recipes")),
    ]
)
