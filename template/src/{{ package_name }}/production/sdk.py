"""The MCP server, and every use of names that the MCP SDK does not export.

Those names can change with any minor version of `mcp`: pyproject.toml allows 2.3 only.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import structlog
from mcp.server._otel import OpenTelemetryMiddleware
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel.helper_types import ReadResourceContents
from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError, UnexpectedResourceError, UnexpectedToolError
from mcp.server.mcpserver.tools import Tool
from mcp.server.runner import ServerRunner
from mcp.shared._stream_protocols import ReadStream, WriteStream
from mcp.shared.exceptions import MCPError
from mcp.shared.message import SessionMessage
from mcp_types import (
    INVALID_PARAMS,
    CallToolResult,
    CompleteRequestParams,
    CompleteResult,
    Completion,
    GetPromptResult,
    InitializeRequestParams,
    InputRequiredResult,
)
from mcp_types.methods import SPEC_CLIENT_METHODS, validate_client_request
from pydantic import AnyUrl, ValidationError
from pydantic_core import from_json
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from .caller import UNKNOWN
from .config import UPDATE, ConfigError, StartError
from .inbound import pipeline, results
from .inbound.arguments import problems_with
from .inbound.threads import Threads
from .json_values import encode_message
from .policy import FEATURE_ANSWERS, NO_POLICY, Policy, policy_of
from .registry import Callback, Registry, Runtime
from .request import (
    COMPLETE,
    LISTEN,
    PROMPTS_GET,
    RESOURCES_READ,
    TOOLS_CALL,
    MCPRequest,
    Result,
    current_request,
    is_own_failure,
)
from .serve import drain, tool_loader
from .upstream.client import Upstream
from .upstream.errors import ungrouped

SHUTDOWN_CALLBACK_SECONDS = 5.0
"""Time limit of one shutdown callback."""

INVALID_RESULT = "Handler returned an invalid result"
"""The SDK's message for a result that does not fit the protocol."""

NO_STATE = ""
"""The state of an `input_required` round whose handler gave none."""

Endpoint = Callable[[Request], Awaitable[Response]]
Handler = TypeVar("Handler", bound=Callable[..., Any])
R = TypeVar("R")

log = structlog.stdlib.get_logger(__name__)


class _ServerInfo(dict[str, Any]):
    """The texts that name the server in each result. Without the method, their deep copy takes twice as long."""

    def __deepcopy__(self, memo: dict[int, Any]) -> dict[str, Any]:
        return self.copy()


