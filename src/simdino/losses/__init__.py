"""Embeddings -> loss. `SimDINO` and `DINO` here take plain tensors; the objectives of a run are in the files."""

from simdino.losses.plain import DINO, SimDINO

__all__ = ["DINO", "SimDINO"]
