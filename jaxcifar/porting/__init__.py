"""The layer-by-layer comparison with torch."""
