"""`--policy-dir`: files that come, change and go in every way that editors and tools know."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

import pytest
import yaml

from fabric.policing import objects
from fabric.policing.directory import PolicyDirectory, file_name
from fabric.policing.documents import Given
from fabric.policing.source import PolicySourceError
from tests.fabric.clock import eventually
from tests.fabric.policing.recorder import network_policy

GOOD = yaml.safe_dump(network_policy("web"))
KEY = "networking.k8s.io/v1/NetworkPolicy/shop/web"
Body = Callable[[PolicyDirectory], Awaitable[None]]


def titles(directory: PolicyDirectory) -> list[str] | None:
    return None if directory.content is None else sorted(map(objects.title, directory.content.objects))


def following(path: Path, body: Body, remembered: Mapping[str, Given] | None = None) -> PolicyDirectory:
    """Run `body` while the directory is followed."""
    directory = PolicyDirectory(path)

    async def whole() -> None:
        await directory.first(remembered)
        task = asyncio.get_running_loop().create_task(directory.run())
        try:
            await asyncio.wait_for(body(directory), 20)
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    asyncio.run(whole())
    return directory


def first(path: Path, remembered: Mapping[str, Given] | None = None) -> PolicyDirectory:
    directory = PolicyDirectory(path)
    asyncio.run(directory.first(remembered))
    return directory


def test_files_are_read_and_others_are_not_looked_at(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(GOOD)
    (tmp_path / "b.json").write_text('{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}}')
    (tmp_path / "c.yml").write_text("")
    (tmp_path / ".hidden.yaml").write_text("[")
    (tmp_path / "a.yaml~").write_text("[")
    directory = first(tmp_path)
    assert titles(directory) == ["Namespace shop", "NetworkPolicy shop/web"]
    assert directory.content is not None
    assert directory.content.objects[KEY].place() == "a.yaml:1"
    assert directory.problem() == ""


def test_an_empty_directory_is_a_complete_reading(tmp_path: Path) -> None:
    assert titles(first(tmp_path)) == []


def test_changes_are_followed(tmp_path: Path) -> None:
    async def body(directory: PolicyDirectory) -> None:
        (tmp_path / "a.yaml").write_text(GOOD)
        await eventually(lambda: titles(directory) == ["NetworkPolicy shop/web"])
        temporary = tmp_path / ".a.yaml.swp"
        temporary.write_text(GOOD.replace("web", "db"))
        temporary.rename(tmp_path / "a.yaml")
        await eventually(lambda: titles(directory) == ["NetworkPolicy shop/db"])
        (tmp_path / "a.yaml").unlink()
        await eventually(lambda: titles(directory) == [])

    following(tmp_path, body)


def test_an_editor_that_renames_the_old_file_away_first_opens_no_gap(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(GOOD)
    seen: list[object] = []

    async def body(directory: PolicyDirectory) -> None:
        directory.changed = lambda: seen.append(titles(directory))
        (tmp_path / "a.yaml").rename(tmp_path / "a.yaml~")
        with (tmp_path / "a.yaml").open("w") as file:
            file.write(GOOD[:20])
            file.flush()
            (tmp_path / "other.yaml").write_text("")  # has the directory looked at in the middle
            await eventually(lambda: seen)
            file.write(GOOD[20:] + "---\n" + GOOD.replace("web", "db"))
        await eventually(lambda: titles(directory) == ["NetworkPolicy shop/db", "NetworkPolicy shop/web"])

    following(tmp_path, body)
    assert [item for item in seen if "NetworkPolicy shop/web" not in (item or [])] == []  # type: ignore[operator]


def test_a_file_that_is_being_written_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "a.yaml").open("w") as file:
        file.write(GOOD)
        file.flush()
        directory = PolicyDirectory(tmp_path)
        asyncio.run(directory.look(set()))
        assert directory.content is None
    asyncio.run(directory.look({"a.yaml"}))  # as the watch says when it was closed
    assert titles(directory) == ["NetworkPolicy shop/web"]


def test_a_mounted_config_map_is_exchanged_by_its_link(tmp_path: Path) -> None:
    mount = tmp_path / "mount"
    for name, text in (("one", GOOD), ("two", GOOD.replace("web", "db"))):
        (mount / name).mkdir(parents=True)
        (mount / name / "a.yaml").write_text(text)
    (mount / "..data").symlink_to("one")
    (mount / "a.yaml").symlink_to("..data/a.yaml")

    async def body(directory: PolicyDirectory) -> None:
        assert titles(directory) == ["NetworkPolicy shop/web"]
        (mount / "..new").symlink_to("two")
        (mount / "..new").rename(mount / "..data")
        await eventually(lambda: titles(directory) == ["NetworkPolicy shop/db"])

    following(mount, body)


def test_a_file_that_breaks_keeps_its_last_good_objects(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a.yaml").write_text(GOOD)

    async def body(directory: PolicyDirectory) -> None:
        (tmp_path / "a.yaml").write_text("a: [\n")
        await eventually(lambda: directory.content and directory.content.problems)
        assert titles(directory) == ["NetworkPolicy shop/web"]
        (tmp_path / "b.yaml").write_text(GOOD.replace("web", "db"))
        await eventually(lambda: len(titles(directory) or []) == 2)

    following(tmp_path, body)
    said = [line for line in caplog.messages if "a.yaml" in line]
    assert len(said) == 1
    assert "line 2: not YAML" in said[0]
    assert "last good objects stay" in said[0]


@pytest.mark.parametrize("how", ["broken", "no file"])
def test_what_was_never_readable_shows_nothing(tmp_path: Path, how: str, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "b.yaml").write_text(GOOD)
    if how == "broken":
        (tmp_path / "a.yaml").write_text("a: [\n")
    else:
        (tmp_path / "a.yaml").mkdir()

    async def body(directory: PolicyDirectory) -> None:
        assert directory.content is None
        if how == "broken":
            (tmp_path / "a.yaml").write_text("")
        else:
            (tmp_path / "a.yaml").rmdir()
        await eventually(lambda: titles(directory) == ["NetworkPolicy shop/web"])

    following(tmp_path, body)
    assert len([line for line in caplog.messages if "pods stay closed until it can be read" in line]) == 1


@pytest.mark.slow
def test_without_the_directory_the_last_run_counts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "gone"
    remembered = {KEY: Given(network_policy("web"), "a.yaml", 1)}
    assert titles(first(path)) is None

    async def body(directory: PolicyDirectory) -> None:
        assert titles(directory) == ["NetworkPolicy shop/web"]
        assert "cannot be read: No such file" in directory.problem()
        path.mkdir()
        await eventually(lambda: titles(directory) == [])
        assert directory.problem() == ""

    following(path, body, remembered)
    assert "going on with the policies of the last run" in caplog.text


def test_a_broken_file_has_the_objects_of_the_last_run(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("[")
    remembered = {KEY: Given(network_policy("web"), "a.yaml", 1),
                  KEY.replace("web", "old"): Given(network_policy("old"), "removed.yaml", 1)}  # fmt: skip
    assert titles(first(tmp_path, remembered)) == ["NetworkPolicy shop/web"]


@pytest.mark.slow
def test_the_directory_goes_and_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "policies"
    path.mkdir()
    (path / "a.yaml").write_text(GOOD)

    async def body(directory: PolicyDirectory) -> None:
        path.rename(tmp_path / "away")
        await eventually(directory.problem)
        assert titles(directory) == ["NetworkPolicy shop/web"]
        path.mkdir()
        await eventually(lambda: titles(directory) == [])
        (path / "a.yaml").write_text(GOOD)
        await eventually(lambda: titles(directory) == ["NetworkPolicy shop/web"])

    following(path, body)


def test_the_same_object_twice_and_one_without_a_name(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(GOOD)
    (tmp_path / "b.yaml").write_text(GOOD + "---\nkind: Pod\n")
    directory = first(tmp_path)
    assert directory.content is not None
    assert directory.content.objects[KEY].file == "a.yaml"
    assert list(directory.content.problems) == ["b.yaml:9", "b.yaml:1"]
    assert directory.content.problems["b.yaml:1"] == "NetworkPolicy shop/web is in a.yaml:1 already"


def test_put_and_remove(tmp_path: Path) -> None:
    (tmp_path / "both.yaml").write_text(GOOD + "---\n" + GOOD.replace("web", "db"))

    async def body(directory: PolicyDirectory) -> None:
        key, value = objects.normal(network_policy("new"))
        place = await directory.put(key, value)
        assert place == str(tmp_path / "networkpolicy-shop-new.yaml")
        file = tmp_path / "networkpolicy-shop-new.yaml"
        assert file.stat().st_mode & 0o777 == 0o644
        assert yaml.safe_load(file.read_text()) == value
        changed = {**value, "spec": {"podSelector": {"matchLabels": {"a": "b"}}}}
        assert await directory.put(key, changed) == place
        assert directory.content is not None
        assert directory.content.objects[key].value == changed
        await directory.remove(key)
        assert not file.exists()
        assert key not in directory.content.objects
        with pytest.raises(PolicySourceError, match=r"both\.yaml:1 beside other objects"):
            await directory.remove(KEY)
        with pytest.raises(PolicySourceError, match="is not in"):
            await directory.remove(key)

    following(tmp_path, body)


def test_file_names_hold_no_path() -> None:
    assert file_name("projectcalico.org/v3/Tier//a b\n") == "calico-tier-a_b_.yaml"
    assert file_name(KEY) == "networkpolicy-shop-web.yaml"
