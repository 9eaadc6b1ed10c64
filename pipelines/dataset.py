"""placeholder until the merge"""

from __future__ import annotations

from typing import Any

DataSet = Any
