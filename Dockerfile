# One image that runs the whole engine: `docker build -t flashsale . && docker run --init --stop-timeout 25 -p 8080:8080
# -v sale:/data flashsale`. From the same lock as scripts/run; as an ordinary user, so PostgreSQL runs as that one too.
# With FLASHSALE_REDIS_URL, FLASHSALE_DATABASE_URL and FLASHSALE_SECRET set it also runs `flashsale serve` or `worker`.

FROM python:3.11-slim-bookworm AS build
RUN python -m venv /opt/flashsale
COPY requirements.lock /src/
RUN /opt/flashsale/bin/pip install --no-cache-dir --require-hashes --no-deps --only-binary :all: -r /src/requirements.lock
# The code last: a change of it leaves the packages' layer as it is.
COPY pyproject.toml README.md LICENSE /src/
COPY flashsale /src/flashsale
RUN /opt/flashsale/bin/pip install --no-cache-dir --no-deps --no-build-isolation --no-index /src

FROM python:3.11-slim-bookworm
RUN useradd --system --uid 10001 --user-group --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin flashsale \
    && install -d -o flashsale -g flashsale -m 0700 /data
COPY --from=build /opt/flashsale /opt/flashsale
ENV PATH=/opt/flashsale/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    FLASHSALE_HOST=0.0.0.0 \
    FLASHSALE_DATA_DIR=/data
USER flashsale
WORKDIR /data
VOLUME /data
EXPOSE 8080
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=5s --timeout=3s --start-period=60s \
    CMD ["python", "-c", "import os, urllib.request as u; u.urlopen('http://127.0.0.1:' + os.environ.get('FLASHSALE_PORT', '8080') + '/readyz', timeout=2)"]
CMD ["flashsale", "up"]
