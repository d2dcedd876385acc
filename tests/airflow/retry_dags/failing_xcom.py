"""An XCom backend that takes no results of orders."""

from __future__ import annotations

from typing import Any

from airflow.sdk.bases.xcom import BaseXCom


class FailingXCom(BaseXCom):
    """Fails where a backend fails whose storage is out of reach: behind ``execute``, within the task."""

    @staticmethod
    def serialize_value(value: Any, **kwargs: Any) -> Any:
        """Refuse the reply to an order."""
        if isinstance(value, dict) and "orderNumber" in value:
            raise ConnectionError("The storage of XComs is out of reach.")
        return BaseXCom.serialize_value(value, **kwargs)
