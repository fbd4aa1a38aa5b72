"""Answers over HTTP (docs/serving.md): a page to drop images on, and an API. Needs the extra `serve`.

What a client sends is bytes of images, and nothing else: no path and no address that it names is ever opened.

    server     connections: addresses, slow clients, signals
    app        HTTP: routes, their schema, errors, the log
    access     who may ask: names of the host, origins, tokens
    requests   images out of a request, within the limits
    service    the models, and how much may be under way at a time
    queue      images of many clients computed together
    metrics    what Prometheus reads
"""
