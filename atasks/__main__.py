"""`python -m atasks`: the `atasks` command."""

from __future__ import annotations

from atasks_cli.main import main

if __name__ == "__main__":
    main()
