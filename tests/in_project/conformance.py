"""What the MCP conformance suite expects of a server: its tools, resources and prompts, registered as an owner would.

The test copies this file into the generated project's `tools/`, where the server finds it. Names, texts and schemas are
those that the suite's scenarios describe.
"""

from __future__ import annotations

import asyncio
import json
from typing import Annotated, Any

from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.mcpserver.prompts.base import UserMessage
from mcp.shared.exceptions import MCPError
from mcp_types import (
    MISSING_REQUIRED_CLIENT_CAPABILITY,
    AudioContent,
    Completion,
    CreateMessageRequest,
    CreateMessageRequestParams,
    ElicitRequest,
    ElicitRequestFormParams,
    EmbeddedResource,
    EmptyResult,
    ImageContent,
    InputRequiredResult,
    ListRootsRequest,
    SamplingMessage,
    SetLevelRequestParams,
    SubscribeRequestParams,
    TextContent,
    TextResourceContents,
    UnsubscribeRequestParams,
)
from pydantic import BaseModel, Field

PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8DwHwAFBQIAX8jx0gAAAABJRU5ErkJggg=="
WAV = "UklGRiYAAABXQVZFZm10IBAAAAABAAEAQB8AAAB9AAACABAAZGF0YQIAAAA="
Ctx = Context[Any, Any]
IMAGE = ImageContent(type="image", data=PNG, mime_type="image/png")


def text(content: str) -> TextContent:
    return TextContent(type="text", text=content)


def embedded(uri: str, mime_type: str, content: str) -> EmbeddedResource:
    return EmbeddedResource(type="resource", resource=TextResourceContents(uri=uri, mime_type=mime_type, text=content))


# --- Content -----------------------------------------------------------------------------------------------


async def test_simple_text() -> str:
    """Returns a text."""
    return "This is a simple text response for testing."


async def test_image_content() -> ImageContent:
    """Returns an image."""
    return IMAGE


async def test_audio_content() -> AudioContent:
    """Returns a sound."""
    return AudioContent(type="audio", data=WAV, mime_type="audio/wav")


async def test_embedded_resource() -> EmbeddedResource:
    """Returns a resource."""
    return embedded("test://embedded-resource", "text/plain", "This is an embedded resource content.")


async def test_multiple_content_types() -> list[TextContent | ImageContent | EmbeddedResource]:
    """Returns a text, an image and a resource."""
    data = json.dumps({"test": "data", "value": 123})
    return [
        text("Multiple content types test:"),
        IMAGE,
        embedded("test://mixed-content-resource", "application/json", data),
    ]


async def test_error_handling() -> str:
    """Always fails, with a text for the model."""
    raise ToolError("This tool intentionally returns an error for testing")


async def test_custom_headers(
    region: Annotated[str, Field(description="A region", json_schema_extra={"x-mcp-header": "Region"})],
) -> str:
    """Has an argument that clients repeat in a header."""
    return f"region: {region}"


# --- Messages on the way -----------------------------------------------------------------------------------


async def test_tool_with_logging(ctx: Ctx) -> str:
    """Sends three log messages."""
    for message in ("Tool execution started", "Tool processing data", "Tool execution completed"):
        await ctx.info(message)
        await asyncio.sleep(0.05)
    return "Three messages were logged."


async def test_logging_tool(ctx: Ctx) -> str:
    """Logs, whether or not the client asked for log messages."""
    await ctx.info("Nobody has to read this")
    return "logged"


async def test_tool_with_progress(ctx: Ctx) -> str:
    """Reports its progress three times."""
    for progress in (0, 50, 100):
        await ctx.report_progress(progress, 100)
        await asyncio.sleep(0.05)
    return "done"


async def test_reconnection(ctx: Ctx) -> str:
    """Closes its stream in the middle of the call."""
    await ctx.close_sse_stream()
    await asyncio.sleep(0.1)
    return "Reconnection test completed successfully"


async def test_trigger_tool_change(ctx: Ctx) -> str:
    """Tells subscribers that the tools have changed."""
    await ctx.notify_tools_changed()
    return "told"


async def test_trigger_prompt_change(ctx: Ctx) -> str:
    """Tells subscribers that the prompts have changed."""
    await ctx.notify_prompts_changed()
    return "told"


