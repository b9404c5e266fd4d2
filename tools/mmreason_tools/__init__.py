"""Video and audio tools that a model can call; each is one file here and imports `mmreason.tool_api` only."""

from __future__ import annotations
