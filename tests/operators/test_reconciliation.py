"""The check that orders, trades and positions agree, with differences that the sandbox is made to have."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from airflow.providers.common.compat.sdk import DAG, AirflowException, AirflowFailException

from openmarkets_provider import queries
from openmarkets_provider.exceptions import OpenmarketsQueryError
from openmarkets_provider.hooks.openmarkets import OpenmarketsHook
from openmarkets_provider.operators.reconciliation import MOST_IN_XCOM, OpenmarketsReconciliationCheck
from openmarkets_provider.sandbox.server import SandboxServer

ORDER = {
    "accountCode": "FUND1",
    "securityCode": "BHP",
    "exchange": "ASX",
    "destination": "ASX",
    "side": "Buy",
    "orderPrice": 4500,
    "orderVolume": 100,
    "lifetime": "EndOfDay",
    "pricingInstruction": "Limit",
}


class XComs(dict[str, Any]):
    """What a task pushed, in place of its instance."""

    def xcom_push(self, key: str, value: Any) -> None:
        self[key] = value


def place(**changes: Any) -> int:
    query = queries.request("oms", "POST", "orders/v4", json=ORDER | changes)
    return int(OpenmarketsHook().run(query)["orderNumber"])


@pytest.fixture
def fund(openmarkets_sandbox: SandboxServer) -> SandboxServer:
    """A fund that bought 100 shares today, and sold 40 of them."""
    openmarkets_sandbox.set_accounts([{"accountCode": "FUND1"}, {"accountCode": "FUND2"}])
    openmarkets_sandbox.fill_order(place(), 60)
    openmarkets_sandbox.fill_order(100001)
    openmarkets_sandbox.fill_order(place(side="Sell", orderVolume=40))
    place(accountCode="FUND2")
    return openmarkets_sandbox


def check(**arguments: Any) -> tuple[list[dict[str, Any]], str]:
    """Return the differences and the message."""
    task = OpenmarketsReconciliationCheck(task_id="reconcile", **arguments)
    xcoms = XComs()
    try:
        return task.execute({"ti": xcoms}), ""
    except AirflowFailException:
        raise
    except AirflowException as error:
        return xcoms.get("return_value", []), str(error)


def test_all_agree(fund: SandboxServer):
    assert check() == ([], "")
    assert check(accounts=["FUND1"]) == ([], "")
    assert check(accounts="FUND2") == ([], "")


def test_a_position_that_the_trades_do_not_explain(fund: SandboxServer):
    fund.set_positions("FUND1", [{"securityCode": "BHP", "actualVolume": 61}])
    differences, message = check()
    assert differences == [
        {
            "account_code": "FUND1",
            "exchange": "ASX",
            "security_code": "BHP",
            "order_number": None,
            "field": "actual_volume",
            "reported": 61,
            "by_trades": 60,
        }
    ]
    assert message == (
        "1 difference between orders, trades and positions: FUND1 BHP position: actual_volume is 61, by trades 60."
    )
    assert check(accounts="FUND2") == ([], "")


def test_an_order_without_its_trades(fund: SandboxServer):
    fund.reply("GET", "/oms/trades/by-account/FUND1/v1", body=[])
    differences, message = check()
    assert [(each["order_number"], each["field"]) for each in differences] == [
        ("100002", "done_volume_total"),
        ("100002", "done_value_total"),
        ("100001", "done_volume_total"),
        ("100001", "done_value_total"),
        (None, "actual_volume"),
    ]
    assert "FUND1 BHP order 100002: done_volume_total is 40, by trades 0; " in message
    assert check(do_xcom_push=False) == ([], message)


def test_a_trade_without_its_order(fund: SandboxServer):
    fund.reply("GET", "/oms/orders/by-account/FUND1/v4", body=[])
    differences, _ = check()
    assert [(each["order_number"], each["field"], each["by_trades"]) for each in differences] == [
        ("100001", "order_number", 100),
        ("100002", "order_number", 40),
    ]


def test_trades_of_the_days_before_count_for_their_orders(openmarkets_sandbox: SandboxServer):
    noon = datetime(2026, 3, 5, 12, 30, tzinfo=ZoneInfo("Australia/Sydney"))
    openmarkets_sandbox.set_accounts([{"accountCode": "FUND1"}])
    openmarkets_sandbox.now = noon
    number = place(lifetime="Date", expiryDateTime="2026-03-31T16:00:00")
    openmarkets_sandbox.fill_order(number, 30)
    openmarkets_sandbox.now = noon + timedelta(days=1)
    openmarkets_sandbox.fill_order(number, 20)
    assert check(day="2026-03-06") == ([], "")
    assert check(day=noon.date() + timedelta(days=1)) == ([], "")
    # the positions are those of the next day
    differences, _ = check(day="2026-03-05")
    assert [(each["field"], each["reported"], each["by_trades"]) for each in differences] == [("actual_volume", 50, 60)]


def test_many_differences_are_not_all_in_the_message(openmarkets_sandbox: SandboxServer):
    count = MOST_IN_XCOM + 1
    openmarkets_sandbox.set_accounts([{"accountCode": "FUND1"}])
    positions = [{"securityCode": f"Z{number:04}", "actualVolume": 1} for number in range(1, count + 1)]
    openmarkets_sandbox.set_positions("FUND1", positions)
    differences, message = check()
    assert len(differences) == MOST_IN_XCOM
    assert message.startswith(f"{count} differences between orders, trades and positions: FUND1 ")
    assert message.endswith(f"; and {count - 5} more.")


def test_accounts_and_day_are_templated_and_checked(openmarkets_sandbox: SandboxServer):
    openmarkets_sandbox.set_accounts([{"accountCode": "FUND1"}])
    with DAG("dag", schedule=None):
        task = OpenmarketsReconciliationCheck(
            task_id="reconcile", accounts=["{{ params.account }}"], day="{{ params.day }}"
        )
    task.render_template_fields({"params": {"account": "FUND1", "day": "2026-03-05"}})
    assert task.execute({}) == []
    with pytest.raises(AirflowFailException, match="day must be an ISO 8601 date such as 2026-03-05, not 'today'"):
        check(day="today")
    with pytest.raises(OpenmarketsQueryError, match="accounts"):
        OpenmarketsReconciliationCheck(task_id="reconcile", accounts=[7])


def test_it_can_be_mapped_over_accounts():
    with DAG("dag", schedule=None):
        mapped = OpenmarketsReconciliationCheck.partial(task_id="mapped").expand(accounts=["FUND1", "FUND2"])
    assert mapped.operator_class is OpenmarketsReconciliationCheck