class ProductionServer(MCPServer[Runtime]):
    """An `MCPServer` that handles every request in the pipeline.

    Raises:
        StartError: a middleware of `registry` has no place in the pipeline's order.
    """

    def __init__(self, registry: Registry) -> None:
        # First: extensions add their tools in the constructor of the SDK.
        self.registry = registry
        registry.targets = self
        self._functions: dict[tuple[str, str], Callable[..., Any]] = {}
        """The owner's function by method and target label."""
        self._threads = Threads(registry)
        about = registry.about
        super().__init__(
            about.name,
            title=about.title,
            description=about.description,
            version=about.version,
            log_level=registry.config.log_level,
            lifespan=lambda _: self.running(),
            **registry.server_arguments,
        )
        info = self._lowlevel_server._server_info_stamp_source
        if {*map(type, info.values())} == {str}:  # no icons
            self._lowlevel_server._server_info_stamp_source = _ServerInfo(info)
        listen = self._lowlevel_server.get_request_handler(LISTEN)
        self.drain = drain.install(registry, listen.handler if listen else None)
        # The SDK's tracing middleware names spans by what the client wrote: `observe.telemetry` starts one of its own.
        others = [item for item in self.middleware if not isinstance(item, OpenTelemetryMiddleware)]
        inside = pipeline.Pipeline(registry, self._target_of, self._handle, self._to_wire, self._prepare_channel)
        self.middleware[:] = [inside, *others]

    def add_tool(
        self,
        fn: Callable[..., Any],
        name: str | None = None,
        *args: Any,
        make: Callable[[], Tool] | None = None,
        **options: Any,
    ) -> None:
        """Register a tool.

        The start stops where the SDK only logs a warning, as for a second tool of the same name.

        Args:
            fn: The function.
            name: The tool's name, where it is not the function's.
            args: Further arguments for the SDK.
            make: Makes the tool where the SDK should not.
            options: As `args`.

        Raises:
            StartError: the name is taken or not allowed, or the function cannot be a tool.
        """
        tool = name or str(getattr(fn, "__name__", ""))
        if problem := tool_loader.problem_with(fn, tool, self._functions.get((TOOLS_CALL, tool))):
            raise StartError(problem)
        if self.registry.tools.is_hidden(tool, options.get("annotations")):
            return
        try:
            if make is None:
                super().add_tool(fn, tool, *args, **options)
            else:
                self._tool_manager._tools[tool] = make()
        except Exception as error:
            log.debug("cannot register a tool", exc_info=error)
            raise StartError(tool_loader.explain(fn, f"tool {tool}", error)) from error
        if make is None:
            added = self.registered_tools()[-1]
            if problem := tool_loader.problem_with_arguments(fn, added):
                raise StartError(problem)
            added.fn_metadata = results.metadata_of(added, structured=options.get("structured_output") is not False)
            if not added.is_async:
                added.fn, added.is_async = self._threads.wrap(added.fn), True
        self._keep(fn, TOOLS_CALL, tool)
        for on_added in self.registry.tools.on_added:
            on_added(tool)

    def resource(self, uri: str, **options: Any) -> Callable[[Handler], Handler]:
        """Return a decorator that registers a function as the resource `uri`, or as a template of resources.

        Raises:
            StartError: the URI is taken, or the function cannot be a resource.
        """
        add = super().resource(uri, **options)
        return self._registering("resource", RESOURCES_READ, lambda fn: uri, add, results.resource_content)

    def prompt(self, name: str | None = None, *args: Any, **options: Any) -> Callable[[Handler], Handler]:
        """Return a decorator that registers a function as a prompt.

        Raises:
            StartError: the name is taken, or the function cannot be a prompt.
        """
        add = super().prompt(name, *args, **options)
        return self._registering(
            "prompt", PROMPTS_GET, lambda fn: name or tool_loader.own_name(fn), add, results.prompt_content
        )

    def _registering(
        self,
        kind: str,
        method: str,
        name_of: Callable[[Handler], str],
        add: Callable[[Callable[..., Any]], object],
        convert: Callable[[Any], Any],
    ) -> Callable[[Handler], Handler]:
        def decorator(fn: Handler) -> Handler:
            name = name_of(fn)
            if problem := tool_loader.problem_with_handler(fn, f"{kind} {name}", self._functions.get((method, name))):
                raise StartError(problem)
            try:
                add(results.converting(fn, convert, self._threads.run))
            except Exception as error:
                log.debug("cannot register a handler", exc_info=error)
                raise StartError(tool_loader.explain(fn, f"{kind} {name}", error)) from error
            self._keep(fn, method, name)
            return fn

        return decorator

    def custom_route(
        self, path: str, methods: list[str], name: str | None = None, include_in_schema: bool = True
    ) -> Callable[[Endpoint], Endpoint]:
        """Serve `path` over HTTP beside the MCP endpoint, without authentication and limits."""

        def add(endpoint: Endpoint) -> Endpoint:
            route = Route(path, endpoint, methods=methods, name=name, include_in_schema=include_in_schema)
            self.registry.http.routes.append(route)
            return endpoint

        return add

    def registered_tools(self) -> list[Tool]:
        """Return all tools in the order of their registration."""
        return self._tool_manager.list_tools()

    def registered_resources(self) -> list[str]:
        """Return the URIs of all resources, then the URI templates."""
        manager = self._resource_manager
        return [*manager._resources, *(template.uri_template for template in manager.list_templates())]

    def registered_prompts(self) -> list[str]:
        """Return the names of all prompts in the order of their registration."""
        return [prompt.name for prompt in self._prompt_manager.list_prompts()]

    async def call_tool(
        self, name: str, arguments: dict[str, Any], context: Context[Runtime, Any] | None = None
    ) -> CallToolResult | InputRequiredResult:
        """Run a tool; a client gets every failure but a protocol error as an error result."""
        request = _enter(context)
        if request is None or context is None:
            return await super().call_tool(name, arguments, context)
        tool = self._tool_manager.get_tool(name)
        if tool is None:
            return pipeline.explain_unknown(request, "tool")
        if problems := problems_with(tool.fn_metadata, arguments, self.registry.config.max_json_values):
            return pipeline.explain_arguments(request, "tool", problems)
        try:
            result: CallToolResult | InputRequiredResult = await tool.run(arguments, context, convert_result=True)
            return _with_state(result)
        except BaseException as error:
            cause = error.__cause__
            if type(error) is not ToolError or cause is None:
                return pipeline.explain_failure(request, _raised(error))
            if isinstance(cause, ValidationError):
                return pipeline.explain_arguments(request, "tool", pipeline.problems_of(cause))
            return pipeline.explain_failure(request, cause)

    async def read_resource(
        self, uri: AnyUrl | str, context: Context[Runtime, Any] | None = None
    ) -> Iterable[ReadResourceContents] | InputRequiredResult:
        """Read a resource; a client gets every failure as a protocol error."""
        request = _enter(context)
        if request is None:
            return await super().read_resource(uri, context)
        if request.target_label == UNKNOWN:
            pipeline.explain_unknown(request, "resource")
        try:
            return _with_state(await super().read_resource(uri, context))
        except BaseException as error:
            self._explain(request, "resource", _raised(error))
            raise

    async def get_prompt(
        self, name: str, arguments: dict[str, Any] | None = None, context: Context[Runtime, Any] | None = None
    ) -> GetPromptResult | InputRequiredResult:
        """Render a prompt; a client gets every failure as a protocol error."""
        request = _enter(context)
        if request is None:
            return await super().get_prompt(name, arguments, context)
        prompt = self._prompt_manager.get_prompt(name)
        if prompt is None:
            pipeline.explain_unknown(request, "prompt")
        elif missing := sorted({each.name for each in prompt.arguments or () if each.required} - set(arguments or {})):
            problems = "; ".join(f"{argument}: Field required" for argument in missing)
            pipeline.explain_arguments(request, "prompt", problems)
        try:
            return _with_state(await super().get_prompt(name, arguments, context))
        except BaseException as error:
            cause = error
            for _ in range(2):  # the wrappers of `Prompt.render` and of the SDK's `get_prompt`
                if type(cause) is ValueError and cause.__cause__ is not None:
                    cause = cause.__cause__
            self._explain(request, "prompt", cause)
            raise

    def completion(self) -> Callable[[Handler], Handler]:
        """Return a decorator that registers the function that completes arguments of prompts and templates.

        Raises:
            StartError: the function is not async.
        """

        def decorator(complete: Handler) -> Handler:
            if problem := tool_loader.problem_with_callback(complete, "completion"):
                raise StartError(problem)

            async def handler(ctx: ServerRequestContext[Any, Any], params: CompleteRequestParams) -> CompleteResult:
                completion = await complete(params.ref, params.argument, params.context)
                return CompleteResult(completion=completion or Completion(values=[]))

            self._lowlevel_server.add_request_handler(COMPLETE, CompleteRequestParams, handler)
            self._keep(complete, COMPLETE, "")
            return complete

        return decorator

    def _keep(self, fn: Callable[..., Any], method: str, label: str) -> None:
        """Remember the function of a target.

        Raises:
            StartError: its policy has a field that the server does not support.
        """
        self._functions[method, label] = fn
        for field in policy_of(fn).set_fields():
            if field not in self.registry.policy_fields:
                raise StartError(
                    f"{tool_loader.location(fn)}: policy({field}=...): this project has no {field} feature. "
                    f"Add it with: {UPDATE} {FEATURE_ANSWERS[field]}"
                )

    def _explain(self, request: MCPRequest, kind: str, error: BaseException) -> None:
        """Raise the error of a resource or prompt that raised `error`."""
        if isinstance(error, ValidationError) and not request.handler_called:
            pipeline.explain_arguments(request, kind, pipeline.problems_of(error))
        pipeline.explain_failure(request, error)

    def _prepare_channel(self, request: MCPRequest) -> None:
        """Let the handler send any text and number: one that JSON lacks would end the SDK's stream."""
        channel = channel_of(request.context)
        channel.notify, channel.send_raw_request = _as_json(channel.notify), _as_json(channel.send_raw_request)
        self.registry.prepare_channel(request)

    async def _handle(self, request: MCPRequest) -> Result:
        """Run a request in the SDK."""
        ctx = request.context
        try:
            result = await request.call_sdk(ctx)
        except ValidationError:
            if self._accepts(ctx):
                raise
            raise MCPError(INVALID_PARAMS, "Invalid request parameters", "") from None
        except MCPError as error:
            if error.error.message == INVALID_RESULT and isinstance(error.__context__, ValidationError):
                raise TypeError(INVALID_RESULT) from error
            if request.budget is not None:
                request.budget.check_error(request, error)
            raise
        if request.method == "initialize" and self.registry.on_session_end:
            self._observe_session(ctx)
        if isinstance(result, dict) and request.encoded is None:
            result = results.sendable_result(request, result)
        if request.budget is not None:
            request.budget.check_sent(request)
        return result

    def _accepts(self, ctx: ServerRequestContext[Any, Any]) -> bool:
        """Return whether the parameters of a request are valid, so that a `ValidationError` comes from its handler."""
        handler = self._lowlevel_server.get_request_handler(ctx.method)
        try:
            if ctx.method in SPEC_CLIENT_METHODS:
                validate_client_request(ctx.method, ctx.protocol_version, ctx.params)
            model = InitializeRequestParams if handler is None else handler.params_type
            model.model_validate(ctx.params or {}, by_name=False)
        except ValidationError:
            return False
        return True

    def _observe_session(self, ctx: ServerRequestContext[Any, Any]) -> None:
        """Report the duration of a session when it ends."""
        connection = ctx.session._connection
        if connection.session_id is None or connection.client_params is not None:  # none, or initialized before
            return
        started = time.perf_counter()

        def report() -> None:
            for on_session_end in self.registry.on_session_end:
                on_session_end(time.perf_counter() - started)

        connection.exit_stack.callback(report)

    def has_session(self, session_id: str) -> bool:
        """Return whether a session over HTTP is open."""
        return session_id in self.session_manager._server_instances

    def _to_wire(self, ctx: ServerRequestContext[Any, Any], result: CallToolResult) -> Result:
        runner = ServerRunner(self._lowlevel_server, ctx.session._connection, ctx.lifespan_context)
        return runner._serialize(TOOLS_CALL, ctx.protocol_version, result)

    def _target_of(self, ctx: ServerRequestContext[Any, Any]) -> pipeline.Target:
        """Return method, target, target label and policy of a request, as `MCPRequest` has them."""
        method, params = ctx.method, ctx.params or {}
        label = self.label(method, params)
        if method == RESOURCES_READ:
            target = params.get("uri")
        elif method in (TOOLS_CALL, PROMPTS_GET):
            target = params.get("name")
        else:
            served = method == "initialize" or self._lowlevel_server.get_request_handler(method) is not None
            method, target = method if served else UNKNOWN, ""
        return method, str(target), label, self.policy(method, label)

    def labels(self, method: str) -> Iterable[str]:
        """Return the target labels of tools/call, resources/read or prompts/get."""
        if method == TOOLS_CALL:
            return [tool.name for tool in self.registered_tools()]
        return self.registered_resources() if method == RESOURCES_READ else self.registered_prompts()

    def function(self, method: str, label: str) -> Callable[..., Any] | None:
        """Return the owner's function of a target."""
        return self._functions.get((method, label))

    def policy(self, method: str, label: str) -> Policy:
        """Return the policy of a target."""
        fn = self.function(method, label)
        return NO_POLICY if fn is None else policy_of(fn)

    def arguments(self, tool: str) -> Sequence[str]:
        """Return the names of a tool's arguments."""
        found = self._tool_manager.get_tool(tool)
        return [] if found is None else list(found.parameters.get("properties", ()))

    def label(self, method: str, params: Mapping[str, Any]) -> str:
        """Return the target label of a request."""
        if method == RESOURCES_READ:
            uri = params.get("uri")
            return self._resource_label(uri) if isinstance(uri, str) else UNKNOWN
        if method not in (TOOLS_CALL, PROMPTS_GET):
            return ""
        name = params.get("name")
        find = self._tool_manager.get_tool if method == TOOLS_CALL else self._prompt_manager.get_prompt
        return name if isinstance(name, str) and find(name) is not None else UNKNOWN

    def _resource_label(self, uri: str) -> str:
        """Return the URI of a registered resource, or the URI template that matches."""
        if uri in self._resource_manager._resources:
            return uri
        for template in self._resource_manager.list_templates():
            if template.parsed_template.match(uri) is not None:
                return template.uri_template
        return UNKNOWN

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Runtime]:
        """Open the upstream client and run the startup callbacks; at the end undo both in reverse order.

        The SDK enters this lifespan for each transport. Checks and tests enter it without one.

        Raises:
            ConfigError: a callback rejects the configuration.
            StartError: a startup callback failed, or a policy has a field that the server does not support.
        """
        registry = self.registry
        async with Upstream.open(registry.config, registry.about, registry.upstream) as client:
            runtime = Runtime(registry, client)
            registry.running.append(runtime)
            started = False
            try:
                for startup in registry.on_startup:
                    await _run_startup(startup)
                # Again, since a policy may be above the decorator that registers the function.
                for (method, label), fn in self._functions.items():
                    self._keep(fn, method, label)
                for check in registry.on_registered:
                    check()
                started = True
                yield runtime
            finally:
                # After a failed start only its cause is logged as an error.
                log_failure = log.error if started else log.debug
                for shutdown in reversed(registry.on_shutdown):
                    await _run_shutdown(shutdown, log_failure)
                registry.running.remove(runtime)

    async def serve_streams(
        self, incoming: ReadStream[SessionMessage | Exception], outgoing: WriteStream[SessionMessage]
    ) -> None:
        """Serve one client, lifespan included, until `incoming` ends."""
        server = self._lowlevel_server
        await server.run(incoming, outgoing, server.create_initialization_options())