# --- Questions to the client, 2025-11-25 -------------------------------------------------------------------


async def test_sampling(prompt: str, ctx: Ctx) -> str:
    """Has the client's model answer."""
    message = SamplingMessage(role="user", content=text(prompt))
    answer = await ctx.session.create_message([message], max_tokens=100, related_request_id=ctx.request_id)
    content = answer.content
    return f"LLM response: {content.text if isinstance(content, TextContent) else content}"


class Contact(BaseModel):
    username: str = Field(description="User's response")
    email: str = Field(description="User's email address")


class Defaults(BaseModel):
    name: str = "John Doe"
    age: int = 30
    score: float = 95.5
    status: str = Field("active", json_schema_extra={"enum": ["active", "inactive", "pending"]})
    verified: bool = True


def _titled(*options: tuple[str, str]) -> list[dict[str, str]]:
    return [{"const": value, "title": title} for value, title in options]


_THREE = (("value1", "First Option"), ("value2", "Second Option"), ("value3", "Third Option"))


class Enums(BaseModel):
    untitledSingle: str = Field(json_schema_extra={"enum": ["option1", "option2", "option3"]})
    titledSingle: str = Field(json_schema_extra={"oneOf": _titled(*_THREE)})
    untitledMulti: list[str] = Field(
        json_schema_extra={"items": {"type": "string", "enum": ["option1", "option2", "option3"]}}
    )
    titledMulti: list[str] = Field(json_schema_extra={"items": {"anyOf": _titled(*_THREE)}})
    legacyEnum: str = Field(
        json_schema_extra={"enum": ["opt1", "opt2", "opt3"], "enumNames": ["Option One", "Option Two", "Option Three"]}
    )


async def _asked(ctx: Ctx, message: str, schema: type[BaseModel]) -> str:
    answer = await ctx.elicit(message, schema)
    content = answer.data.model_dump_json() if answer.action == "accept" else "{}"
    return f"action={answer.action}, content={content}"


async def test_elicitation(message: str, ctx: Ctx) -> str:
    """Asks the user."""
    return f"User response: {await _asked(ctx, message, Contact)}"


async def test_elicitation_sep1034_defaults(ctx: Ctx) -> str:
    """Asks the user, with a default for each type."""
    return f"Elicitation completed: {await _asked(ctx, 'Please check these', Defaults)}"


async def test_elicitation_sep1330_enums(ctx: Ctx) -> str:
    """Asks the user, with every kind of choice."""
    return f"Elicitation completed: {await _asked(ctx, 'Please choose', Enums)}"


# --- Questions to the client, 2026-07-28: the call ends, and comes again with the answer --------------------


def _elicit(message: str, field: str, kind: str = "string") -> ElicitRequest:
    schema = {"type": "object", "properties": {field: {"type": kind}}, "required": [field]}
    return ElicitRequest(params=ElicitRequestFormParams(message=message, requested_schema=schema))


def _sample(question: str, max_tokens: int = 100) -> CreateMessageRequest:
    message = SamplingMessage(role="user", content=text(question))
    return CreateMessageRequest(params=CreateMessageRequestParams(messages=[message], max_tokens=max_tokens))


def _answer(ctx: Ctx, key: str) -> Any:
    """The client's answer to the question `key`, None where there is no usable one."""
    return (ctx.input_responses or {}).get(key)


def _given(ctx: Ctx, key: str, field: str) -> Any:
    content = getattr(_answer(ctx, key), "content", None)
    return content.get(field) if isinstance(content, dict) else None


async def test_input_required_result_elicitation(ctx: Ctx) -> str | InputRequiredResult:
    """Greets by name."""
    name = _given(ctx, "user_name", "name")
    if name is None:
        return InputRequiredResult(input_requests={"user_name": _elicit("What is your name?", "name")})
    return f"Hello, {name}!"


async def test_input_required_result_sampling(ctx: Ctx) -> str | InputRequiredResult:
    """Knows a capital."""
    answer = _answer(ctx, "capital_question")
    if answer is None:
        return InputRequiredResult(input_requests={"capital_question": _sample("What is the capital of France?")})
    return f"The model says: {answer.content.text}"


