"""The comparison with torch, layer by layer."""
