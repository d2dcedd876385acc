"""The Openmarkets client: sends queries and reads replies. Nothing here imports Airflow."""
