"""Start-up time of `regear --help`, as a user waits for it: median of whole processes."""

import statistics
import subprocess
import sys
import time
from pathlib import Path

from common import finish, parser


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--runs", type=int, default=15)
    arguments = options.parse_args()
    command = [str(Path(sys.executable).with_name("regear")), "--help"]
    times = []
    for _ in range(arguments.runs):
        start = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        times.append(time.perf_counter() - start)
    results = {"seconds": sorted(times), "median": statistics.median(times)}
    finish("startup", arguments, results, f"regear --help: median {results['median']:.3f} s of {arguments.runs}")


if __name__ == "__main__":
    main()
