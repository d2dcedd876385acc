"""Provider metadata. Airflow reads it in every process, for all providers, so nothing is imported here."""

from __future__ import annotations

from typing import Any

INTEGRATION = "Openmarkets"
CONNECTION_TYPE = "openmarkets"

HIDDEN_FIELDS = ["schema"]
"""Standard connection fields that are not used. The port stays: the Test button of Airflow 3.3.2 needs a stored one
(apache/airflow #73298)."""

RELABELING = {
    "login": "Client ID",
    "password": "Client secret",
    "host": "Identity URL",
    "port": "Identity port",
}

PLACEHOLDERS = {
    "host": "leave empty for Openmarkets' own identity server",
    "port": "that of the URL, else 443: the Test button of Airflow 3.3.2 needs one",
    "login": "issued by Openmarkets on onboarding",
    "password": "issued with the client ID",
}

CONNECTION_FIELDS: dict[str, dict[str, Any]] = {
    "environment": {
        "label": "Environment",
        "description": "Which Openmarkets servers to use: production (the default) or test (stage, UAT).",
        "schema": {
            "type": ["string", "null"],
            "enum": ["production", "test"],
            "values_display": {"production": "Production", "test": "Test (stage, UAT)"},
            "default": "production",
        },
    },
    "scopes": {
        "label": "APIs in your plan",
        "description": "The OAuth scopes in your plan; choose one or more. Empty: all three.",
        "schema": {
            "type": ["array", "null"],
            "items": {"type": "string"},
            "examples": ["market-data-api", "news-api", "oms-api"],
        },
    },
    "timeout": {
        "label": "Timeout (seconds)",
        "description": "Longest time in seconds for one HTTP request, including its whole reply. Default: 30.",
        "schema": {"type": ["number", "null"], "minimum": 1, "maximum": 3600},
    },
    "orders": {
        "label": "Orders",
        "description": "Whether tasks may place, amend and cancel orders: off (the default), test (in the test "
        "environment only) or on. No DAG can allow what this and the next three fields forbid.",
        "schema": {
            "type": ["string", "null"],
            "enum": ["off", "test", "on"],
            "values_display": {"off": "Off", "test": "Test environment only", "on": "On"},
            "section": "Advanced",
        },
    },
    "order_accounts": {
        "label": "Accounts for orders",
        "description": "Account codes, one a line, that orders may be for. Empty: any account.",
        "schema": {"type": ["array", "null"], "items": {"type": "string"}, "section": "Advanced"},
    },
    "max_order_value": {
        "label": "Largest order (dollars)",
        "description": "Most that one order may be worth: volume x price. Empty: no limit.",
        "schema": {"type": ["number", "null"], "exclusiveMinimum": 0, "section": "Advanced"},
    },
    "max_day_value": {
        "label": "Most in a day (dollars)",
        "description": "Most that the orders of one account may be worth on one exchange day, as far as the list of "
        "orders shows them. Empty: no limit.",
        "schema": {"type": ["number", "null"], "exclusiveMinimum": 0, "section": "Advanced"},
    },
    "market_data_url": {
        "label": "Market data URL",
        "description": "Base URL to use instead of the environment's, for a gateway or the sandbox.",
        "schema": {"type": ["string", "null"], "format": "url", "section": "Advanced"},
    },
    "news_url": {
        "label": "News URL",
        "description": "Base URL to use instead of the environment's (whose name is inferred, not documented).",
        "schema": {"type": ["string", "null"], "format": "url", "section": "Advanced"},
    },
    "oms_url": {
        "label": "OMS URL",
        "description": "Base URL to use instead of the environment's, for a gateway or the sandbox.",
        "schema": {"type": ["string", "null"], "format": "url", "section": "Advanced"},
    },
    "ca_bundle": {
        "label": "CA bundle",
        "description": "Path, on every worker, of a PEM file with the trusted certificate authorities, instead of "
        "the default ones. TLS checks can't be turned off.",
        "schema": {"type": ["string", "null"], "section": "Advanced"},
    },
    "client_auth_encoding": {
        "label": "Client authentication encoding",
        "description": "Encoding of id and secret in HTTP Basic: rfc6749 (the default) form-encodes them, as in "
        "OAuth 2.0; raw is for servers that don't decode them.",
        "schema": {
            "type": ["string", "null"],
            "enum": ["rfc6749", "raw"],
            "default": "rfc6749",
            "section": "Advanced",
        },
    },
    # No default: for such a short value in Extra, Airflow logs a warning in every task.
    "cache_backend": {
        "label": "Token cache",
        "description": "Who shares access tokens (encrypted). file (the default): the processes of one host. redis: "
        "all hosts. variable: all hosts, through Airflow Variables. memory: nobody. The option token_store in "
        "airflow.cfg sets another default.",
        "schema": {
            "type": ["string", "null"],
            "enum": ["file", "redis", "variable", "memory"],
            "section": "Advanced",
        },
    },
    "redis_conn_id": {
        "label": "Redis connection",
        "description": "Only with the token cache redis: id of the Airflow connection. Default: redis_default.",
        "schema": {"type": ["string", "null"], "section": "Advanced"},
    },
}
"""The fields of the connection's Extra. The form shows them, and the hook accepts no others."""

