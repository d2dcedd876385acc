"""Airflow's base classes, for the modules that DAG files import.

DAG files import these at every parse, so they come from the SDK itself. Functions import everything else from the
compatibility provider.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

__all__ = [
    "Asset",
    "BaseOperator",
    "BaseSensorOperator",
    "PokeReturnValue",
    "airflow_version",
    "resolve_deferrable",
]

if TYPE_CHECKING:
    from airflow.sdk import Asset, BaseOperator, BaseSensorOperator, PokeReturnValue
else:
    try:
        from airflow.sdk import Asset, BaseOperator, BaseSensorOperator, PokeReturnValue
    except ImportError:  # before Airflow 3
        from airflow.datasets import Dataset as Asset
        from airflow.models.baseoperator import BaseOperator
        from airflow.sensors.base import BaseSensorOperator, PokeReturnValue


def resolve_deferrable(deferrable: bool | None) -> bool:
    """Return the argument; for None, the setting ``[operators] default_deferrable``."""
    if deferrable is not None:
        return deferrable
    from airflow.providers.common.compat.sdk import conf

    return bool(conf.getboolean("operators", "default_deferrable", fallback=False))


def airflow_version() -> tuple[int, int]:
    """Return the major and the minor version of Airflow."""
    from airflow import __version__

    major, minor, *_ = __version__.split(".")
    return int(major), int(minor)
