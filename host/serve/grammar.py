"""Answers that follow a JSON schema: which tokens may come next, by llguidance.

llguidance (Microsoft, MIT) computes the set of allowed tokens from the schema as the text grows, in a fraction of a millisecond, and has wheels for every
Python and machine that the boards have.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tellme.golden.project import advice
from tellme.host.errors import UserError


class Grammars:
    """Constraints for one vocabulary.

    Parameters
    ----------
    tokenizer : tokenizer.json of the model, as text.
    vocab : logits of the model.
    ends : tokens that may come when the answer is complete.
    """

    def __init__(self, tokenizer: str, vocab: int, ends: Collection[int]):
        self._text, self.vocab, self.ends = tokenizer, vocab, sorted(ends)

    @cached_property
    def _vocabulary(self) -> Any:
        try:
            import llguidance
        except ImportError as e:
            raise UserError(
                f"answers that follow a schema need llguidance, which is not installed; install it: {advice('serve')}"
            ) from e
        if not self.ends:
            raise UserError("this model has no end token, so that no answer could end where its schema does")
        return llguidance.LLTokenizer(self._text, n_vocab=self.vocab, eos_token=list(self.ends))

    def schema(self, schema: dict[str, Any]) -> JsonConstraint:
        """A constraint for one answer.

        Raises
        ------
        UserError : the schema cannot be used; says why.
        """
        vocabulary = self._vocabulary
        import llguidance

        own = schema.get("x-guidance") or {}
        if not isinstance(own, dict):
            raise UserError("the JSON schema cannot be used: x-guidance must be an object")
        options = {"x-guidance": {"whitespace_flexible": False, **own}}
        grammar = llguidance.LLMatcher.grammar_from_json_schema(json.dumps({**schema, **options}))
        if found := llguidance.LLMatcher.validate_grammar(grammar, vocabulary):
            raise UserError(f"the JSON schema cannot be used: {' '.join(str(found).split())}")
        return JsonConstraint(llguidance.LLMatcher(vocabulary, grammar, log_level=0), self.vocab, self.ends)


class JsonConstraint:
    """What may come next in one answer."""

    def __init__(self, matcher: Any, vocab: int, ends: list[int]):
        self._matcher, self._vocab, self._ends = matcher, vocab, ends
        self._mask = np.zeros((1, (vocab + 31) // 32), np.int32)

    def allowed(self) -> NDArray[np.bool_]:
        """bool[vocab]; an end token is among them when the answer is complete, and alone where nothing may follow."""
        from llguidance.numpy import fill_next_token_bitmask

        fill_next_token_bitmask(self._matcher, self._mask)
        bits = np.unpackbits(self._mask.view(np.uint8), bitorder="little")[: self._vocab].astype(np.bool_)
        if not bits.any():
            bits[self._ends] = True
        return bits

    def take(self, token: int) -> None:
        """The token was chosen."""
        self._matcher.consume_token(token)