TRANSFERS = {
    "Common IO": "openmarkets_to_object_storage",
    "Common SQL": "openmarkets_to_sql",
    "Delta Lake": "openmarkets_to_delta",
    "Iceberg": "openmarkets_to_iceberg",
}
"""The targets of transfers, by the names in Airflow's providers, and their modules."""

CONFIG_OPTIONS: dict[str, dict[str, Any]] = {
    "token_cache_dir": {
        "description": "Directory in which the task processes of a host share access tokens, "
        "encrypted. It must be on a local disk and belong to the user that runs tasks. Empty: "
        "openmarkets_token_cache in AIRFLOW_HOME.",
        "version_added": "0.1.0",
        "type": "string",
        "example": "/var/cache/airflow/openmarkets",
        "default": "",
    },
    "resume_folder": {
        "description": "Folder for the replies that a load has pulled, until its rows have landed. Its next "
        "attempt continues from them. Must be private to the user. Workers of several hosts may share "
        "it. Empty: openmarkets-<user id> in the temporary folder of the host.",
        "version_added": "0.1.0",
        "type": "string",
        "example": "/mnt/shared/openmarkets",
        "default": "",
    },
    "token_store": {
        "description": "Import path of a custom class in which tasks share access tokens, encrypted, "
        "for all connections with an empty cache_backend. Empty: files.",
        "version_added": "0.1.0",
        "type": "string",
        "example": "my_company.stores.VaultStore",
        "default": "",
    },
}
"""The section ``[openmarkets]`` of ``airflow.cfg``."""


def _modules(kind: str, *others: str) -> list[dict[str, Any]]:
    names = [f"openmarkets_provider.{kind}.{name}" for name in ("openmarkets", *others)]
    return [{"integration-name": INTEGRATION, "python-modules": names}]


def get_provider_info() -> dict[str, Any]:
    """Return the metadata, in the form of Airflow's ``provider_info.schema.json``."""
    return {
        "package-name": "airflow-provider-openmarkets",
        "name": "Openmarkets",
        "description": "Openmarkets (ASX) market data, news and order-management APIs.",
        "integrations": [
            {
                "integration-name": INTEGRATION,
                "external-doc-url": "https://dev.openmarkets.com.au/",
                "tags": ["service"],
            },
            # Airflow's providers have no name for it.
            {"integration-name": "Delta Lake", "external-doc-url": "https://delta.io/", "tags": ["software"]},
        ],
        "hooks": _modules("hooks"),
        "operators": [
            *_modules("operators", "orders", "reconciliation"),
            {"integration-name": INTEGRATION, "python-modules": ["openmarkets_provider.checks.completeness"]},
        ],
        "sensors": _modules("sensors"),
        "transfers": [
            {
                "source-integration-name": INTEGRATION,
                "target-integration-name": target,
                "python-module": f"openmarkets_provider.transfers.{module}",
            }
            for target, module in TRANSFERS.items()
        ],
        "triggers": _modules("triggers", "events", "orders"),
        # Since Airflow 3.2.
        "cli": ["openmarkets_provider.cli.get_commands"],
        # Since Airflow 3.4.
        "retry-policies": [
            {"integration-name": INTEGRATION, "python-modules": ["openmarkets_provider.policies.retry"]}
        ],
        "connection-types": [
            {
                "connection-type": CONNECTION_TYPE,
                "hook-class-name": "openmarkets_provider.hooks.openmarkets.OpenmarketsHook",
                "hook-name": "Openmarkets",
                # Since Airflow 3.4.
                "external-services": ["Openmarkets"],
                "ui-field-behaviour": {
                    "hidden-fields": HIDDEN_FIELDS,
                    "relabeling": RELABELING,
                    "placeholders": PLACEHOLDERS,
                },
                "conn-fields": CONNECTION_FIELDS,
            }
        ],
        "config": {
            "openmarkets": {
                "description": "Settings of the Openmarkets provider.",
                "options": CONFIG_OPTIONS,
            }
        },
    }
