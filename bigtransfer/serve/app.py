"""HTTP: routes, their schema, errors as JSON, a line of the log for each request."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import functools
import re
import secrets
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from fastapi import Depends, FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from fastapi.security import HTTPBearer
from pydantic import BaseModel, ConfigDict, Field
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bigtransfer import __version__, page
from bigtransfer.config import seconds
from bigtransfer.detections import Found, ObjectFinder
from bigtransfer.limits import limits
from bigtransfer.predictor import Prediction
from bigtransfer.serve import log, requests
from bigtransfer.serve.access import Access
from bigtransfer.serve.refusals import Refusal
from bigtransfer.serve.service import FAILED, Model, Service

if TYPE_CHECKING:
    from bigtransfer.evals.explanation import Explanation  # which loads torch

T = TypeVar("T")

# --- What is answered


class Problem(BaseModel):
    """Why a request was not answered."""

    error: str = Field(description="In words.")
    code: str = Field(description="In a word.")
    request_id: str = Field(description="As in the log and in the header X-Request-ID.")


class Class(BaseModel):
    label: str
    probability: float = Field(ge=0, le=1)


class Box(BaseModel):
    """An object that a detector found."""

    label: str
    score: float = Field(ge=0, le=1)
    box: list[float] = Field(
        min_length=4,
        max_length=4,
        description="Left, top, right, bottom, px of the upright image, from its upper left corner.",
    )


class Answer(BaseModel):
    """What is on an image, or why that cannot be said: as a line of `bit predict --format jsonl`, of a detector of `bit detect predict`."""

    image: str = Field(description="The file's name as it was sent.")
    label: str | None = Field(default=None, description="The most probable class.")
    probability: float | None = Field(default=None, ge=0, le=1)
    labels: list[str] | None = Field(
        None, description="Of a multi-label model: the classes that reach their thresholds."
    )
    top: list[Class] | None = Field(default=None, description="The most probable classes, the first one first.")
    probabilities: dict[str, float] | None = Field(default=None, description="Of every class, if asked for.")
    width: int | None = Field(default=None, description="Of the upright image, px; of a detector.")
    height: int | None = Field(default=None, description="The same.")
    objects: list[Box] | None = Field(default=None, description="Of a detector: what it found, the best first.")
    error: str | None = Field(default=None, description="Why the image cannot be read; then nothing else is there.")


class Answers(BaseModel):
    model: str
    predictions: list[Answer] = Field(description="One for each image, in their order.")


class Unanswered(Problem):
    """No image of the request could be answered."""

    model: str | None = None
    predictions: list[Answer] | None = None


class Served(BaseModel):
    """A model."""

    name: str
    ready: bool
    classes: list[str] | None = Field(default=None, description="By class number; as soon as it is ready.")
    task: Literal["classification", "detection"] | None = Field(
        default=None, description="detection: it says where objects are."
    )
    multi_label: bool | None = Field(default=None, description="Whether an image may have several classes, or none.")
    thresholds: list[float] | None = Field(
        default=None, description="Of a multi-label model or a detector, by class number."
    )
    image_size: int | None = Field(
        default=None, description="Height and width that it sees, px. Images of every size are taken."
    )


class Models(BaseModel):
    models: list[Served] = Field(description="The first one answers where none is named.")
    limits: dict[str, int] = Field(description="Of a request: images, and bytes in all.")


class State(BaseModel):
    status: str
    models: dict[str, bool] | None = Field(default=None, description="Whether each is ready.")


class Options(BaseModel):
    """Of a request for predictions; others are errors, as a misspelt one would go unnoticed."""

    model_config = ConfigDict(extra="forbid")

    model: str | None = Field(default=None, description="Default: the first one.")
    top_k: int | None = Field(default=None, ge=1, le=1_000_000, description="How many classes to give for each image.")
    probabilities: bool = Field(default=False, description="Also give the probability of every class.")
    threshold: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Of a detector: least score of an object. Default: the model's own of each class.",
    )


class Explained(BaseModel):
    """Of a request for an explanation."""

    model_config = ConfigDict(extra="forbid")

    model: str | None = Field(default=None, description="Default: the first one.")
    label: str | None = Field(default=None, description="The class; default: the most probable one.")
    against: str | None = Field(
        default=None, description="Another class: why it is rather `label`. Default: `label` by itself."
    )


class Map(BaseModel):
    """Which parts of an image speak for a class."""

    model: str
    label: str
    against: str | None = None
    logit: float = Field(description="Of the class, or by how much it is above the other's.")
    exact: bool = Field(
        description="The parts add up to the logit; false: the head is not linear, and they are of its gradient."
    )
    png: str = Field(description="Base64 of a picture: grey, orange where it speaks for the class, blue where against.")


_SECURE = HTTPBearer(auto_error=False, description="One of the tokens that the server was started with.")


def create(service: Service, access: Access, *, failed: Callable[[], None] = lambda: None) -> FastAPI:
    """The application. failed: called when a model cannot be loaded, with `service.failure` set."""

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with service.running(failed):
            yield

    app = FastAPI(
        title="bit serve",
        summary="What is on images, by models of Big Transfer.",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,  # these pages load scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
        openapi_url=None,  # below, as it needs the token
        generate_unique_id_function=lambda route: route.name,
    )
    if service.config.cors:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=service.config.cors,
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type", "X-Request-ID"],
            expose_headers=["X-Request-ID", "Retry-After"],
        )
    app.add_middleware(_Door, service=service, access=access)  # the outermost, as it is added last
    app.add_exception_handler(Refusal, _refused)
    app.add_exception_handler(HTTPException, _refused)
    app.add_exception_handler(RequestValidationError, _refused)

    async def allowed(request: Request) -> None:
        access.check_token(request.headers.get("authorization"))

    async def unambiguous(request: Request) -> None:
        named = [name for name, _ in request.query_params.multi_items()]
        if twice := next((name for name in named if named.count(name) > 1), None):
            raise Refusal(
                422, "option", f"The option {twice[:80]!r} is given {named.count(twice)} times; give it once."
            )

    secured = [
        Depends(allowed),
        Depends(unambiguous),
        *([Depends(_SECURE)] if access.needs_token else []),
    ]  # the latter is for the schema

    async def received(
        request: Request, model: Model, at_most: int, answer: Callable[[list[requests.Upload]], Coroutine[Any, Any, T]]
    ) -> T:
        """What `answer` makes of the images that the request brings, within the limits."""
        _ = model.predictor  # refused before anything is read
        service.check_room()
        with service.room() as take:
            try:
                async with asyncio.timeout(seconds(service.config.timeout)):
                    uploads = await requests.read(request, at_most=at_most, take=take)
            except TimeoutError:
                raise Refusal(
                    408, "slow_client", f"The request was not whole after {service.config.timeout}."
                ) from None
            sizes = [len(each.data) for each in uploads]
            request.state.noted |= {"model": model.name, "images": len(sizes), "bytes": sum(sizes)}
            return await _unless_left(request, answer(uploads))

    @app.post(
        "/predict",
        dependencies=secured,
        summary="What is on images",
        responses={
            200: {"model": Answers, "description": "Answers; images that cannot be read have an `error`."},
            **_problems(400, 401, 408, 413, 415, 429, 500, 503),
            404: {"model": Problem, "description": "No model of that name."},
            422: {"model": Unanswered, "description": "A wrong option, or no image that can be read."},
        },
        openapi_extra=_body({"type": "array", "minItems": 1, "items": _FILE}),
    )
    async def predict(request: Request, options: Annotated[Options, Query()]) -> JSONResponse:
        """Send a file for each image as multipart/form-data, or the bytes of one image as the whole body."""
        model = service.model(options.model)
        _check_options(model, options)
        found = await received(request, model, service.config.max_images, functools.partial(service.answers, model))
        answers = [
            each.record(options.threshold)
            if isinstance(each, Found)
            else each.record(options.top_k or service.config.top_k, probabilities=options.probabilities)
            for each in found
        ]
        content: dict[str, Any] = {"model": model.name, "predictions": answers}
        if all(prediction.error is not None for prediction in found):
            return _none_answered(request, found, content)
        return JSONResponse(content)

    @app.post(
        "/explain",
        dependencies=secured,
        summary="Which parts of an image speak for a class",
        responses={
            **_problems(400, 401, 408, 413, 415, 429, 503),
            404: {"model": Problem, "description": "No model of that name."},
            422: {
                "model": Problem,
                "description": "A wrong option, no image that can be read, or a model without such parts.",
            },
        },
        openapi_extra=_body(_FILE),
        response_model_exclude_none=True,
    )
    async def explain(request: Request, options: Annotated[Explained, Query()]) -> Map:
        """Send one image as for /predict."""
        model = service.model(options.model)

        async def answer(uploads: list[requests.Upload]) -> tuple[Explanation, bytes]:
            return await service.explained(model, uploads[0], options.label, options.against)

        explanation, picture = await received(request, model, 1, answer)
        return Map(
            model=model.name,
            label=explanation.label,
            against=explanation.against,
            logit=explanation.logit,
            exact=explanation.exact,
            png=base64.b64encode(picture).decode("ascii"),
        )

    @app.get(
        "/models",
        dependencies=secured,
        summary="The models",
        responses=_problems(401),
        response_model_exclude_none=True,
    )
    async def models() -> Models:
        limit = {"images": service.config.max_images, "bytes": limits().request_bytes}
        return Models(models=[_described(model) for model in service.models.values()], limits=limit)

    @app.get("/openapi.json", include_in_schema=False, dependencies=secured)
    async def openapi() -> JSONResponse:
        return JSONResponse(app.openapi())

    @app.get(
        "/metrics",
        dependencies=secured,
        summary="Numbers for Prometheus",
        response_class=Response,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **_problems(401)},
    )
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type=service.metrics.content_type)

    @app.get(
        "/health",
        summary="Whether every model is ready",
        responses={503: {"model": State, "description": "Not yet, or no more."}},
    )
    async def health(response: Response) -> State:
        response.status_code = 200 if service.ready else 503
        return State(
            status="ready" if service.ready else "not ready",
            models={model.name: model.ready for model in service.models.values()},
        )

    @app.get("/live", summary="Whether the server runs", response_model_exclude_none=True)
    async def live() -> State:
        return State(status="live")

    @app.get("/", include_in_schema=False)
    async def start() -> HTMLResponse:
        return HTMLResponse(page.html(), headers={"Content-Security-Policy": page.policy()})

    return app


_FILE = {"type": "string", "format": "binary"}


def _body(images: dict[str, Any]) -> dict[str, Any]:
    """What a request brings, for the schema; images: what stands in a form."""
    form = {"type": "object", "properties": {"image": images}, "required": ["image"], "additionalProperties": False}
    one = {"schema": {**_FILE, "minLength": 1}}
    content = {"multipart/form-data": {"schema": form}, "application/octet-stream": one, "image/*": one}
    return {"requestBody": {"required": True, "content": content}}


_WORDS = {
    400: "The request cannot be read, or has no image.",
    401: "A token is needed.",
    408: "The request did not come in time.",
    413: "Too many bytes or images.",
    415: "A kind of content that is not taken.",
    429: "Too much is under way; Retry-After says when to come back.",
    500: "The model failed.",
    503: "Not ready, or no answer in time; Retry-After says when to come back.",
}


def _problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": Problem, "description": _WORDS[status]} for status in statuses}


def _check_options(model: Model, options: Options) -> None:
    """Refusal of an option that has no effect on the answers of the model."""
    finds = isinstance(model.predictor, ObjectFinder)
    for name in ("top_k", "probabilities") if finds else ("threshold",):
        if name in options.model_fields_set:
            raise Refusal(
                422, "option", f"{name} has no effect: {model.name} is a {'detector' if finds else 'classifier'}."
            )


def _described(model: Model) -> Served:
    if not model.ready:
        return Served(name=model.name, ready=False)
    predictor = model.predictor
    thresholds = None if predictor.thresholds is None else predictor.thresholds.tolist()
    return Served(
        name=model.name,
        ready=True,
        classes=list(predictor.class_names),
        task="detection" if isinstance(predictor, ObjectFinder) else "classification",
        multi_label=predictor.card.multi_label,
        thresholds=thresholds,
        image_size=predictor.card.input.size,
    )


def _none_answered(request: Request, found: list[Prediction | Found], content: dict[str, Any]) -> JSONResponse:
    failed = any(prediction.error == FAILED for prediction in found)
    words = f"{found[0].name}: {found[0].error}."
    if len(found) > 1:
        words = f"None of the {len(found)} images can be answered. The first one, {words}"
    status, code = (500, "model_failed") if failed else (422, "unreadable")
    return _problem(request, Refusal(status, code, words), content)


async def _unless_left(request: Request, answers: Coroutine[Any, Any, T]) -> T:
    """The answers, which are given up if the client leaves before they are there."""
    work, gone = asyncio.ensure_future(answers), asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise Refusal(499, "left", "The client left before the answer was there.")
        return work.result()
    finally:
        for each in (work, gone):
            each.cancel()
        await asyncio.gather(work, gone, return_exceptions=True)


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


# --- Errors


async def _refused(request: Request, error: Exception) -> Response:
    if isinstance(error, RequestValidationError):
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"][1:]))
        words = f"{where}: {first['msg']}."
        if first["type"] == "extra_forbidden":
            known = Explained if request.url.path.endswith("/explain") else Options
            words = f"There is no option {where[:80]!r}; there are {', '.join(known.model_fields)}."
        error = Refusal(422, "option", words)
    elif isinstance(error, HTTPException):
        known = {
            404: ("not_found", "There is nothing here."),
            405: ("method", "This address does not take that method."),
        }
        code, words = known.get(error.status_code, ("http", str(error.detail)))
        error = Refusal(error.status_code, code, words, headers=error.headers)
    assert isinstance(error, Refusal)
    return _problem(request, error)


def _problem(request: Request, refusal: Refusal, content: dict[str, Any] | None = None) -> JSONResponse:
    request.state.noted["refused"] = refusal.code
    problem = refusal.problem(request.state.request_id)
    return JSONResponse(problem | (content or {}), refusal.status, refusal.headers)


# --- Around everything


_GIVEN_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")

_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class _Door:
    """Every request goes through here: it gets its id, is refused or passed on, logged and counted."""

    def __init__(self, app: ASGIApp, *, service: Service, access: Access) -> None:
        self._app, self._service, self._access = app, service, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.monotonic()
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request = Request(scope, receive)
        request.state.request_id = given if _GIVEN_ID.fullmatch(given) else secrets.token_hex(8)
        noted: dict[str, Any] = {}
        request.state.noted = noted
        status = 0

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                added = MutableHeaders(scope=message)
                added["X-Request-ID"] = request.state.request_id
                for name, value in _HEADERS.items():
                    added.setdefault(name, value)
            await send(message)

        try:
            try:
                host = headers.get("host", "")
                self._access.check_host(host)
                self._access.check_origin(headers.get("origin"), host)
                await self._app(scope, receive, sending)
            except Refusal as refusal:
                await _problem(request, refusal)(scope, receive, sending)
            except Exception as error:
                log.error("failed", error, request_id=request.state.request_id)
                if status:  # it has begun to answer, and cannot take that back
                    raise
                refusal = Refusal(500, "failed", "Something went wrong here; the log knows more.")
                await _problem(request, refusal)(scope, receive, sending)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            took = time.monotonic() - began
            metrics = self._service.metrics
            metrics.requests.labels(route, str(status)).inc()
            metrics.seconds.labels(route).observe(took)
            if "refused" in noted:
                metrics.refusals.labels(noted["refused"]).inc()
            if route not in ("/health", "/live", "/metrics"):  # which are asked all day
                log.event(
                    "request",
                    request_id=request.state.request_id,
                    method=scope["method"],
                    route=route,
                    status=status,
                    seconds=round(took, 4),
                    **noted,
                )
