"""Text for a terminal out of what others have written."""


def plain(text: str) -> str:
    """Without control characters: names and values of the store may not steer the terminal."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)
