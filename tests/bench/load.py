"""Who makes the load? One process a measurement: a job on stdin, `ready` when warm, the outcome after `go`."""

import gc
import sys

import msgspec

from tests.bench.connection import WrongAnswer
from tests.bench.job import Job, Kind
from tests.bench.json_load import CheckLoad, JsonLoad
from tests.bench.stream_load import DisconnectLoad, StreamLoad

_LOADS: dict[Kind, type[JsonLoad | StreamLoad]] = {
    "json": JsonLoad,
    "alone": JsonLoad,
    "check": CheckLoad,
    "check_million": CheckLoad,
    "streams": StreamLoad,
    "disconnect": DisconnectLoad,
}


def main() -> int:
    job = msgspec.json.decode(sys.stdin.buffer.readline(), type=Job)
    load = _LOADS[job.kind](job)
    try:
        load.warm_up()
        gc.freeze()
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        if not sys.stdin.buffer.readline():
            return 1  # the benchmark was ended
        sys.stdout.buffer.write(msgspec.json.encode(load.measure()) + b"\n")
    except (WrongAnswer, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    finally:
        load.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
