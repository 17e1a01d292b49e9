"""The command line: typer commands over the functions of the other packages."""
