"""Knowledge distillation across modalities: one core, adapters for speech, 3D points and diffusion."""

__version__ = "0.1.0"
