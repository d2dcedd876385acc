"""Apache Airflow provider for the Openmarkets market data, news and order-management APIs."""

__version__ = "0.1.0"
