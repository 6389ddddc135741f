"""``python -m jobs`` is ``structlearn``."""

from jobs.cli import main

main()
