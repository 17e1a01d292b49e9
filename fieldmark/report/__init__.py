"""The files of a run -> HTML pages, charts, a model card, sentences. All text that people read on a page."""
