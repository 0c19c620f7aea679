"""A chat of several turns: what one client asks, what it heard, and when it begins anew."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pytest_ollama_perf.load.plan import Plan


@dataclass(frozen=True)
class Turn:
    """One question of a chat; without ``body`` the plan has it, and nobody listens to the answer."""

    number: int = 1
    body: bytes | None = None
    heard: list[str] | None = None


ALONE = Turn()
"""A request that belongs to no chat."""


class Talk:
    """The chats of one client, one after another. One that was cut short by a failure is not taken up again."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._turns = plan.workload.turns
        self._messages: list[dict[str, Any]] = []
        self._asked = 0

    def ask(self, index: int) -> Turn:
        """Return the next question, with everything that was said before it."""
        if self._turns == 1:
            return ALONE
        if not self._messages or self._asked == self._turns:
            self._messages, self._asked = self._plan.chat(index), 1
        else:
            self._messages.append(self._plan.question(index))
            self._asked += 1
        return Turn(self._asked, self._plan.chat_body(self._messages), [])

    def hear(self, turn: Turn, answered: bool) -> None:
        """Keep the answer in the chat."""
        if turn.heard is None:
            return
        if answered and turn.heard:
            self._messages.append({"role": "assistant", "content": "".join(turn.heard)})
        else:
            self._messages = []
