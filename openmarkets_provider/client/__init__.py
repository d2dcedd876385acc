"""The Openmarkets client: everything from a query to the wire and back. Nothing here imports Airflow."""
