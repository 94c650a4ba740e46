"""Answers of a given form: a schema, expression or grammar compiled by llguidance into masks over the vocabulary.

A request's form is compiled in its session, off the engine's thread. While it is answered, each token that was drawn is
handed to a thread of its own, which computes the mask for the next one while the model computes its logits (llguidance
releases the GIL), so that the rows beside it do not wait.
"""

from __future__ import annotations

import functools
from collections.abc import Collection
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import llguidance
import numpy as np
from llguidance.hf import from_tokenizer
from numpy.typing import NDArray

from decoder_service.engine import Constraint, ConstraintError
from decoder_service.output.reasoning import Marks

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Kind = Literal["json_schema", "regex", "grammar", "choice"]

# One way to write JSON, that of Qwen's tool calls. A model cannot write blanks for ever, and more tokens are forced.
JSON_OPTIONS = {
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
    "coerce_one_of": True,  # as anyOf: of several that match, the library cannot exclude all but one
}
_COMPILED = 64
_MOST_FORCED = 4096  # tokens before the first choice


class FormError(ValueError):
    """A form cannot be compiled: the compiler's sentence."""


@dataclass(frozen=True)
class Form:
    """The form that an answer must have.

    Attributes:
        kind: What `text` is. A choice is a JSON list of strings.
        text: The schema, expression, grammar or list.
    """

    kind: Kind
    text: str


