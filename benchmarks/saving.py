"""What every benchmark does with its figures."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any


def save(folder: Path | None, name: str, figures: Any) -> None:
    """Writes <folder>/<name>-<date>.json; without a folder nothing."""
    if folder is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{datetime.date.today().isoformat()}.json"
    path.write_text(json.dumps(figures, indent=1) + "\n")
