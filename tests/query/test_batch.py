from __future__ import annotations

import pickle
from array import array
from decimal import Decimal, localcontext

from hypothesis import given
from hypothesis import strategies as st

from openmarkets_provider.query.batch import Batch, Scaled, concat, join

UNITS = st.integers(-(2**63), 2**63 - 1)


def scaled(*units: int, decimals: int = 2) -> Scaled:
    return Scaled(array("q", units), decimals)


@given(units=st.lists(UNITS, min_size=1), decimals=st.integers(0, 18))
def test_scaled_numbers_are_the_decimals_with_all_digits(units: list[int], decimals: int):
    numbers = scaled(*units, decimals=decimals)
    with localcontext(prec=2):
        assert [number.as_tuple() for number in numbers] == [exact(unit, decimals).as_tuple() for unit in units]


def exact(unit: int, decimals: int) -> Decimal:
    return Decimal((unit < 0, tuple(map(int, str(abs(unit)))), -decimals))


def test_scaled_numbers_are_a_sequence():
    numbers = scaled(4011, -5, 0)
    assert list(numbers) == [Decimal("40.11"), Decimal("-0.05"), Decimal("0.00")]
    assert (numbers[0], numbers[-1], len(numbers)) == (Decimal("40.11"), Decimal("0.00"), 3)
    assert list(numbers[1:]) == [Decimal("-0.05"), Decimal("0.00")]
    assert list(numbers.take([2, 0])) == [Decimal("0.00"), Decimal("40.11")]
    assert list(pickle.loads(pickle.dumps(numbers))) == list(numbers)


def test_parts_of_a_column_are_joined_and_numbers_keep_their_digits():
    same = join([scaled(1), scaled(2, 3)])
    assert isinstance(same, Scaled)
    assert list(same) == [Decimal("0.01"), Decimal("0.02"), Decimal("0.03")]
    other = join([scaled(1), scaled(2, decimals=3), [None]])
    assert list(map(str, other)) == ["0.01", "0.002", "None"]


def test_batches_with_other_columns_are_put_together():
    both = concat([Batch({"a": [1], "b": scaled(5)}), Batch({"a": [2], "c": [7]})])
    assert both.rows() == [{"a": 1, "b": Decimal("0.05"), "c": None}, {"a": 2, "b": None, "c": 7}]


def test_rows_are_taken_in_the_order_of_their_numbers():
    batch = Batch({"a": [1, 2, 3], "b": scaled(1, 2, 3)})
    assert batch.take([0, 1, 2]) is batch
    assert batch.take([2, 0]).rows() == [{"a": 3, "b": Decimal("0.03")}, {"a": 1, "b": Decimal("0.01")}]
    assert batch.keys(["a"]) == [(1,), (2,), (3,)]
