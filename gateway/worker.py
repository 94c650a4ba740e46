"""One of several processes of the gateway, as `gateway.processes` starts it: settings as JSON on stdin.

It prints its port when it serves.
"""

import sys

if __name__ == "__main__":
    from serving.memory import ending_without_memory
    from serving.parent import end_with_launcher

    end_with_launcher(sys.argv)  # before the imports that take time

    with ending_without_memory("gateway"):
        import json

        from gateway.service import GatewayService
        from gateway.settings import GatewaySettings
        from serving.server import run

        settings = GatewaySettings(**json.load(sys.stdin))
        sys.exit(run(GatewayService(settings), settings, on_listening=lambda port: print(port, flush=True)))  # noqa: T201
