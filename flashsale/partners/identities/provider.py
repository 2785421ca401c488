"""What the engine asks of an identity provider, whoever it is: whether a number and a name are one person's.

Nothing here is logged, and no error carries what was asked: numbers are people's own.
"""

from typing import Protocol


class IdentityProviderAway(Exception):
    """No answer, or one that decides nothing. Ask again with the same arguments."""


class IdentityProvider(Protocol):
    """An account with a provider."""

    async def matches(self, country: str, number: str, name: str) -> bool:
        """Whether the document of that (normalised) number is that person's. Raises IdentityProviderAway."""
        ...

    async def aclose(self) -> None:
        """Close the connections."""
        ...
