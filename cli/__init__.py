"""The command line: `lhopt WORD`, one file per word; `main.py` puts them together."""
