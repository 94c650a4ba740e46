"""Run the gateway: `python -m gateway --vision HOST:PORT --decoder HOST:PORT`."""

import sys

if __name__ == "__main__":
    from serving.parent import end_with_launcher

    end_with_launcher(sys.argv)  # before the imports that take time

    from gateway import processes
    from gateway.service import GatewayService
    from gateway.settings import GatewaySettings
    from serving.main import main
    from serving.server import Service, run

    def _run(service: Service, settings: GatewaySettings) -> int:
        return run(service, settings) if settings.processes == 1 else processes.run(settings)

    sys.exit(main("gateway", GatewaySettings, GatewayService, run=_run))
