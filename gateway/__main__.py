"""Run the gateway: `python -m gateway --vision HOST:PORT --decoder HOST:PORT`."""

import sys

from gateway import processes
from gateway.service import GatewayService
from gateway.settings import GatewaySettings
from serving.main import main
from serving.server import Service, run


def _run(service: Service, settings: GatewaySettings) -> int:
    return run(service, settings) if settings.processes == 1 else processes.run(settings)


if __name__ == "__main__":
    sys.exit(main("gateway", GatewaySettings, GatewayService, run=_run))
