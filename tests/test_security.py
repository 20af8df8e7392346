"""No secret in a tracked file, no dependency older than a known fix, nothing that unpickles."""

import ast
import re
import subprocess
from pathlib import Path

import pytest
from packaging.version import Version

ROOT = Path(__file__).parents[1]
SECRETS = {
    "Hugging Face token": r"\bhf_[A-Za-z0-9]{30,}\b",
    "GitHub token": r"\b(gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{50,})\b",
    "AWS key": r"\b(AKIA|ASIA)[A-Z0-9]{16}\b",
    "OpenAI or Anthropic key": r"\bsk-(ant-|proj-)?[A-Za-z0-9_-]{32,}\b",
    "Slack token": r"\bxox[abprs]-[A-Za-z0-9-]{10,}\b",
    "private key": r"-----BEGIN [A-Z ]*PRIVATE KEY-----",
    "password in an address": r"\b[a-z]+://[^\s/:@'\"{}]+:[^\s/@'\"{}]+@",
}
# The first release without a known vulnerability that such a workbench would be open to.
FIXED = {
    "aiohttp": "3.12.14",  # CVE-2025-53643, request smuggling
    "certifi": "2024.7.4",  # CVE-2024-39689, distrusted roots
    "h11": "0.16.0",  # CVE-2025-43859, chunked bodies
    "jinja2": "3.1.6",  # CVE-2025-27516, sandbox escape
    "jupyter-core": "5.8.1",  # CVE-2025-30167, configuration of other users
    "jupyter-server": "2.14.1",  # CVE-2024-35178, hashes leaked
    "jupyterlab": "4.4.8",  # CVE-2025-59842, links without noopener
    "nbconvert": "7.17.0",  # CVE-2025-53000, code run by a converter on Windows
    "pillow": "11.3.0",  # CVE-2025-48379, DDS overflow
    "protobuf": "5.29.5",  # CVE-2025-4565, recursion
    "pyarrow": "14.0.1",  # CVE-2023-47248, code run by a file
    "ray": "2.52.0",  # CVE-2025-62593, code run by a web page
    "requests": "2.32.4",  # CVE-2024-47081, credentials leaked
    "setuptools": "78.1.1",  # CVE-2025-47273, path traversal
    "torch": "2.8.0",  # CVE-2025-32434 (2.6), weights_only; CVE-2025-3730
    "tornado": "6.5.0",  # CVE-2025-47287, denial of service
    "tqdm": "4.66.3",  # CVE-2024-34062, arguments that run
    "transformers": "4.53.0",  # CVE-2025-3777 and others, patterns without end
    "urllib3": "2.6.0",  # CVE-2025-66418 and others, decompression
}


def tracked() -> list[Path]:
    listed = subprocess.run(["git", "-C", ROOT, "ls-files", "-z"], capture_output=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    paths = [ROOT / name for name in listed.stdout.decode().split("\0") if name]
    return [path for path in paths if path.is_file()]


def found_in(text: str) -> list[str]:
    return [name for name, pattern in SECRETS.items() if re.search(pattern, text)]


def test_no_tracked_file_holds_a_secret():
    found = {}
    for path in tracked():
        if path.stat().st_size < 5_000_000 and path != Path(__file__):
            names = found_in(path.read_bytes().decode("utf-8", "replace"))
            found |= {path.relative_to(ROOT).as_posix(): names} if names else {}
    assert not found


@pytest.mark.parametrize(
    "text",
    [
        "HF_TOKEN=hf_" + "aB3" * 11,
        "ghp_" + "x1" * 18,
        "AKIA" + "ABCDEFGH12345678",
        "sk-ant-" + "a1b2" * 10,
        "-----BEGIN OPENSSH " + "PRIVATE KEY-----",
        "https://me:hunter2" + "@example.org",
    ],
)
def test_the_scan_sees_a_secret(text):
    assert len(found_in(f"x = '{text}'")) == 1


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().split("\n")
    pairs = [line.partition("==") for line in lines if line and not line.startswith("#")]
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, _, version in pairs}


def test_every_constraint_is_an_exact_version():
    for name, version in pins().items():
        assert re.fullmatch(r"\d[\w.+]*", version), f"{name} is not pinned exactly: {version!r}"


def too_old(pinned: dict[str, str]) -> list[str]:
    return [
        f"{name} {pinned[name]} is older than {fixed}"
        for name, fixed in FIXED.items()
        if name in pinned and Version(pinned[name]) < Version(fixed)
    ]


def test_no_dependency_is_older_than_a_known_fix():
    assert not too_old(pins())
    assert too_old({"pillow": "11.2.0"}) == ["pillow 11.2.0 is older than 11.3.0"]


def test_the_library_unpickles_nothing_and_evaluates_nothing():
    """ruff's S301 says so of pickle; the rest by name. One room takes tensors alone of a pickle."""
    bad = {"eval", "exec", "torch.load", "pickle.load", "pickle.loads", "pd.read_pickle"}
    bad |= {"yaml.load", "marshal.loads", "shelve.open", "np.load", "joblib.load", "os.system"}
    for path in ROOT.glob("sdslib/**/*.py"):
        calls = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)]
        found = {ast.unparse(call.func) for call in calls} & bad
        assert found == ({"torch.load"} if path.name == "checkpoints.py" else set()), path.name
        for call in (call for call in calls if ast.unparse(call.func) == "torch.load"):
            assert {k.arg: ast.unparse(k.value) for k in call.keywords}["weights_only"] == "True"
        assert not [c for c in calls for k in c.keywords
                    if k.arg == "shell" and ast.unparse(k.value) != "False"], path.name  # fmt: skip
