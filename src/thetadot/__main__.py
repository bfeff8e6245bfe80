"""`python -m thetadot` is `thetadot`."""

from thetadot.cli import main

raise SystemExit(main())