def channel_of(context: ServerRequestContext[Any, Any]) -> Any:
    """Return the `DispatchContext` of a request, by which a handler sends messages to the client."""
    return context.session._request_outbound


def _as_json(send: Callable[..., Awaitable[R]]) -> Callable[..., Awaitable[R]]:
    """Return a method of a `DispatchContext` whose parameters become what JSON can have."""

    def send_json(method: str, params: Mapping[str, Any] | None, opts: Any = None) -> Awaitable[R]:
        return send(method, params and from_json(encode_message(dict(params))), opts)

    return send_json


def _enter(context: Context[Any, Any] | None) -> MCPRequest | None:
    """Return the request that `context` belongs to, or `None` for a call in Python or from within a handler."""
    request = current_request.get()
    if request is None or context is None:
        return None
    if request.entered:
        request.is_nested = True
        return None
    request.entered = True
    has_state = "requestState" in request.params  # asked first: the attributes of a `Context` take microseconds
    if has_state and context.request_state == NO_STATE and (params := context._input_params) is not None:
        context._input_params = params.model_copy(update={"request_state": None})
    return request


def _with_state(result: R) -> R:
    """Give an `InputRequiredResult` without a state an empty one.

    It is sealed like any other, so that the retry proves that it belongs to a round that took a permit.
    """
    if isinstance(result, InputRequiredResult) and result.request_state is None:
        return result.model_copy(update={"request_state": NO_STATE})
    return result


def _raised(error: BaseException) -> BaseException:
    """Return what a handler raised, without the SDK's wrappers of crashes."""
    while isinstance(error, UnexpectedToolError | UnexpectedResourceError) and error.__cause__ is not None:
        error = error.__cause__
    return error


async def _run_startup(callback: Callback) -> None:
    task = asyncio.current_task()
    try:
        await callback()
    except (ConfigError, StartError, KeyboardInterrupt):
        raise
    except BaseException as error:
        if not is_own_failure(error, task):
            raise
        causes = "; ".join(f"{type(each).__name__}: {each}".removesuffix(": ") for each in ungrouped(error))
        raise StartError(f"cannot start: {tool_loader.dotted_name(callback)} failed with {causes}") from error


async def _run_shutdown(callback: Callback, log_failure: Callable[..., object]) -> None:
    """Run one callback. If it fails or takes too long, that is logged, and the next one can run."""
    task = asyncio.current_task()
    try:
        async with asyncio.timeout(SHUTDOWN_CALLBACK_SECONDS):
            await callback()
    except BaseException as error:
        if not is_own_failure(error, task):
            raise
        log_failure("shutdown callback failed", callback=tool_loader.dotted_name(callback), exc_info=error)
