"""What a missed deadline calls: the triggerer imports it by its name."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any


async def alarm(context: dict[str, Any]) -> None:
    run = context["dag_run"]
    text = f"{run['dag_id']} {run['partition_key']}"
    await asyncio.to_thread(Path(os.environ["SESSION_ALARM"]).write_text, text)
