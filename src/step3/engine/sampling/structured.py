"""Holds outputs to a form: compiles schemas, patterns and grammars beside the engine's loop, with xgrammar.

A form comes from outside, so everything about it is bounded: its size (`structured_params`), the time to
compile it, the processor time of each token, and the memory of what is kept. A form that exceeds a bound, or
that cannot be compiled, costs its own request and no other.
"""

import importlib.util
import json
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Collection
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from step3.engine.sampling.errors import ConstraintError
from step3.engine.sampling.grammar import (
    MAX_WHITESPACE,
    CompiledConstraint,
    bits_of,
    special_ids,
    tokenizer_info,
)
from step3.engine.sampling.schema_support import unsupported_part
from step3.engine.sampling.structured_params import StructuredOutputsParams

if TYPE_CHECKING:
    import xgrammar

_PROBED_TOKENS = 64
_ORIGIN = re.compile(r"^\[[0-9:]+\] \S+?:\d+: ")


@dataclass(frozen=True)
class GrammarLimits:
    """What forms may cost.

    Attributes:
        compile_seconds: from the order to the result; what still runs then goes on, but nobody waits for it.
        step_seconds: processor time of one token.
        cache_bytes: of compiled forms that are kept.
        workers: forms compiled at once.
        waiting: forms being compiled or waiting for it.
    """

    compile_seconds: float = 20.0
    step_seconds: float = 0.1
    cache_bytes: int = 256 * 2**20
    workers: int = 2
    waiting: int = 256