async def test_input_required_result_list_roots(ctx: Ctx) -> str | InputRequiredResult:
    """Lists the client's roots."""
    answer = _answer(ctx, "client_roots")
    if answer is None:
        return InputRequiredResult(input_requests={"client_roots": ListRootsRequest()})
    return "Roots: " + ", ".join(str(root.uri) for root in answer.roots)


async def test_input_required_result_request_state(ctx: Ctx) -> str | InputRequiredResult:
    """Gets its state back."""
    if _given(ctx, "confirm", "ok") is None or ctx.request_state != "waiting":
        question = {"confirm": _elicit("Please confirm", "ok", "boolean")}
        return InputRequiredResult(input_requests=question, request_state="waiting")
    return "state-ok"


async def test_input_required_result_tampered_state(ctx: Ctx) -> str | InputRequiredResult:
    """As the one before; the SDK seals the state."""
    return await test_input_required_result_request_state(ctx)


async def test_input_required_result_multiple_inputs(ctx: Ctx) -> str | InputRequiredResult:
    """Asks three things at once."""
    questions: dict[str, Any] = {
        "user_name": _elicit("What is your name?", "name"),
        "greeting": _sample("Generate a greeting", 50),
        "client_roots": ListRootsRequest(),
    }
    if any(_answer(ctx, key) is None for key in questions):
        return InputRequiredResult(input_requests=questions, request_state="three")
    return f"Hello, {_given(ctx, 'user_name', 'name')}!"


async def test_input_required_result_multi_round(ctx: Ctx) -> str | InputRequiredResult:
    """Asks twice, one after the other."""
    if _given(ctx, "step1", "name") is None and ctx.request_state is None:
        question = {"step1": _elicit("Step 1: What is your name?", "name")}
        return InputRequiredResult(input_requests=question, request_state="round 1")
    color = _given(ctx, "step2", "color")
    if color is None:
        question = {"step2": _elicit("Step 2: What is your favorite color?", "color")}
        return InputRequiredResult(input_requests=question, request_state=f"name {_given(ctx, 'step1', 'name')}")
    return f"{ctx.request_state} likes {color}"


async def test_input_required_result_capabilities(ctx: Ctx) -> str | InputRequiredResult:
    """Asks only what the client can answer."""
    able = ctx.client_capabilities
    questions: dict[str, Any] = {}
    if able is not None and able.elicitation is not None:
        questions["user_name"] = _elicit("What is your name?", "name")
    if able is not None and able.sampling is not None:
        questions["greeting"] = _sample("Generate a greeting", 50)
    if questions and any(_answer(ctx, key) is None for key in questions):
        return InputRequiredResult(input_requests=questions)
    return "nothing to ask"


async def test_streaming_elicitation(ctx: Ctx) -> str | InputRequiredResult:
    """Asks the user, without a request of its own on the stream."""
    return await test_input_required_result_elicitation(ctx)


async def test_missing_capability(ctx: Ctx) -> str:
    """Needs a client that can sample."""
    able = ctx.client_capabilities
    if able is None or able.sampling is None:
        needed = {"requiredCapabilities": {"sampling": {}}}
        raise MCPError(code=MISSING_REQUIRED_CLIENT_CAPABILITY, message="This tool needs sampling", data=needed)
    return "the client can sample"


# --- A schema beyond what a signature can say --------------------------------------------------------------

SCHEMA_2020_12: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "$defs": {
        "address": {
            "$anchor": "addressDef",
            "type": "object",
            "properties": {"street": {"type": "string"}, "city": {"type": "string"}},
        }
    },
    "properties": {
        "name": {"type": "string"},
        "address": {"$ref": "#/$defs/address"},
        "contactMethod": {"type": "string", "enum": ["phone", "email"]},
        "phone": {"type": "string"},
        "email": {"type": "string"},
    },
    "allOf": [{"anyOf": [{"required": ["phone"]}, {"required": ["email"]}]}],
    "if": {"properties": {"contactMethod": {"const": "phone"}}, "required": ["contactMethod"]},
    "then": {"required": ["phone"]},
    "else": {"required": ["email"]},
    "additionalProperties": False,
}


