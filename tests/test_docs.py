"""Every code block of the README and of docs/ runs.

The blocks of a page run in order, in one process and one empty folder beside a link to examples/:

- `python` is executed; `yaml`, `toml` and `json` are loaded as configs; `bash` is run, with the programs of
  this environment, which start warm: tests of the command start them as a user does.
- A block whose first line is `# file: NAME` (`// file: NAME` in json) is written to that file; a config is
  loaded as well.
- `text` and `mermaid` are for the reader.
- Of a bash block after `<!-- setup: train -->`, which makes an environment, only the last command is run; of
  one after `<!-- setup: test -->`, which runs this very test, none. `.ci/run` runs that one as it stands.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

from stratrun.registry import HOOKS, LOOPS
from tests.ranks import Ranks
from tests.warm import Warm

ROOT = Path(__file__).parents[1]
PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    *sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("docs/**/*.md")),
]
CONFIGS = ("yaml", "toml", "json")
FOR_READERS = ("text", "mermaid")
PAGE_SECONDS = 240
_FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\S*)[^\n]*\n(?P<text>.*?)^(?P=indent)```$", re.M | re.S)
_SETUP = re.compile(r"<!-- setup: (\w+) -->\s*\Z")
_FILE = re.compile(r"\A(?:#|//) file: (\S+)\n")
_LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)[^)]*\)")


@dataclass
class Block:
    """A fenced block of a page. `setup` is the word of a marker right before it."""

    language: str
    text: str
    line: int
    setup: str = ""


def blocks(markdown: str) -> Iterator[Block]:
    for found in _FENCE.finditer(markdown):
        before = markdown[: found.start()]
        marker = _SETUP.search(before)
        text = re.sub(f"^{found['indent']}", "", found["text"], flags=re.M)
        yield Block(found["language"], text, before.count("\n") + 1, marker[1] if marker else "")


def run_page(page: str) -> None:
    """Run the blocks of a page in the current folder. Meant for a process of its own."""
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        os.environ.pop(name, None)
    sys.path.insert(0, os.getcwd())
    sys.modules["__main__"] = main = ModuleType("__main__")
    for block in blocks(Path(page).read_text()):
        try:
            run_block(block, page, main)
        except BaseException as error:
            error.add_note(f"in the {block.language} block at {page}:{block.line}")
            raise


def run_block(block: Block, page: str, main: ModuleType) -> None:
    named = _FILE.match(block.text)
    if named:
        path = Path(named[1])
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block.text[named.end() :] if block.language == "json" else block.text)
    if block.language in CONFIGS:
        load_config(block, Path(named[1]) if named else Path(f"block-{block.line}.{block.language}"))
    elif block.language == "python" and not named:
        # Padded, so that a traceback shows the line of the page.
        exec(compile("\n" * block.line + block.text, page, "exec", dont_inherit=True), vars(main))
    elif block.language == "bash" and block.setup != "test":
        script = block.text
        if block.setup:
            script = script.rpartition("&&")[2].replace(".venv/bin/", "")
        subprocess.run(["bash", "-euxo", "pipefail", "-c", script], check=True, stdin=subprocess.DEVNULL)
    elif block.language not in ("python", "bash", *FOR_READERS):
        raise ValueError(f"language {block.language!r} is not known; for what is not run write ```text")


def load_config(block: Block, path: Path) -> None:
    from stratrun.config import Config

    if not path.exists():
        path.write_text(block.text)
    Config.load(str(path))


@pytest.fixture
def page_process(two_ranks: Ranks, warm: Warm, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ranks]:
    """A process of its own that has torch imported."""
    for programs in (Path(sys.executable).parent, warm.folder):
        monkeypatch.setenv("PATH", str(programs), prepend=os.pathsep)
    process = Ranks(two_ranks.server, 1, joined=False, limit=PAGE_SECONDS)
    yield process
    process.stop()


@pytest.mark.timeout(PAGE_SECONDS + 20)
@pytest.mark.parametrize("page", PAGES)
def test_every_block_of_a_page_runs(
    page: str, page_process: Ranks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    page_process(run_page, str(ROOT / page))


@pytest.mark.parametrize("page", PAGES)
def test_links_inside_the_project_lead_somewhere(page: str) -> None:
    links = _LINK.findall((ROOT / page).read_text())
    assert [link for link in links if not ((ROOT / page).parent / link).exists()] == []


def test_what_the_comparison_says_is_here_is_here() -> None:
    has, _ = (ROOT / "docs/comparison.md").read_text().split("## Not here")
    rows = [line for line in has.splitlines() if line.startswith("| ") and "shown by" not in line]
    for row in rows:
        *_, ours, shown, _ = (cell.strip() for cell in row.split("|"))
        tests = re.findall(r"`([\w/]+)`", shown)
        assert tests, row
        assert all((ROOT / "tests" / f"{test}.py").exists() for test in tests), row
        for name in re.findall(r"\b[A-Z]\w*(?:Hook|Loop)\b", ours):
            assert name == "BaseLoop" or (HOOKS if name.endswith("Hook") else LOOPS).get(name) is not None, (
                row
            )
    assert len(rows) > 60


def test_the_readme_has_both_commands_each_with_the_environment_it_needs() -> None:
    setups = {block.setup: block.text for block in blocks((ROOT / "README.md").read_text()) if block.setup}
    assert setups.keys() == {"train", "test"}
    for text in setups.values():
        assert "-m venv" in text
        assert re.search(r'pip install "torch==2\.13\.0" -e "\.\[\w+\]"', text)
    assert "stratrun train examples/" in setups["train"]
    assert "python -m pytest" in setups["test"]


PAGE = """# A page

```python
# file: model.py
SIZE = 3
```

<!-- setup: test -->
```bash
exit 1
```

<!-- setup: train -->
```bash
exit 1 \\
  && .venv/bin/python -c "open('trained', 'w')"
```

1. In a list:

   ```python
   from model import SIZE
   seen = SIZE
   ```

```python
if __name__ == "__main__":
    open("out.txt", "w").write(f"{seen}")
```

```bash
python -c 'import model' && cat out.txt > copy.txt
```

```text
exit 1
```
"""


def test_blocks_run_in_order_and_share_names_and_files(
    page_process: Ranks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("page.md").write_text(PAGE)
    page_process(run_page, "page.md")
    assert Path("copy.txt").read_text() == "3"
    assert Path("trained").exists()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("\n```python\nx = 1\nx.y\n```\n", "'int' object has no attribute 'y'"),
        ("\n```bash\nfalse\ntrue\n```\n", "returned non-zero exit status 1"),
        ("\n```yaml\na: [1\n```\n", "block-2.yaml"),
        ("\n```json\n// file: a.json\n{,}\n```\n", "a.json"),
        ("\n```\nx\n```\n", "write ```text"),
    ],
)
def test_a_block_that_fails_fails_its_page(
    text: str, told: str, page_process: Ranks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("page.md").write_text(text)
    with pytest.raises(Exception, match=re.escape(told)) as caught:
        page_process(run_page, "page.md")
    assert "block at page.md:2" in "".join(caught.value.__notes__)
