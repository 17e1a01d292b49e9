"""Image files -> Pillow images: what a file is, its limits, and formats that Pillow alone misreads or cannot read."""
