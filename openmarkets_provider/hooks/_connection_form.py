"""The connection form for Airflow before 3.2, which does not read the declared fields."""

from __future__ import annotations

from typing import Any

from openmarkets_provider.get_provider_info import CONNECTION_FIELDS


def make_form_widgets() -> dict[str, Any]:
    """Return a WTForms field for each field of the connection's Extra, by name."""
    from flask_appbuilder.fieldwidgets import BS3TextFieldWidget
    from wtforms import IntegerField, StringField
    from wtforms.validators import Optional

    widgets = {}
    for name, field in CONNECTION_FIELDS.items():
        schema = field["schema"]
        options = schema.get("enum") or schema.get("examples")
        hint = f" Allowed: {', '.join(options)}." if options else ""
        kind = IntegerField if "number" in schema["type"] else StringField
        widgets[name] = kind(
            field["label"],
            widget=BS3TextFieldWidget(),
            validators=[Optional()],
            description=field["description"] + hint,
        )
    return widgets