async def json_schema_2020_12_tool(name: str = "") -> str:
    """Has a schema with the vocabulary of JSON Schema 2020-12."""
    return name


TOOLS = (
    test_simple_text,
    test_image_content,
    test_audio_content,
    test_embedded_resource,
    test_multiple_content_types,
    test_error_handling,
    test_custom_headers,
    test_tool_with_logging,
    test_logging_tool,
    test_tool_with_progress,
    test_reconnection,
    test_trigger_tool_change,
    test_trigger_prompt_change,
    test_sampling,
    test_elicitation,
    test_elicitation_sep1034_defaults,
    test_elicitation_sep1330_enums,
    test_input_required_result_elicitation,
    test_input_required_result_sampling,
    test_input_required_result_list_roots,
    test_input_required_result_request_state,
    test_input_required_result_tampered_state,
    test_input_required_result_multiple_inputs,
    test_input_required_result_multi_round,
    test_input_required_result_capabilities,
    test_streaming_elicitation,
    test_missing_capability,
    json_schema_2020_12_tool,
)


def register(server: MCPServer[Any]) -> None:
    for tool in TOOLS:
        server.tool()(tool)
    registered = server._tool_manager.get_tool("json_schema_2020_12_tool")  # no public way to give a schema
    assert registered is not None
    registered.parameters = SCHEMA_2020_12
    _resources(server)
    _prompts(server)
    _requests(server)


def _resources(server: MCPServer[Any]) -> None:
    @server.resource("test://static-text", mime_type="text/plain", description="A text")
    def static_text() -> str:
        return "This is the content of the static text resource."

    @server.resource("test://static-binary", mime_type="image/png", description="An image")
    def static_binary() -> bytes:
        import base64

        return base64.b64decode(PNG)

    @server.resource("test://watched-resource", mime_type="text/plain", description="One to subscribe to")
    def watched() -> str:
        return "Watched resource content"

    @server.resource("test://template/{id}/data", mime_type="application/json", description="One with a parameter")
    def templated(id: str) -> str:  # noqa: A002 (the template's name)
        return json.dumps({"id": id, "templateTest": True, "data": f"Data for ID: {id}"})


def _prompts(server: MCPServer[Any]) -> None:
    @server.prompt(description="A text")
    def test_simple_prompt() -> str:
        return "This is a simple prompt for testing."

    @server.prompt(description="A text with two arguments")
    def test_prompt_with_arguments(arg1: str, arg2: str) -> str:
        return f"Prompt with arguments: arg1='{arg1}', arg2='{arg2}'"

    @server.prompt(description="A resource and a text")
    def test_prompt_with_embedded_resource(resourceUri: str) -> list[UserMessage]:
        resource = embedded(resourceUri, "text/plain", "Embedded resource content for testing.")
        return [UserMessage(resource), UserMessage("Please process the embedded resource above.")]

    @server.prompt(description="An image and a text")
    def test_prompt_with_image() -> list[UserMessage]:
        return [UserMessage(IMAGE), UserMessage("Please analyze the image above.")]

    @server.prompt(description="Asks the user first")
    def test_input_required_result_prompt(ctx: Ctx) -> str | InputRequiredResult:
        context = _given(ctx, "user_context", "context")
        if context is None:
            question = _elicit("What context should the prompt use?", "context")
            return InputRequiredResult(input_requests={"user_context": question})
        return f"Use this context: {context}"


def _requests(server: MCPServer[Any]) -> None:
    """What `MCPServer` has no decorator for goes to the protocol's server beneath it."""

    @server.completion()
    async def complete(ref: Any, argument: Any, context: Any) -> Completion:
        found = [word for word in ("paris", "park", "party") if word.startswith(argument.value)]
        return Completion(values=found, total=len(found), has_more=False)

    async def accept(ctx: Any, params: Any) -> EmptyResult:
        return EmptyResult()

    protocol = server._lowlevel_server
    protocol.add_request_handler("logging/setLevel", SetLevelRequestParams, accept)
    protocol.add_request_handler("resources/subscribe", SubscribeRequestParams, accept)
    protocol.add_request_handler("resources/unsubscribe", UnsubscribeRequestParams, accept)
