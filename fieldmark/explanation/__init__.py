"""A network, an image and a class -> class evidence, attribution maps, and how faithful each map is."""
