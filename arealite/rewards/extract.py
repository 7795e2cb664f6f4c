"""What a completion gives as its answer: pure string search, linear time, no regular expression."""

OPENING = "<answer>"
CLOSING = "</answer>"


def last_answer(text: str) -> str | None:
    """Text of the last complete ``<answer>...</answer>``, as written; None if there is none.

    Of nested tags the innermost pair counts. An opening tag that is never closed (an output cut
    off by its length limit) gives no answer of its own.
    """
    final_closing = text.rfind(CLOSING)
    if final_closing < 0:
        return None
    opening = text.rfind(OPENING, 0, final_closing)
    if opening < 0:
        return None
    start = opening + len(OPENING)
    return text[start : text.find(CLOSING, start)]
