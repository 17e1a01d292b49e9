# A server for one trained model, without PyTorch:
#
#     docker build -t fieldmark .
#     docker run --rm -v "$PWD/RUN:/model:ro" -e FIELDMARK_TOKEN -p 8000:8000 fieldmark
#
# /model is a run, a bundle or an exported folder. Options of `fieldmark serve` go behind the image's name.
# HEIC or DICOM: docker build --build-arg EXTRAS='[heic,dicom]' ...
FROM python:3.13-slim AS build
ARG EXTRAS=""
WORKDIR /source
COPY constraints.txt LICENSE pyproject.toml README.md ./
COPY fieldmark fieldmark
RUN python -m venv /opt/fieldmark \
    && /opt/fieldmark/bin/pip install --no-cache-dir --constraint constraints.txt ".${EXTRAS}"

FROM python:3.13-slim
COPY --from=build /opt/fieldmark /opt/fieldmark
RUN useradd --system --uid 10001 --no-create-home --shell /usr/sbin/nologin fieldmark
USER 10001
ENV PATH="/opt/fieldmark/bin:$PATH" PYTHONUNBUFFERED=1 ORT_DISABLE_TELEMETRY=1
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=5s --start-period=20s CMD ["python", "-c", "import http.client as h; c = h.HTTPConnection('127.0.0.1', 8000, timeout=4); c.request('GET', '/health'); raise SystemExit(c.getresponse().status != 200)"]
ENTRYPOINT ["fieldmark", "serve", "/model", "--host", "0.0.0.0"]
