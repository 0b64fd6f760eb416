"""The demo's gateway in a process of its own, so that its share of the CPU is seen and the bench's clock is not in its way."""

import os
import threading

from daemon.demo.gateway import Gateway
from daemon.demo.keys import ApiKeys


def main() -> None:
    keys = ApiKeys(os.environ["BENCH_JWT_SECRET"], os.environ["BENCH_KEY"])
    gateway = Gateway(int(os.environ["BENCH_UPSTREAM"]), keys)
    gateway.start()
    print(f"began {gateway.port}", flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main()
