"""The operators' pages agree with the programs, and no link in the documents is broken."""

import os
import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from api.document.guides import anchor
from api.gateway.settings import GatewaySettings
from api.settings import ApiSettings
from deploy.packages.parts import PACKAGES
from deploy.settings_page import page
from tests.operations.pages import FILES, FOLDER, PAGES, PROJECT, Block, blocks, text_of, without_blocks
from worker.program.configuration import ENV_PREFIX, FileSettings, load
from worker.settings import WorkerSettings

MODELS: dict[str, type[FileSettings]] = {
    "api": ApiSettings,
    "audit": ApiSettings,
    "gateway": GatewaySettings,
    "worker": WorkerSettings,
}
LANGUAGES = {  # with what uses a block
    "sh": "tests/operations/test_followed.py, by its kind",
    "toml": "below: the programs accept it as their settings",
    "ini": "tests/operations/test_followed.py writes it to the file that its page names",
    "nginx": "tests/integration/test_nginx.py",
    "console": "tests/integration/test_cli_docs.py",
    "mermaid": "nothing: a picture",
    "text": "nothing: a picture",
}
WORDS_A_MINUTE = 200
DOCUMENTS = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "deploy/*.md", "deploy/clients/**/*.md", "worker/**/*.md")
    for path in PROJECT.glob(pattern)
    if "node_modules" not in path.parts
)
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"^```.*?^```$|`[^`\n]*`", re.MULTILINE | re.DOTALL)


def anchors(path: Path) -> set[str]:
    titles = re.findall(r"^#+ (.*)$", _FENCED.sub("", path.read_text()), re.MULTILINE)
    return {anchor(re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", title).replace("`", "")) for title in titles}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(PROJECT)))
def test_every_link_leads_to_a_file_and_a_heading(document: Path) -> None:
    dead = []
    for link in _LINK.findall(_CODE.sub("", document.read_text())):
        where, _, mark = link.partition("#")
        there = (document.parent / where).resolve() if where else document
        if re.match(r"[a-z]+:|/", link):
            continue
        if not there.exists() or (mark and there.suffix == ".md" and mark not in anchors(there)):
            dead.append(link)
    assert dead == []


def test_no_document_has_an_empty_heading_or_doubled_bold_marks() -> None:
    broken = re.compile(r"^#+ *$|\*{4}", re.MULTILINE)
    assert [str(path) for path in DOCUMENTS if broken.search(_CODE.sub("code", path.read_text()))] == []


def test_the_index_has_every_page() -> None:
    index = text_of("README")
    assert sorted(path.stem for path in FOLDER.glob("*.md")) == sorted(PAGES)
    assert [name for name in PAGES if name != "README" and f"({name}.md)" not in index] == []


def test_the_index_says_how_long_each_page_takes() -> None:
    rows = dict(re.findall(r"^\| \[.*\]\((\w+)\.md\) \|.*\| (\d+) \|$", text_of("README"), re.MULTILINE))
    assert len(rows) > 5
    for name, minutes in rows.items():
        assert abs(int(minutes) - len(text_of(name).split()) / WORDS_A_MINUTE) < 2, name


def test_the_page_of_the_settings_is_generated() -> None:
    assert page() == text_of("settings"), "run make config-docs"


def test_the_page_of_the_settings_has_each_key_of_each_program() -> None:
    listed = set(re.findall(r"^\| `([a-z_.]+)` \|", text_of("settings"), re.MULTILINE)) - {"api.toml"}
    assert {key for model in MODELS.values() for key in keys(model)} <= listed


def keys(model: type[BaseModel], above: str = "") -> list[str]:
    found = []
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            found += keys(field.annotation, f"{above}{name}.")
        else:
            found.append(f"{above}{name}")
    return found


def every_block() -> list[Block]:
    return [block for name in FILES for block in blocks(name)]


@pytest.mark.parametrize("name", FILES)
def test_every_block_says_what_it_is(name: str) -> None:
    """No test would run a block of an unknown kind, or one that is only indented."""
    text = text_of(name)
    assert text.count("```") == 2 * len(blocks(name))
    assert "~~~" not in text
    assert not re.search(r"\n[ >]*\n[ >]*(?: {4}|\t)", f"\n{without_blocks(name)}")


def test_something_uses_each_block_or_says_why_nothing_does() -> None:
    assert {block.language for block in every_block()} == {*LANGUAGES}


@pytest.mark.parametrize("block", [block for block in every_block() if block.language == "toml"], ids=str)
def test_the_programs_that_a_block_of_settings_names_accept_it(
    block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith(ENV_PREFIX)]:
        monkeypatch.delenv(name)
    authority = tmp_path / "redis-ca.crt"
    authority.touch()
    assert block.kind
    for name in block.kind.split():
        file = tmp_path / f"{name}.toml"
        file.touch(mode=0o600)
        file.write_text(block.text.replace("/etc/vps-snapshots/redis-ca.crt", str(authority)))
        load(MODELS[name], file)


def test_every_setting_that_a_page_names_exists() -> None:
    known = {key.rpartition(".")[2] for model in MODELS.values() for key in keys(model)}
    text = "\n".join(text_of(name) for name in PAGES)
    named = set(re.findall(r"`([a-z]+(?:_[a-z]+)+) = ", text))
    assert len(named) > 8
    assert named - known == set()


def test_the_pages_name_each_package_and_unit() -> None:
    text = text_of("install")
    assert [package.name for package in PACKAGES if f"`{package.name}`" not in text] == []
    units = {path.stem for path in (PROJECT / "deploy" / "systemd").glob("vps-snapshots-*")}
    assert {unit for unit in units if unit not in text_of("architecture")} == set()
