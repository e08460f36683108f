"""Encoders of ours from settings alone."""

from __future__ import annotations

from typing import Any

from simdino.config import EncoderConfig


def made(kind: Any, *, in_chans: int = 3, **settings: Any) -> Any:
    """A ViT or a CRATE, without drop path unless the settings give it."""
    return kind(EncoderConfig(**{"drop_path": 0.0} | settings), in_chans)