class GrammarCompiler:
    """Compiles forms in threads of its own, and keeps what was used last.

    Args:
        tokenizer: Transformers' fast tokenizer.
        vocab_size: width of the logits.
        stop_token_ids: the tokens that may end an output when its form is complete.
    """

    def __init__(
        self,
        tokenizer: Any,
        vocab_size: int,
        stop_token_ids: Collection[int],
        limits: GrammarLimits | None = None,
    ) -> None:
        self._tokenizer, self._vocab_size = tokenizer, vocab_size
        self._stop_token_ids = frozenset(stop_token_ids)
        self._limits = limits or GrammarLimits()
        self._kept: OrderedDict[StructuredOutputsParams, Future[CompiledConstraint]] = OrderedDict()
        self._lock = threading.Lock()
        self._workers = threading.BoundedSemaphore(self._limits.workers)
        self._loading = threading.Lock()
        self._xgrammar: xgrammar.GrammarCompiler | None = None
        self._token_ids: dict[str, int] = {}

    def compile(self, form: StructuredOutputsParams) -> "Future[CompiledConstraint]":
        """Orders a form; returns at once.

        Returns:
            A future of the caller's own, which may be cancelled. Its errors are ConstraintError: xgrammar is
            not installed, the form is malformed, asks for what a grammar cannot express, or takes too long.
        """
        own: Future[CompiledConstraint] = Future()
        if importlib.util.find_spec("xgrammar") is None:
            own.set_exception(
                ConstraintError("structured outputs need xgrammar: pip install 'step3[structured]'")
            )
            return own
        with self._lock:
            shared = self._kept.get(form)
            if shared is not None:
                self._kept.move_to_end(form)
            elif sum(not one.done() for one in self._kept.values()) >= self._limits.waiting:
                own.set_exception(ConstraintError("too many grammars are being compiled: try again later"))
                return own
            else:
                shared = self._kept[form] = Future()
                threading.Thread(target=self._work, args=(form, shared), daemon=True).start()
        shared.add_done_callback(lambda done: _pass_on(done, own))
        return own

    def _work(self, form: StructuredOutputsParams, result: "Future[CompiledConstraint]") -> None:
        patience = threading.Timer(self._limits.compile_seconds, self._give_up, (form, result))
        patience.daemon = True
        patience.start()
        with self._workers:
            compiled: CompiledConstraint | None = None
            try:
                if not result.done():
                    compiled = self._compile(form)
            except ConstraintError as error:
                self._fail(form, result, error)
            except Exception as error:
                reason = _ORIGIN.sub("", str(error)).strip()
                self._fail(form, result, ConstraintError(f"{form.kind} cannot be compiled: {reason[:500]}"))
        patience.cancel()
        if compiled is not None:
            with suppress(InvalidStateError):  # given up meanwhile
                result.set_result(compiled)
            self._evict()

    def _give_up(self, form: StructuredOutputsParams, result: "Future[CompiledConstraint]") -> None:
        self._fail(
            form,
            result,
            ConstraintError(
                f"{form.kind} was not compiled within {self._limits.compile_seconds:g} s: make it smaller"
            ),
        )

    def _fail(
        self,
        form: StructuredOutputsParams,
        result: "Future[CompiledConstraint]",
        error: ConstraintError,
    ) -> None:
        with self._lock:
            if self._kept.get(form) is result:
                del self._kept[form]
        with suppress(InvalidStateError):  # it has its result already
            result.set_exception(error)

    def _evict(self) -> None:
        with self._lock:
            sizes = {
                form: one.result().num_bytes
                for form, one in self._kept.items()
                if one.done() and one.exception() is None
            }
            used = sum(sizes.values())
            for form, size in sizes.items():
                if used <= self._limits.cache_bytes:
                    break
                del self._kept[form]
                used -= size

    def _compile(self, form: StructuredOutputsParams) -> CompiledConstraint:
        with self._loading:
            if self._xgrammar is None:
                self._xgrammar = self._load()
        names: set[int] = set()
        grammar = self._compile_kind(self._xgrammar, form, names)
        special = set(special_ids(self._tokenizer, self._vocab_size)) - names - self._stop_token_ids
        stops = bits_of(self._stop_token_ids, self._vocab_size)
        compiled = CompiledConstraint(
            grammar, ~bits_of(special, self._vocab_size), stops, self._limits.step_seconds
        )
        _probe(compiled, self._vocab_size, self._stop_token_ids)
        return compiled

    def _load(self) -> "xgrammar.GrammarCompiler":
        import xgrammar

        self._token_ids = self._tokenizer.get_vocab()
        info = tokenizer_info(self._tokenizer, self._vocab_size, self._stop_token_ids)
        threads = max(1, (os.cpu_count() or 1) // 2)
        return xgrammar.GrammarCompiler(info, max_threads=min(8, threads), cache_enabled=False)

    def _compile_kind(
        self, compiler: "xgrammar.GrammarCompiler", form: StructuredOutputsParams, names: set[int]
    ) -> "xgrammar.CompiledGrammar":
        if form.json is not None:
            schema = json.loads(str(form.json))
            found = unsupported_part(schema)
            if found is not None:
                raise ConstraintError(f"json: {found}, which a grammar cannot express: leave it out")
            return _compile_json(compiler, str(form.json), form)
        if form.json_object is not None:
            return _compile_json(compiler, '{"type": "object"}', form)
        if form.regex is not None:
            return compiler.compile_regex(form.regex)
        if form.choice is not None:
            return compiler.compile_grammar("root ::= " + " | ".join(map(_literal, form.choice)))
        if form.grammar is not None:
            return compiler.compile_grammar(form.grammar)
        return compiler.compile_structural_tag(self._with_ids(json.loads(str(form.structural_tag)), names))

    def _with_ids(self, part: Any, names: set[int]) -> Any:
        """A structural tag with the names of tokens made ids; all of these are added to `names`."""
        if isinstance(part, list):
            return [self._with_ids(inner, names) for inner in part]
        if not isinstance(part, dict):
            return part
        made: dict[str, Any] = {}
        for key, value in part.items():
            if key == "token" and part.get("type") == "token":
                made[key] = self._id(value)
                names.add(made[key])
            elif key == "exclude_tokens" and isinstance(value, list):
                made[key] = [self._id(one) for one in value]
            elif key == "trigger_tokens" and isinstance(value, list):
                made[key] = [self._id(one) for one in value]
                names.update(made[key])
            elif key == "rules" and part.get("type") == "token_dispatch":
                made[key] = [[self._id(one), self._with_ids(inner, names)] for one, inner in value]
                names.update(token_id for token_id, _ in made[key])
            else:
                made[key] = self._with_ids(value, names)
        return made

    def _id(self, token: Any) -> int:
        token_id = self._token_ids.get(token) if isinstance(token, str) else token
        if type(token_id) is not int or not 0 <= token_id < self._vocab_size:
            raise ConstraintError(f"structural_tag names the token {token!r}, which the model does not have")
        return token_id


def _compile_json(
    compiler: "xgrammar.GrammarCompiler", schema: str, form: StructuredOutputsParams
) -> "xgrammar.CompiledGrammar":
    if form.disable_any_whitespace:
        return compiler.compile_json_schema(schema, any_whitespace=False, separators=(",", ":"))
    return compiler.compile_json_schema(schema, max_whitespace_cnt=MAX_WHITESPACE)


def _literal(text: str) -> str:
    """A string of an EBNF grammar."""
    plain = (
        char if char.isascii() and char.isprintable() and char not in '"\\' else f"\\U{ord(char):08X}"
        for char in text
    )
    return f'"{"".join(plain)}"'


def _probe(compiled: CompiledConstraint, vocab_size: int, stop_token_ids: Collection[int]) -> None:
    """Tries a form on one long output made at random: it must allow something, and soon enough."""
    constraint, rng, stops = compiled.start(), Random(0), list(stop_token_ids)
    bitmask = torch.empty(1, -(-vocab_size // 32), dtype=torch.int32)
    for position in range(_PROBED_TOKENS):
        constraint.fill(bitmask, 0)
        if constraint.failure is not None:
            raise ConstraintError(constraint.failure)
        allowed = np.flatnonzero(np.unpackbits(bitmask.numpy().view(np.uint8), bitorder="little"))
        if not len(allowed) and position == 0:
            raise ConstraintError("the form allows no output at all")
        going_on = allowed[~np.isin(allowed, stops)]
        if not len(going_on) or not constraint.advance(int(rng.choice(going_on))):
            return


def _pass_on(done: "Future[CompiledConstraint]", own: "Future[CompiledConstraint]") -> None:
    if not own.set_running_or_notify_cancel():
        return
    error = done.exception()
    if error is not None:
        own.set_exception(error)
    else:
        own.set_result(done.result())
