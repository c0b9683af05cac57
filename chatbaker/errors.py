"""What a person is told when something is wrong: what, where, and what to type next."""

from __future__ import annotations


class ChatBakerError(Exception):
    """A mistake that the user can mend; shown as one line, never as a traceback.

    what: the fact ("unknown key 'lerning_rate'"). where: file, line or key. hint: what to do or type next.
    """

    def __init__(self, what: str, where: str | None = None, hint: str | None = None) -> None:
        self.what, self.where, self.hint = what, where, hint
        super().__init__(str(self))

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}" if self.where else self.what
        return f"{text}. {self.hint}" if self.hint else text


def missing_extra(module: str, extra: str) -> ChatBakerError:
    """The error for a verb whose optional dependencies are not installed."""
    return ChatBakerError(
        f"this needs the package '{module}'",
        hint=f"Type: pip install 'chatbaker[{extra}]' (in a clone: pip install -e '.[{extra}]')",
    )
