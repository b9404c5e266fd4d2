"""Rows and media: sources, decoding, transforms, the loader, and procedural worlds."""
