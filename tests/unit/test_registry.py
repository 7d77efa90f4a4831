"""Items by name, managers that hold them, and the namespaces made of them."""

from __future__ import annotations

import pytest

import atasks
from atasks.namespaces import namespaces
from atasks.registry import Manager, RegisteringTwice, RegistryItem
from atasks.router import Router
from atasks.transport.loopback import LoopbackTransport


class TestItem:
    def test_attributes_are_what_was_registered(self) -> None:
        item = RegistryItem(one=1, two=[2])
        assert (item.one, item.two) == (1, [2])
        with pytest.raises(AttributeError, match="no attribute 'three'"):
            _ = item.three

    def test_equality_is_by_attributes(self) -> None:
        item = RegistryItem(one=1)
        assert item == RegistryItem(one=1)
        assert item == {"one": 1}
        assert item != RegistryItem(one=2)
        assert item != RegistryItem(one=1, two=2)
        assert item != {}
        assert item != 1
        assert RegistryItem() == {}

    def test_update_takes_over_what_the_other_has(self) -> None:
        item = RegistryItem(one=1, two=2)
        item.update(RegistryItem(two=20, three=30))
        assert item == {"one": 1, "two": 20, "three": 30}

    def test_items_cannot_be_keys(self) -> None:
        with pytest.raises(TypeError, match="unhashable"):
            hash(RegistryItem())

    def test_repr_shows_the_attributes(self) -> None:
        assert repr(RegistryItem(one=1, two="b")) == "RegistryItem(one=1, two='b')"


class TestUniting:
    def test_it_is_the_default(self) -> None:
        manager = Manager("things")
        assert manager.get("unknown") == {}

    def test_registering_again_adds_to_the_item(self) -> None:
        manager = Manager("things", unite=True)
        manager.register("a", one=1)
        item = manager.get("a")
        manager.register("a", two=2)
        assert manager.get("a") is item
        assert item == {"one": 1, "two": 2}
        manager.register("a", one=10)
        assert item == {"one": 10, "two": 2}

    def test_an_unknown_name_makes_an_item_to_which_one_can_add(self) -> None:
        manager = Manager("things", unite=True)
        item = manager.get("later")
        assert item == {}
        manager.register("later", one=1)
        assert item == {"one": 1}
        assert manager.names() == ["later"]


class TestNotUniting:
    def test_registering_again_is_refused_and_changes_nothing(self) -> None:
        manager = Manager("things", unite=False)
        manager.register("a", one=1)
        with pytest.raises(RegisteringTwice, match="'a' is registered already in 'things'") as caught:
            manager.register("a", one=2)
        assert isinstance(caught.value, AttributeError)
        assert manager.get("a") == {"one": 1}

    def test_an_unknown_name_is_none(self) -> None:
        manager = Manager("things", unite=False)
        assert manager.get("unknown") is None
        assert manager.names() == []


@pytest.mark.parametrize("unite", [True, False])
def test_unregister(unite: bool) -> None:
    manager = Manager("things", unite=unite)
    manager.register("a", one=1)
    manager.register("b", one=1)
    manager.unregister("a")
    assert manager.names() == ["b"]
    with pytest.raises(KeyError):
        manager.unregister("a")
    manager.register("a", two=2)
    assert manager.get("a") == {"two": 2}


def test_names_are_in_the_order_of_registration() -> None:
    manager = Manager("things")
    for name in "cab":
        manager.register(name)
    manager.register("c", again=True)
    assert manager.names() == ["c", "a", "b"]


def test_constructing_registers_in_the_namespace(namespace: str) -> None:
    item = namespaces.get(namespace)
    assert item == {}
    codec = atasks.PickleCodec(namespace)
    transport = LoopbackTransport(namespace)
    router = Router(namespace)
    assert item is not None
    assert (item.codec, item.transport, item.router, item.registry) == (codec, transport, router, router.registry)
    assert atasks.get_codec(namespace) is codec
    assert atasks.get_transport(namespace) is transport
    assert atasks.get_router(namespace) is router
    other = atasks.MsgpackCodec(namespace)
    assert atasks.get_codec(namespace) is other


def test_what_was_not_constructed(namespace: str) -> None:
    assert atasks.get_transport(namespace) is None
    assert type(atasks.get_codec(namespace)) is atasks.CloudpickleCodec
    assert atasks.get_codec(namespace) is atasks.get_codec(namespace)
    assert type(atasks.get_router(namespace)) is Router
    assert atasks.get_router(namespace) is atasks.get_router(namespace)


def test_the_default_namespace_is_called_default() -> None:
    assert atasks.get_router() is atasks.get_router("default")
    assert atasks.get_router().namespace == "default"
    assert atasks.get_codec() is atasks.get_codec("default")
