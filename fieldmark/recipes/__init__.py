"""Every hyperparameter and option of a run (`recipe.py`), and the named recipes that come with Fieldmark."""
