# The web page on a CPU, for visitors of this machine alone:
#
#   docker build -t quantface .
#   docker run --rm -p 127.0.0.1:7860:7860 -v quantface:/home/quantface/.cache quantface
#
# Other commands: docker run --rm -v "$PWD:/data" -w /data quantface restore -i photos -o results
#
# PyTorch's packages with CUDA take 5 GB. --build-arg TORCH_INDEX=URL names the package index of its
# packages for CPUs, which take 0.2 GB.
FROM python:3.11-slim-bookworm

# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends libgl1 libglib2.0-0 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 quantface \
    # The cache exists before it is mounted, so that a volume in its place belongs to this user.
    && install --directory --owner quantface /home/quantface/.cache

WORKDIR /opt/quantface
COPY pyproject.toml setup.py README.md LICENSE requirements-tested.txt ./
COPY quantface_arch quantface_arch
ARG TORCH_INDEX=""
# The tests run with a Pillow that Gradio does not take.
RUN grep -v "^pillow==" requirements-tested.txt > constraints.txt \
    && pip install --no-cache-dir --constraint constraints.txt \
    ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} ".[app]"

USER 1000
WORKDIR /home/quantface
EXPOSE 7860
HEALTHCHECK --interval=30s --timeout=5s --start-period=120s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:7860/')"]
ENTRYPOINT ["quantface"]
CMD ["app", "--host", "0.0.0.0", "--offline"]
