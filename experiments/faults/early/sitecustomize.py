"""Python reads this before anything else where its folder is on PYTHONPATH: a rank that has a fault to make gets it."""

import os

if "FAULT" in os.environ:
    import inject

    inject.prepare(os.environ["FAULT"])
