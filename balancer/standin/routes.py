"""Which call is which: by shape, in order, the first that fits. What no line knows is a collection of unknown kind."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable

from balancer.standin import answers, batches, files, gemini, google_openai, made, stores, uploads
from balancer.standin.answers import Refusal, Reply
from balancer.standin.ask import Ask

Handler = Callable[[Ask], Awaitable[Reply]]

_MODEL = re.compile(r"(?:models|tunedModels)/([^/:]+)")
_TABLE: tuple[tuple[str, re.Pattern[str], Handler], ...] = tuple(
    (method, re.compile(pattern), handler)
    for method, pattern, handler in (
        ("POST", r"(?:models|tunedModels)/[^/]+:generateContent", gemini.generate),
        ("POST", r"(?:models|tunedModels)/[^/]+:streamGenerateContent", gemini.stream),
        ("POST", r"(?:models|tunedModels)/[^/]+:countTokens", gemini.count_tokens),
        ("POST", r"models/[^/]+:embedContent", gemini.embed),
        ("POST", r"models/[^/]+:batchEmbedContents", gemini.batch_embed),
        ("POST", r"models/[^/]+:predict", gemini.predict),
        ("POST", r"models/[^/]+:predictLongRunning", batches.predict_long_running),
        ("POST", r"models/[^/]+:batchGenerateContent", batches.create),
        ("POST", r"models/[^/]+:asyncBatchEmbedContent", batches.create),
        ("GET", r"models", made.list_models),
        ("GET", r"models/[^/:]+", gemini.get_model),
        ("GET", r"files/[^/]+:download", files.download),
        ("GET", r"fileSearchStores/[^/]+/media/[^/]+", stores.download),
        ("POST", r"files:register", files.register),
        ("POST", r"files", files.create),
        ("POST", r"cachedContents", made.create_cache),
        ("PATCH", r"cachedContents/[^/]+", made.patch_cache),
        ("POST", r"batches/[^/]+:cancel", batches.cancel),
        ("POST", r"fileSearchStores", stores.create),
        ("DELETE", r"fileSearchStores/[^/]+", stores.delete),
        ("POST", r"fileSearchStores/[^/]+:importFile", stores.import_file),
        ("POST", r"tunedModels", made.tune),
        ("POST", r"auth_tokens", made.create_token),
        ("POST", r"openai/chat/completions", google_openai.chat),
        ("POST", r"openai/embeddings", google_openai.embeddings),
        ("POST", r"openai/images/generations", google_openai.images),
        ("GET", r"openai/models", google_openai.models),
        ("GET", r"openai/models/.+", google_openai.model),
    )
)


async def answer_to(ask: Ask) -> Reply:
    if ask.area == "upload":
        return await uploads.answer_to(ask)
    method = "GET" if ask.method == "HEAD" else ask.method
    target = f"{ask.name}:{ask.verb}" if ask.verb else ask.name
    for known, pattern, handler in _TABLE:
        if known == method and pattern.fullmatch(target):
            return await handler(ask)
    if ask.name.startswith(("models/", "openai/")) and "/operations/" not in ask.name:
        if ask.verb:
            raise Refusal(answers.model_not_found(ask.name, ask.version, ask.verb))
        raise Refusal(answers.not_found())
    return await made.generic(ask, method)


def model_of(ask: Ask) -> str | None:
    """The model that a path names, without its collection."""
    match = _MODEL.match(ask.name)
    return match[1] if match else None
