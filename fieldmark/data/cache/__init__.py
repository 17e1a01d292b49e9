"""Decoded pixels, kept by content for every run, memory-mapped; or decoded anew each time (streaming)."""
