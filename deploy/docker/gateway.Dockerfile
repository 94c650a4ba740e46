# The gateway: neither PyTorch nor ONNX Runtime; it holds no model.
#
#   docker build -f deploy/docker/gateway.Dockerfile -t triptych-gateway .

FROM python:3.11-slim-bookworm AS builder
LABEL org.opencontainers.image.title="Triptych gateway, builder stage"
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
WORKDIR /src
# The dependencies alone first, without any of our own code: this layer lasts until pyproject.toml changes.
COPY pyproject.toml hatch_build.py LICENSE ./
RUN touch README.md && pip install '.[gateway]'
COPY protos/vlm protos/vlm
COPY serving serving
COPY gateway gateway
RUN pip install --no-deps --force-reinstall .
COPY deploy/docker/prune.sh /prune.sh
RUN /prune.sh /opt/venv

FROM python:3.11-slim-bookworm
ARG VERSION=0.1.0
ARG REVISION=
LABEL org.opencontainers.image.title="Triptych gateway" \
      org.opencontainers.image.description="The front door of Triptych: Qwen3-VL over gRPC and HTTP." \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
RUN groupadd --gid 10001 triptych \
 && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin triptych
COPY --from=builder /opt/venv /opt/venv
# The root file system may be read-only; whatever a library wants to keep goes to /tmp.
ENV PATH=/opt/venv/bin:$PATH \
    HOME=/tmp \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    GATEWAY_HOST=0.0.0.0 \
    GATEWAY_PORT=50051 \
    GATEWAY_HTTP_PORT=8080 \
    GATEWAY_LOG_FORMAT=json
USER 10001:10001
WORKDIR /tmp
EXPOSE 50051 8080
# It serves once both tiers have answered, and they may load for minutes.
HEALTHCHECK --interval=10s --timeout=10s --start-period=300s --retries=3 \
    CMD ["python", "-m", "serving.probe", "127.0.0.1:50051", "GATEWAY_"]
ENTRYPOINT ["python", "-m", "gateway"]
