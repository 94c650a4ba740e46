# The exporter, with the demo checkpoint: a Hugging Face checkpoint in, a bundle out. Not a server.
#
#   docker build -f deploy/docker/export.Dockerfile -t triptych-export .
#   docker run --rm --user "$(id -u)" -v "$PWD/bundles:/bundles" triptych-export Qwen/Qwen3-VL-4B-Instruct /bundles/4b
#
# docker-compose.yml runs it once to make the demo bundle. About PIP_EXTRA_INDEX_URL see vision.Dockerfile; an export
# needs no GPU.

FROM python:3.11-slim-bookworm AS builder
LABEL org.opencontainers.image.title="Triptych exporter, builder stage"
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL=
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
WORKDIR /src
# The dependencies alone first, without any of our own code: this layer lasts until pyproject.toml changes.
COPY pyproject.toml hatch_build.py LICENSE ./
RUN touch README.md && pip install '.[export]'
COPY protos/vlm protos/vlm
COPY serving serving
# What the encoder's types cost is measured with the services' own code.
COPY vision_service vision_service
COPY decoder_service decoder_service
COPY exporter exporter
COPY triptych triptych
COPY triptych_cli triptych_cli
COPY demo demo
RUN pip install --no-deps --force-reinstall .
COPY deploy/docker/prune.sh /prune.sh
RUN /prune.sh /opt/venv

FROM python:3.11-slim-bookworm
ARG VERSION=0.1.0
ARG REVISION=
LABEL org.opencontainers.image.title="Triptych exporter" \
      org.opencontainers.image.description="Makes the bundle that Triptych serves from a Qwen3-VL checkpoint." \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
# The owner of /bundle is the owner of an empty named volume that is mounted there.
RUN groupadd --gid 10001 triptych \
 && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin triptych \
 && install -d -o 10001 -g 10001 /bundle
COPY --from=builder /opt/venv /opt/venv
COPY deploy/docker/demo_bundle.py /opt/triptych/demo_bundle.py
# The published builds of ONNX Runtime report how they are used unless they are told not to.
ENV PATH=/opt/venv/bin:$PATH \
    HOME=/tmp \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    ORT_DISABLE_TELEMETRY=1
USER 10001:10001
WORKDIR /tmp
ENTRYPOINT ["python", "-m", "triptych_cli", "export"]
