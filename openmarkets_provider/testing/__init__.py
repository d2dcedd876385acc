"""Tools for the tests of DAGs and of custom stores."""
