# The decoder service: ONNX Runtime, and no PyTorch.
#
#   docker build -f deploy/docker/decoder.Dockerfile -t triptych-decoder .

FROM python:3.11-slim-bookworm AS builder
LABEL org.opencontainers.image.title="Triptych decoder service, builder stage"
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
WORKDIR /src
# The dependencies alone first, without any of our own code: this layer lasts until pyproject.toml changes.
COPY pyproject.toml hatch_build.py LICENSE ./
RUN touch README.md && pip install '.[decoder]'
COPY protos/vlm protos/vlm
COPY serving serving
COPY decoder_service decoder_service
RUN pip install --no-deps --force-reinstall .
COPY deploy/docker/prune.sh /prune.sh
RUN /prune.sh /opt/venv

FROM python:3.11-slim-bookworm
ARG VERSION=0.1.0
ARG REVISION=
LABEL org.opencontainers.image.title="Triptych decoder service" \
      org.opencontainers.image.description="Messages and Qwen3-VL features in, text out, over gRPC." \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
# The owner of a directory here is the owner of an empty named volume that is mounted there. In /var/cache/triptych the
# engine keeps what it has measured of the machine; without a volume it measures anew at each start.
RUN groupadd --gid 10001 triptych \
 && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin triptych \
 && install -d -o 10001 -g 10001 /bundle /var/cache/triptych
COPY --from=builder /opt/venv /opt/venv
# The root file system may be read-only; whatever a library wants to keep goes to /tmp. Nothing is fetched at run time,
# and nothing is sent: the published builds of ONNX Runtime report how they are used unless they are told not to.
ENV PATH=/opt/venv/bin:$PATH \
    HOME=/tmp \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HF_HUB_OFFLINE=1 \
    ORT_DISABLE_TELEMETRY=1 \
    DECODER_HOST=0.0.0.0 \
    DECODER_PORT=50062 \
    DECODER_BUNDLE=/bundle \
    DECODER_CACHE_DIR=/var/cache/triptych \
    DECODER_LOG_FORMAT=json
USER 10001:10001
WORKDIR /tmp
EXPOSE 50062
# A large model may load for minutes; one that is ready sooner is healthy sooner.
HEALTHCHECK --interval=10s --timeout=10s --start-period=300s --retries=3 \
    CMD ["python", "-m", "serving.probe", "127.0.0.1:50062", "DECODER_"]
ENTRYPOINT ["python", "-m", "decoder_service"]
