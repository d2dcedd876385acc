from __future__ import annotations

import subprocess
import sys

import pytest

PROCESSES = 12
THREADS = 8
FIRST_DECODING = f"""
import sys, threading
from openmarkets_provider.client.auth.token import Token, TokenEntry
from openmarkets_provider.client.cache.clock import now
from openmarkets_provider.client.cache.crypto import EntryCipher
from openmarkets_provider.client.ratelimit.hold import Hold

def decode():
    start.wait()
    for value, data in entries:
        assert cipher.decrypt("key", data, type(value)) == value

cipher, moment = EntryCipher("secret"), now()
values = [Hold(moment, 5.0), TokenEntry(moment, Token("value", "scope", moment, 3600.0))]
if sys.argv[1] == "TokenEntry":
    values.reverse()
entries = [(value, cipher.encrypt("key", value)) for value in values]
sys.setswitchinterval(1e-6)
start = threading.Barrier({THREADS})
threads = [threading.Thread(target=decode) for _ in range({THREADS})]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""


@pytest.mark.parametrize("first", ["Hold", "TokenEntry"])
def test_the_threads_of_a_new_process_may_decode_at_the_same_time(first: str):
    command = [sys.executable, "-c", FIRST_DECODING, first]
    for _ in range(PROCESSES):
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
