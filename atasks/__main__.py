"""`python -m atasks`: the `atasks` command."""

from __future__ import annotations

from atasks_cli.start import main

if __name__ == "__main__":
    main()
