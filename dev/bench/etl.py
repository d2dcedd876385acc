"""The benchmark of loads: many securities' daily rows into a Parquet file. See :mod:`dev.bench`.

The server and its latency are those of :mod:`dev.bench.bulk`. The figures include query, rows and file, but not
Airflow's own work.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path

import httpx

from dev.bench.bulk import CONCURRENCY, FEW, LATENCY, MANY, ROUNDS, SECURITIES, YEAR, connect, turns
from tests.support.bulk_server import BulkServer
from tests.support.figures import ratios, show
from tests.support.postgres import Postgres

PROCESS_ROUNDS = 3

# A task: `work` lands the rows of some securities in a file. It runs twice, because the first run includes imports.
TASK = """
import sys, time
import airflow.sdk
path, number, start, end = sys.argv[1:]
codes = ["C%04d" % each for each in range(int(number))]
{work}
def peak():
    # Not getrusage: its figure begins with the peak of the process that started this one.
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
for _ in range(2):
    cpu, wall = time.process_time(), time.monotonic()
    work()
    print("cost", time.process_time() - cpu, time.monotonic() - wall, peak() / 1024)
"""
OURS = """
def work():
    from openmarkets_provider import queries
    from openmarkets_provider.hooks.openmarkets import OpenmarketsHook
    from openmarkets_provider.landing.formats import choose_format
    from openmarkets_provider.landing.layout import layout_of
    hook = OpenmarketsHook()
    query = queries.time_series(codes, start=start, end=end)
    layout = layout_of(query)
    with open(path, "wb") as file:
        writer = choose_format("parquet", "infer", path).open(file, layout)
        for batch in hook.stream_columns(query):
            writer.write(layout.values(batch))
        writer.close()
    hook.close()
"""
INTO_SQL = """
def work():
    import os, sqlalchemy
    from openmarkets_provider import queries
    from openmarkets_provider.hooks.openmarkets import OpenmarketsHook
    from openmarkets_provider.landing.table_destination import TableDestination
    engine = sqlalchemy.create_engine(os.environ["BENCH_DATABASE"], poolclass=sqlalchemy.pool.NullPool)
    hook = OpenmarketsHook()
    TableDestination(engine, "bars", conn_id="bench", mode="upsert").land(
        hook, queries.time_series(codes, start=start, end=end)
    )
    hook.close()
"""
# A usual DAG: one security after the other, native prices as floats, dates as text. It gets the token for free.
USUAL = """
def work():
    import os
    import pandas
    from airflow.providers.http.hooks.http import HttpHook
    headers = {"Authorization": os.environ["TOKEN"], "Accept": "application/json"}
    params = {"frequency": "Daily", "dateFrom": start, "dateTo": end}
    http = HttpHook(method="GET", http_conn_id="bulk_http")
    bars = []
    for code in codes:
        reply = http.run("pricing/timeseries/%s.ASX@TM/v2" % code, data=params, headers=headers)
        bars.extend({"securityCode": code, **bar} for bar in reply.json())
    pandas.DataFrame(bars).to_parquet(path)
