# The web page on a CPU, for visitors of this machine alone:
#
#   docker build -t quantface .
#   docker run --rm -p 127.0.0.1:7860:7860 -v quantface:/home/quantface/.cache quantface
#
# Other commands write as user 1000:
#
#   docker run --rm -v "$PWD:/data" -v quantface:/home/quantface/.cache -w /data quantface \
#       restore -i photos -o results
#
# It has what restoring with shipped and exported models needs (docs/small_installation.md), and
# neither PyTorch nor BasicSR.
FROM python:3.13-slim-bookworm

RUN useradd --create-home --uid 1000 quantface \
    # The cache exists before it is mounted, so that a volume in its place belongs to this user.
    && install --directory --owner quantface /home/quantface/.cache

WORKDIR /opt/quantface
COPY requirements-runtime.txt ./
RUN pip install --no-cache-dir -r requirements-runtime.txt "gradio>=6.31,<7" "av>=17.1"
COPY pyproject.toml setup.py README.md LICENSE ./
COPY quantface_arch quantface_arch
RUN pip install --no-cache-dir --no-deps .

USER 1000
WORKDIR /home/quantface
EXPOSE 7860
HEALTHCHECK --interval=30s --timeout=5s --start-period=120s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:7860/')"]
ENTRYPOINT ["quantface"]
CMD ["app", "--host", "0.0.0.0", "--offline"]
