"""One of several processes of the gateway, as `gateway.processes` starts it: settings as JSON on stdin.

It prints its port when it serves.
"""

import json
import sys

from gateway.service import GatewayService
from gateway.settings import GatewaySettings
from serving.server import run

if __name__ == "__main__":
    settings = GatewaySettings(**json.load(sys.stdin))
    sys.exit(run(GatewayService(settings), settings, on_listening=lambda port: print(port, flush=True)))  # noqa: T201
