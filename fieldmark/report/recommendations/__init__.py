"""What to do next about a trained classifier: typed recommendations, drawn by rules from the findings of its run."""
