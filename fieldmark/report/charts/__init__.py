"""Metrics -> inline SVG charts with HTML text, so that any script is drawn right."""
