# The vision service: PyTorch, and no ONNX Runtime.
#
#   docker build -f deploy/docker/vision.Dockerfile -t triptych-vision .
#
# On Linux PyPI's PyTorch is the CUDA build, which is gigabytes larger; the CPU build is on PyTorch's own index (its
# installation page has the address): --build-arg PIP_EXTRA_INDEX_URL=…, and that of a CUDA build for a GPU. The image stays
# the same in everything else.

FROM python:3.11-slim-bookworm AS builder
LABEL org.opencontainers.image.title="Triptych vision service, builder stage"
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL=
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
WORKDIR /src
# The dependencies alone first, without any of our own code: this layer lasts until pyproject.toml changes.
COPY pyproject.toml hatch_build.py LICENSE ./
RUN touch README.md && pip install '.[vision]'
COPY protos/vlm protos/vlm
COPY serving serving
COPY vision_service vision_service
RUN pip install --no-deps --force-reinstall .
COPY deploy/docker/prune.sh /prune.sh
RUN /prune.sh /opt/venv

FROM python:3.11-slim-bookworm
ARG VERSION=0.1.0
ARG REVISION=
LABEL org.opencontainers.image.title="Triptych vision service" \
      org.opencontainers.image.description="Images and video in, Qwen3-VL features out, over gRPC." \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
# The owner of /bundle is the owner of an empty named volume that is mounted there.
RUN groupadd --gid 10001 triptych \
 && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin triptych \
 && install -d -o 10001 -g 10001 /bundle
COPY --from=builder /opt/venv /opt/venv
# The root file system may be read-only; whatever a library wants to keep goes to /tmp. Nothing is fetched at run time.
ENV PATH=/opt/venv/bin:$PATH \
    HOME=/tmp \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HF_HUB_OFFLINE=1 \
    VISION_HOST=0.0.0.0 \
    VISION_PORT=50061 \
    VISION_BUNDLE=/bundle \
    VISION_LOG_FORMAT=json
USER 10001:10001
WORKDIR /tmp
EXPOSE 50061
# A large model may load for minutes; one that is ready sooner is healthy sooner.
HEALTHCHECK --interval=10s --timeout=10s --start-period=300s --retries=3 \
    CMD ["python", "-m", "serving.probe", "127.0.0.1:50061", "VISION_"]
ENTRYPOINT ["python", "-m", "vision_service"]
