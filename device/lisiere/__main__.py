"""`python -m lisiere` is `lisiere`."""

from lisiere.cli import main

raise SystemExit(main())
