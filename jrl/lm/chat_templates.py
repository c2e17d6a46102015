"""Chat templates of Hugging Face folders: Jinja programs that turn messages into text.

They come with the weights, from anywhere, so they run in Jinja's sandbox and see plain data only.
"""

import functools
import json
import pathlib
from collections.abc import Callable
from typing import Any

__all__ = ["read_templates", "renderer"]


def read_templates(folder: pathlib.Path, config: dict[str, Any]) -> dict[str, str]:
    """Returns a folder's templates by name; a single one is called `default`.

    Files (`chat_template.jinja`, `additional_chat_templates/NAME.jinja`) come before what
    `config`, its tokenizer_config.json, holds: a string or a list of `{"name", "template"}`.
    """
    found = config.get("chat_template") or {}
    if isinstance(found, str):
        found = {"default": found}
    elif isinstance(found, list):
        found = {entry["name"]: entry["template"] for entry in found}
    files = {path.stem: path for path in (folder / "additional_chat_templates").glob("*.jinja")}
    if (folder / "chat_template.jinja").exists():
        files["default"] = folder / "chat_template.jinja"
    return found | {name: path.read_text(encoding="utf-8") for name, path in files.items()}


def renderer(
    templates: dict[str, str],
    chosen: str | None,
    special_tokens: dict[str, str],
    strftime_now: Callable[[str], str] | None,
) -> Callable[..., str]:
    """Makes `render(messages, add_generation_prompt, **variables) -> text`.

    Args: `chosen`, name or text of a template, None for `default`, or `tool_use` when tools are
    given and there is one; `special_tokens` (`bos_token`, ...) and, unless it is None,
    `strftime_now` are what templates find under these names.
    Raises: `render` raises ValueError if there is no template, if it cannot be read or refuses
    the messages, and ImportError if jinja2 is missing.
    """

    def render(messages, add_generation_prompt, **variables):
        name = chosen or ("tool_use" if variables.get("tools") else "default")
        text = templates.get(name) or chosen or templates.get("default")
        if text is None:
            raise ValueError("chat_template: the tokenizer has none, pass one to load")
        values = {"tools": None, "documents": None, **special_tokens, **variables}
        if strftime_now is not None:
            values["strftime_now"] = strftime_now
        try:
            plain = json.loads(json.dumps(messages))
        except TypeError as error:
            raise ValueError(f"messages: {error}, give text") from error
        try:
            return _compile(text).render(
                messages=plain, add_generation_prompt=add_generation_prompt, **values
            )
        except ImportError:
            raise
        # A template is someone else's program and may fail in any way.
        except Exception as error:
            hint = ", pass strftime_now=time.strftime to load" * ("strftime_now" in str(error))
            raise ValueError(f"chat_template: {error}{hint}") from error

    return render


@functools.cache
def _compile(text: str):
    """Compiles a template where the names that such templates use exist."""
    try:
        import jinja2
        from jinja2.ext import Extension, loopcontrols
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError as error:
        raise ImportError("chat templates need jinja2: pip install 'jrl[lm]'") from error

    class Generation(Extension):
        """Reads `{% generation %}...{% endgeneration %}`, which marks the assistant's words."""

        tags = {"generation"}

        def parse(self, parser):
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def raise_exception(message):
        raise jinja2.TemplateError(message)

    def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        # Jinja's own escapes what HTML would interpret.
        return json.dumps(
            x,
            ensure_ascii=ensure_ascii,
            indent=indent,
            separators=separators,
            sort_keys=sort_keys,
        )

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    return environment.from_string(text)
