"""Run the gateway: `python -m gateway --vision HOST:PORT --decoder HOST:PORT`."""

import sys

from gateway.service import GatewayService
from gateway.settings import GatewaySettings
from serving.main import main

if __name__ == "__main__":
    sys.exit(main("gateway", GatewaySettings, GatewayService))
