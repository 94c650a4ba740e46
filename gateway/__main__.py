"""Run the gateway: `python -m gateway --vision HOST:PORT --decoder HOST:PORT`."""

import sys

if __name__ == "__main__":
    from serving.memory import ending_without_memory
    from serving.parent import end_with_launcher

    end_with_launcher(sys.argv)  # before the imports that take time

    with ending_without_memory("gateway"):
        from gateway.processes import run
        from gateway.service import GatewayService
        from gateway.settings import GatewaySettings
        from serving.main import main

        sys.exit(main("gateway", GatewaySettings, GatewayService, run=run))
