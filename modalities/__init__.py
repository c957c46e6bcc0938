"""Adapters, one folder a modality. Installed as ``xmodal_kd.modalities``."""

if __name__ != "xmodal_kd.modalities":
    raise ImportError("import xmodal_kd.modalities instead (after: pip install -e .)")

PAGE = "docs/own_data.md#data-of-your-own"