"""


def etl() -> None:
    """Run the benchmarks of loads and print their figures; ``AIRFLOW_HOME`` is set."""
    with BulkServer(LATENCY) as server, tempfile.TemporaryDirectory() as folder:
        connect(server)
        added_work(server, Path(folder))
        whole_tasks(Path(folder))
        memory(Path(folder) / "memory.parquet")


def added_work(server: BulkServer, folder: Path) -> None:
    """Compare a load with its stream, and with a plain loop that only pulls the data."""
    from openmarkets_provider import queries
    from openmarkets_provider.hooks.openmarkets import OpenmarketsHook
    from openmarkets_provider.landing.formats import choose_format
    from openmarkets_provider.landing.layout import layout_of

    codes = [f"C{number:04d}" for number in range(SECURITIES)]
    query = queries.time_series(codes, start=YEAR[0], end=YEAR[1])
    layout, parquet = layout_of(query), choose_format("parquet", "infer", None)
    hook = OpenmarketsHook(concurrency=CONCURRENCY)
    os.environ["TOKEN"] = f"Bearer {hook.get_access_token('market-data-api')}"
    headers = {"Authorization": os.environ["TOKEN"], "Accept": "application/json"}
    paths = [f"pricing/timeseries/{code}.ASX@TM/v2" for code in codes]
    params = {"frequency": "Daily", "dateFrom": YEAR[0], "dateTo": YEAR[1]}

    def load() -> None:
        with (folder / "added.parquet").open("wb") as file:
            writer = parquet.open(file, layout)
            for batch in hook.stream_columns(query):
                writer.write(layout.values(batch))
            writer.close()

    def stream() -> int:
        return sum(len(batch) for batch in hook.stream(query))

    # As in dev/bench/bulk.py: prices stay native floats and dates stay text.
    def bare() -> int:
        with ThreadPoolExecutor(CONCURRENCY) as pool:
            return sum(pool.map(lambda path: len(client.get(path, params=params).json()), paths))

    with httpx.Client(base_url=server.url, headers=headers, trust_env=False) as client:
        load()
        count = stream()
        assert bare() == count
        loads, streams, plain = zip(*(turns([load, stream, bare], number) for number in range(ROUNDS)), strict=True)
    hook.close()
    print(f"\nDaily rows of {SECURITIES} securities for a year ({count} rows), {1e3 * LATENCY:.0f} ms latency")
    cpu = [each.cpu for each in loads]
    show("into a Parquet file / hook.stream alone, CPU", ratios(cpu, [each.cpu for each in streams]), "goal <= 1.25")
    show("into a Parquet file / bare httpx in threads and no file, CPU", ratios(cpu, [each.cpu for each in plain]))
    show("into a Parquet file, CPU in s", cpu)
    show("into a Parquet file, rows/s", [count / each.wall for each in loads], digits=0)


def whole_tasks(folder: Path) -> None:
    """Compare a load with usual code without this package, each in a new process, as tasks are."""
    landed, usual = folder / "landed.parquet", folder / "usual.parquet"
    pairs = [(task(OURS, landed), task(USUAL, usual)) for _ in range(PROCESS_ROUNDS)]
    check(landed, usual)
    print("\nThe same rows into a Parquet file / by apache HttpHook in sequence and pandas, in fresh processes")
    # A task pays for its imports. The second run shows the cost without them, as in a long task.
    for when, words, cpu_goal, wall_goal in (
        (0, "with all that is imported", "goal <= 0.5", "goal <= 0.13"),
        (1, "once more in the same process", "", ""),
    ):
        for what, name, goal in ((0, "CPU", cpu_goal), (1, "wall", wall_goal), (2, "peak memory", "")):
            figures = [ours[when][what] / theirs[when][what] for ours, theirs in pairs]
            show(f"{words}, {name}", figures, goal)


def memory(path: Path) -> None:
    """Compare the peak memory of new processes that land few and many securities, in a file and in a table."""
    with Postgres() as server:
        os.environ["BENCH_DATABASE"] = server.url("postgres", "psycopg")
        for work, words in ((OURS, "as Parquet"), (INTO_SQL, "in a table of PostgreSQL")):
            few, many = ([task(work, path, number)[0][2] for _ in range(PROCESS_ROUNDS)] for number in (FEW, MANY))
            print(f"\nPeak memory of a process that lands a year's daily rows {words}, in MiB")
            show(f"{MANY} securities / {FEW} securities, {words}", ratios(many, few), "goal <= 1.1")
            show(f"{FEW} securities", few, digits=1)
            show(f"{MANY} securities", many, digits=1)


def task(work: str, path: Path, securities: int = SECURITIES) -> list[list[float]]:
    """Return CPU and wall seconds and the peak memory in MiB so far, for the first and second run."""
    command = [sys.executable, "-c", TASK.format(work=work), str(path), str(securities), *YEAR]
    lines = subprocess.check_output(command, text=True).splitlines()
    # Airflow logs to the standard output, too.
    return [[float(figure) for figure in line.split()[1:]] for line in lines if line.startswith("cost ")]


def check(landed: Path, usual: Path) -> None:
    """Check that both files have the same contents."""
    import pyarrow.parquet as pq

    rows, bars = (pq.read_table(path).to_pylist() for path in (landed, usual))
    assert len(rows) == len(bars) > SECURITIES
    for row, bar in zip(rows, bars, strict=True):
        assert row["security_code"] == bar["securityCode"]
        assert row["time_series_date"].isoformat() == bar["timeSeriesDate"]
        for name, api_name in (("close_price", "closePrice"), ("market_vwap", "marketVwap")):
            assert row[name] == Decimal(str(bar[api_name])) / 100
