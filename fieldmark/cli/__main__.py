"""`fieldmark` and `python -m fieldmark.cli`."""

import sys


def main() -> None:
    """Entry point; Ctrl-C is one line while modules are imported as well."""
    try:
        from fieldmark.cli.main import main as run

        run()
    except KeyboardInterrupt:
        print("fieldmark: interrupted", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
