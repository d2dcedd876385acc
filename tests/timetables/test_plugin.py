"""What Airflow finds through the plugin."""

from __future__ import annotations

import pytest

from tests.support.versions import moved

plugins_manager = moved("airflow.sdk.plugins_manager", "airflow.plugins_manager")
macros = moved("airflow.sdk.execution_time.macros", "airflow.macros")


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{{ macros.openmarkets.previous_session('2026-04-07') }}", "2026-04-02"),
        ("{{ macros.openmarkets.next_session('2026-04-02') }}", "2026-04-07"),
        ("{{ macros.openmarkets.session_offset('2026-04-07', -2) }}", "2026-04-01"),
        (
            "{{ macros.openmarkets.sessions_in_range('2026-04-01', '2026-04-07') | join(' ') }}",
            "2026-04-01 2026-04-02 2026-04-07",
        ),
        ("{{ macros.openmarkets.count_sessions('2026-04-01', '2026-04-30') }}", "20"),
        ("{{ macros.openmarkets.is_session('2026-04-03') }}", "False"),
        ("{{ macros.openmarkets.is_half_day('2026-12-24') }}", "True"),
        ("{{ macros.openmarkets.session_open('2026-04-07') }}", "2026-04-07 10:00:00+10:00"),
        ("{{ macros.openmarkets.session_close('2026-12-24') }}", "2026-12-24 14:10:00+11:00"),
    ],
)
def test_templates_have_the_calendar(template: str, text: str) -> None:
    plugins_manager.integrate_macros_plugins()
    from jinja2 import Environment, StrictUndefined

    assert Environment(undefined=StrictUndefined).from_string(template).render(macros=macros) == text
