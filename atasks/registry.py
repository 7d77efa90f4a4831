"""Named items, and managers that hold them by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from atasks.errors import RegisteringTwice

__all__ = ["Manager", "RegisteringTwice", "RegistryItem"]


class RegistryItem:
    """A bag of attributes that is registered under one name. Two items are equal when their attributes are."""

    def __init__(self, **options: Any) -> None:
        self.__dict__.update(options)

    def update(self, other: RegistryItem) -> None:
        """Take over every attribute of the other item, as `dict.update` does."""
        self.__dict__.update(other.__dict__)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, dict):
            return self.__dict__ == other
        if isinstance(other, RegistryItem):
            return self.__dict__ == other.__dict__
        return NotImplemented

    __hash__ = None  # type: ignore[assignment]  # mutable, and equal by value

    if TYPE_CHECKING:  # at run time it would cost every attribute, and each call looks at seven

        def __getattr__(self, name: str) -> Any: ...

    def __repr__(self) -> str:
        return f"RegistryItem({', '.join(f'{name}={value!r}' for name, value in self.__dict__.items())})"


class Manager:
    """Items by name.

    With `unite=True` registering a name again adds to its item, and `get` makes an empty item for an unknown
    name. With `unite=False` registering a name again raises `RegisteringTwice`, and `get` returns None.
    """

    def __init__(self, name: str, unite: bool = True) -> None:
        self._name = name
        self._unite = unite
        self.items: dict[str, RegistryItem] = {}
        """Name -> item: for `get`, where the method of that name would be a call more."""

    def register(self, name: str, **options: Any) -> None:
        """Register an item of these attributes under `name`."""
        known = self.items.get(name)
        if known is None:
            self.items[name] = RegistryItem(**options)
        elif self._unite:
            known.update(RegistryItem(**options))
        else:
            raise RegisteringTwice(f"{name!r} is registered already in {self._name!r}")

    def unregister(self, name: str) -> None:
        """Forget `name`; a KeyError if it is unknown."""
        del self.items[name]

    def get(self, name: str) -> RegistryItem | None:
        """The item of that name; for an unknown one an empty item (`unite=True`) or None."""
        item = self.items.get(name)
        if item is None and self._unite:
            item = self.items[name] = RegistryItem()
        return item

    def names(self) -> list[str]:
        """Every registered name, in the order of registration."""
        return list(self.items)
