"""Random operations under sanitizers: no crash, no leak, no more bytes than the cap."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

NATIVE = Path(__file__).parents[2] / "native"
COMPILERS = (os.environ.get("CXX"), "c++", "g++", "clang++")


@pytest.fixture(scope="module")
def fuzz(tmp_path_factory):
    compiler = next(filter(None, map(shutil.which, filter(None, COMPILERS))), None)
    if compiler is None:
        pytest.skip("no C++ compiler")
    program = tmp_path_factory.mktemp("fuzz") / "fuzz"
    flags = ["-std=c++17", "-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-Wall", "-Werror"]
    subprocess.run([compiler, *flags, NATIVE / "fuzz.cpp", NATIVE / "index.cpp", "-o", program], check=True)
    return program


def perform(program, seed, operations):
    done = subprocess.run([program, str(seed), str(operations)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout == f"{operations} operations\n"


def test_random_operations(fuzz):
    perform(fuzz, 0, 200_000)


@pytest.mark.slow
def test_ten_million_operations(fuzz):
    perform(fuzz, 1, 10_000_000)
