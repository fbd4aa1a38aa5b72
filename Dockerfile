# `bit serve` in a container (docs/serving.md):
#   docker build -t bit .
#   docker run -p 8000:8000 -v "$PWD/runs/photos:/model:ro" -e BIT_TOKEN bit photos=/model
FROM python:3.12-slim

# The compiler makes the fast operations for the CPU that it runs on, once; without it PyTorch's own are used.
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/* \
 && useradd --uid 10001 --create-home bit
WORKDIR /app
COPY pyproject.toml README.md LICENSE ./
COPY requirements requirements
COPY bigtransfer bigtransfer
RUN pip install --no-cache-dir uv \
 && uv pip install --system --no-cache --compile-bytecode -c requirements/run.txt -c requirements/dev.txt '.[serve,heif]'

USER bit
WORKDIR /home/bit
EXPOSE 8000
HEALTHCHECK --interval=15s --timeout=5s --start-period=60s \
  CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
ENTRYPOINT ["bit", "serve", "--host", "0.0.0.0"]
CMD ["/model"]
