"""A catalog -> unreadable and duplicate images, leaks, outliers, shortcuts, label errors."""
