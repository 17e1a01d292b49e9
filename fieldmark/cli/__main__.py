"""`python -m fieldmark.cli`."""

from fieldmark.cli.main import main

if __name__ == "__main__":
    main()
