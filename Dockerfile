# syntax=docker/dockerfile:1
# Stages: base (what both share), cpu (tiny profile), gpu (exact profile).
#   docker build --target gpu -t flux-pulid:gpu .
# No model file is inside; they come from a volume at /models. The server listens on all of the container's
# addresses, so it starts only with API keys, or with FLUX_PULID_AUTH=none in so many words.

FROM python:3.12-slim-bookworm AS base
# opencv-python loads libGL and glib.
RUN apt-get update \
    && apt-get install -y --no-install-recommends libgl1 libglib2.0-0 \
    && rm -rf /var/lib/apt/lists/*
RUN useradd --system --uid 10001 --user-group flux \
    && install -d -o flux -g flux /models /data
# HOME is where libraries keep their caches (numba, matplotlib, triton): on the volume, as the root may be read-only.
ENV HOME=/data \
    PYTHONUNBUFFERED=1 \
    PIP_NO_CACHE_DIR=1 \
    FLUX_PULID_HOST=0.0.0.0 \
    FLUX_PULID_DATA_DIR=/data/jobs \
    FLUX_PULID_WEIGHTS_DIR=/models
WORKDIR /app
COPY configs/constraints.txt configs/constraints.txt
COPY pyproject.toml README.md LICENSE NOTICE ./
COPY server server
COPY pulid pulid
COPY weights weights
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=300s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=3)"]
CMD ["flux-pulid", "serve"]

FROM base AS cpu
# The extra index has the CPU builds of the pinned torch and torchvision; without it pip takes 3 GB of CUDA.
RUN pip install --extra-index-url https://download.pytorch.org/whl/cpu -c configs/constraints.txt '.[tiny]'
ENV FLUX_PULID_PROFILE=tiny
USER flux

FROM base AS gpu
# torch from PyPI brings its CUDA libraries; the host gives the driver through the NVIDIA container toolkit.
RUN pip install -c configs/constraints.txt .
ENV FLUX_PULID_PROFILE=exact \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER flux
