"""One plain function per verb of the command line, which a test can call; `fieldmark.cli.main` knows them all."""
