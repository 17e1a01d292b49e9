"""A trained classifier as a service: a page for people, `POST /predict` for programs; without torch."""