class Constraints:
    """Compiles forms for one model, and keeps those that were compiled last. Safe to call from several threads.

    The vocabulary is prepared in the background, from `prepare` on or else for the first form. That takes seconds and
    126 MiB for one of 150,000 tokens.

    Args:
        tokenizer: The model's.
        vocabulary: Width of its logits.
        end_tokens: Tokens that end an answer; allowed where the form is complete.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, *, vocabulary: int, end_tokens: Collection[int]) -> None:
        self._vocabulary = vocabulary
        self._limits = llguidance.LLParserLimits(verbose_errors=False)
        self._compiled = functools.lru_cache(_COMPILED)(self._compile)
        # One is enough for all rows: a mask takes far less time than a step.
        self._thread = ThreadPoolExecutor(1, "masks")
        self._prepared = functools.cache(
            lambda: self._thread.submit(from_tokenizer, tokenizer, n_vocab=vocabulary, eos_token=sorted(end_tokens))
        )

    def prepare(self) -> None:
        """Begin to prepare the vocabulary, so that the first form does not wait for it."""
        self._prepared()

    def compile(self, form: Form, *, force: bool = True, scope: str = "") -> MatcherConstraint:
        """A constraint at the beginning of an answer. Takes up to a second for a large form that is new.

        Args:
            form: The form.
            force: Whether tokens without alternative are taken at once (see `Constraint.forced`).
            scope: Compiled forms are kept for requests of this scope, see `gateway.cache_scope`.

        Raises:
            FormError: It is no such form, or uses what is not supported.
        """
        return MatcherConstraint(self._compiled(form, scope).deep_copy(), self._vocabulary, self._thread, force=force)

    def _compile(self, form: Form, scope: str) -> llguidance.LLMatcher:  # the scope is part of the key
        try:
            if form.kind == "json_schema":
                grammar = llguidance.LLMatcher.grammar_from_json_schema(form.text, overrides=JSON_OPTIONS)  # type: ignore[arg-type]  # the type is not exported
            else:
                grammar = llguidance.grammar_from(form.kind, form.text)
        except ValueError as error:
            raise FormError(str(error)) from error
        matcher = llguidance.LLMatcher(self._prepared().result(), grammar, limits=self._limits, log_level=0)
        _check_beginning(matcher)
        return matcher


def _check_beginning(matcher: llguidance.LLMatcher) -> None:
    """Refuse a form that cannot be begun: some errors show only when masks are computed.

    Raises:
        FormError: It cannot.
    """
    probe = matcher.deep_copy()
    if not probe.is_error():
        probe.compute_bitmask()
    if not probe.is_error():
        forced = probe.compute_ff_tokens()
        if len(forced) > _MOST_FORCED:
            raise FormError("every text of this form begins in the same way for ever, or for too long")
        if probe.consume_tokens(forced):
            probe.compute_bitmask()
    if probe.is_error():
        why = " ".join(probe.get_error().replace("<non-verbose/>", "").split())
        raise FormError("no text has this form" if why.startswith("NoExtension") else why)


class MatcherConstraint:
    """One answer's way through a form.

    Args:
        matcher: At the beginning of the form.
        vocabulary: Tokens of a mask.
        thread: Computes masks.
        force: Whether tokens without alternative are taken at once.
    """

    def __init__(
        self, matcher: llguidance.LLMatcher, vocabulary: int, thread: ThreadPoolExecutor, *, force: bool = True
    ) -> None:
        self._matcher = matcher
        self._vocabulary = vocabulary
        self._thread = thread
        self._force = force
        self._forced: Future[list[int]] | None = None
        self._next: Future[NDArray[np.bool_]] = thread.submit(self._compute)

    def mask(self) -> NDArray[np.bool_]:
        """Tokens that may follow, bool [vocabulary]. Waits until it is computed.

        Raises:
            ConstraintError: It can go no further.
        """
        return self._next.result()

    def forced(self) -> list[int]:
        """The tokens behind the one drawn last that have no alternative; they are taken. Waits until they are known.

        Raises:
            ConstraintError: It can go no further.
        """
        return [] if self._forced is None else self._forced.result()

    def advance(self, token: int) -> None:
        """A token was drawn. Returns at once."""
        self._forced = self._thread.submit(self._consume, token)
        self._next = self._thread.submit(self._compute, self._forced)  # in the same thread, so it never waits

    def _consume(self, token: int) -> list[int]:
        if not self._matcher.consume_token(token):
            raise ConstraintError(self._matcher.get_error())
        forced = self._matcher.compute_ff_tokens() if self._force else []
        if not self._matcher.consume_tokens(forced):
            raise ConstraintError(self._matcher.get_error())
        return forced

    def _compute(self, consumed: Future[list[int]] | None = None) -> NDArray[np.bool_]:
        if consumed is not None:
            consumed.result()  # raises what went wrong there
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        if self._matcher.is_error():
            raise ConstraintError(self._matcher.get_error())
        return np.unpackbits(bits, count=self._vocabulary, bitorder="little").view(np.bool_)


class AfterReasoning:
    """Leaves the reasoning free, and constrains what follows it; the answer cannot end before. The marks are tokens.

    Args:
        constraint: Of the content.
        marks: The marks.
        opened: Whether the prompt ends inside the reasoning; if not, the answer may begin with it.
        vocabulary: Tokens of a mask.
        end_tokens: Tokens that end an answer.
    """

    def __init__(
        self, constraint: Constraint, marks: Marks, *, opened: bool, vocabulary: int, end_tokens: Collection[int]
    ) -> None:
        self._constraint = constraint
        self._marks = marks
        self._inside = opened
        self._may_open = not opened
        self._free = np.ones(vocabulary, np.bool_)
        self._free[list(end_tokens)] = False

    def mask(self) -> NDArray[np.bool_]:
        """As `Constraint`."""
        if self._inside:
            return self._free
        mask = self._constraint.mask()
        if self._may_open and self._marks.opening is not None:
            mask = mask.copy()
            mask[self._marks.opening] = True
        return mask

    def forced(self) -> list[int]:
        """As `Constraint`."""
        return [] if self._inside else self._constraint.forced()

    def advance(self, token: int) -> None:
        """As `Constraint`."""
        if self._inside:
            self._inside = token != self._marks.closing
        elif self._may_open and token == self._marks.opening:
            self._inside, self._may_open = True, False
        else:
            self._may_open = False
            self._constraint.advance(token)
