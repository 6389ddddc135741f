"""``structlearn doctor``: what this machine offers, what is wrong, and how to mend it."""

import json
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Final, Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from jobs import examinations
from jobs.examinations import Finding

__all__ = ["doctor"]
