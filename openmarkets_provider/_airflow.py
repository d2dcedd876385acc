"""Airflow's base classes, for the modules that DAG files import.

They are imported at every parse, so they take them from the SDK itself; everything else here goes through the
compatibility provider, inside functions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

__all__ = ["Asset", "BaseOperator", "BaseSensorOperator", "PokeReturnValue"]

if TYPE_CHECKING:
    from airflow.sdk import Asset, BaseOperator, BaseSensorOperator, PokeReturnValue
else:
    try:
        from airflow.sdk import Asset, BaseOperator, BaseSensorOperator, PokeReturnValue
    except ImportError:  # before Airflow 3
        from airflow.datasets import Dataset as Asset
        from airflow.models.baseoperator import BaseOperator
        from airflow.sensors.base import BaseSensorOperator, PokeReturnValue
