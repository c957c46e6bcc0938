"""Recipes, installed as ``xmodal_kd.recipes`` so that ``xmodal-kd run speech/fsdd`` finds them by name."""
