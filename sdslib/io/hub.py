"""Models and data sets of the Hub: one commit a process, every file checked against its hash.

What a repository holds is read before anything is fetched. Each way in which the Hub can refuse has
one message, the same for models and data sets. A request that takes long is told of after
`WORD_S` seconds and given up after `patience()`; a busy or failing Hub is asked again.
"""

from __future__ import annotations

import os
import re
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import httpx2

from sdslib.io.paths import project_path
from sdslib.io.sources import REPO_ID, AccessError, DataError, MissingFile, undecoded
from sdslib.io.storage import file_sha256, write_bytes

if TYPE_CHECKING:
    import datasets

# Why something of the Hub is out of reach
OFFLINE, NO_TOKEN, TERMS, NOT_FOUND = "offline", "no-token", "terms-not-accepted", "not-found"
NO_REVISION, BUSY, FAILING, DAMAGED = "no-revision", "busy", "failing", "damaged"
_AGAIN = (429, 500, 502, 503, 504)  # answers after which it is worth to ask once more
WAITS = (1.0, 4.0)  # seconds before the second and the third time
LONGEST_WAIT_S = 20.0
WORD_S = 5.0
MODEL_LOCAL = "a folder with the model's files"
MODEL, DATA_SET = "model", "data set"
_Answer = TypeVar("_Answer")


class Snapshot(NamedTuple):
    """A repository at one commit: its files with the SHA-256 of each, or '' where none is told.

    `refused` says why the Hub was not asked or did not answer, where the local cache was read;
    `kind` is model or data set, and `local` what errors name in its place.
    """

    repo: str
    revision: str
    commit: str
    files: Mapping[str, str]
    refused: AccessError | None = None
    kind: str = MODEL
    local: str = MODEL_LOCAL


def is_repo(source: str) -> bool:
    """Whether a source can only be a Hub id: `owner/name`, and no folder `owner` is here.

    A revision may follow: `owner/name@REVISION`.
    """
    return bool(REPO_ID.match(source)) and not project_path(source.partition("/")[0]).is_dir()


def patience() -> float:
    """Seconds after which a request without an answer is given up: SDS_HUB_PATIENCE, or 60."""
    try:
        return max(0.1, float(os.environ.get("SDS_HUB_PATIENCE", "60")))
    except ValueError:
        return 60.0


# --- models, and data sets as files --------------------------------------------------------------


@lru_cache(maxsize=64)
def look(
    repo: str, revision: str | None = None, local: str = MODEL_LOCAL, kind: str = MODEL
) -> Snapshot:
    """What a repository holds; nothing is fetched.

    A process sees one commit of a revision: what is loaded is what the run's id was made of.
    Out of reach, what the local cache holds is given back. AccessError says which of the refusals
    it was and what to do.
    """
    from huggingface_hub import HfApi

    try:
        # the client's type for a kind that is named at run time is a union
        info: Any = _asked(repo, lambda: HfApi().repo_info(
            repo, repo_type=_type(kind), revision=revision, files_metadata=True,
            timeout=patience()))  # fmt: skip
        told = {f.rfilename: f.lfs.sha256 if f.lfs else "" for f in info.siblings or ()}
        return Snapshot(repo, revision or "main", str(info.sha), told, None, kind, local)
    except Exception as error:  # the hub client raises a dozen unrelated types
        refused = refusal(error, repo, kind, local, revision)
        found = None if refused.reason in (NO_REVISION, DAMAGED) else cached(repo, revision, kind)
        if found is None:
            raise refused from error
        return found._replace(refused=refused, local=local)


def cached(repo: str, revision: str | None = None, kind: str = MODEL) -> Snapshot | None:
    """What the local cache holds of a repository, without a network; None if nothing."""
    folder, revision = cache_folder(repo, kind), revision or "main"
    kept = folder / "refs" / revision
    commit = kept.read_text().strip() if kept.is_file() else revision
    root = folder / "snapshots" / commit
    if not re.fullmatch(r"[\w.-]+", commit) or not root.is_dir():
        return None
    paths = sorted(path for path in root.rglob("*") if path.is_file())
    files = {p.relative_to(root).as_posix(): _sha256_of_name(p.resolve().name) for p in paths}
    return Snapshot(repo, revision, commit, files, kind=kind)


def bring(found: Snapshot, names: Iterable[str]) -> Path:
    """The folder of the snapshot with these files in it, each one equal to its hash.

    A file in the cache that is not is dropped and fetched once more. AccessError where that does
    not help, or the Hub is out of reach.
    """
    folder = cache_folder(found.repo, found.kind) / "snapshots" / found.commit
    for name in names:
        path = folder / name
        if not path.is_file():
            path = _fetch(found, name)
        if not _whole(path, found.files.get(name, "")):
            path = _again(found, name, path)
        folder = path.parents[name.count("/")]
    if found.refused is None and found.revision != found.commit:
        _keep_ref(found)
    return folder


def hashes(found: Snapshot, names: Iterable[str]) -> dict[str, str]:
    """SHA-256 by name; of large files as the Hub tells it, so that they need not be fetched."""
    there = {name: found.files.get(name, "") for name in names}
    small = [name for name, digest in there.items() if not digest]
    folder = bring(found, small) if small else Path()
    return there | {name: file_sha256(folder / name) for name in small}


def get_by_hand(repo: str, names: Iterable[str], revision: str | None = None) -> str:
    """The shell command that brings these files (or patterns) into the cache."""
    at = f" --revision {revision}" if revision else ""
    return f"hf download {repo}{at}" + "".join(f" --include '{name}'" for name in names)


def _fetch(found: Snapshot, name: str, force: bool = False) -> Path:
    from huggingface_hub import hf_hub_download

    try:  # the client itself asks again here, five times
        with _word(f"{found.repo}/{name}"):
            return Path(hf_hub_download(found.repo, name, repo_type=_type(found.kind),
                                        revision=found.commit, etag_timeout=patience(),
                                        force_download=force))  # fmt: skip
    except Exception as error:  # the hub client raises a dozen unrelated types
        named = None if found.revision == "main" else found.revision
        raise refusal(error, found.repo, found.kind, found.local, named) from error


def _again(found: Snapshot, name: str, path: Path) -> Path:
    """The file fetched anew in place of a damaged one."""
    blob = path.resolve()
    if found.refused is not None or _is_offline():
        raise AccessError(
            f"{found.repo}: the cached {name} is damaged: it is not what its hash says. Delete "
            f"{_below_cache(blob)} in the Hub's cache (HF_HOME) and load it again where there is a "
            "network",
            DAMAGED,
        )
    _drop(path)
    path = _fetch(found, name, force=True)
    if _whole(path, found.files.get(name, "")):
        return path
    told = _below_cache(path.resolve())
    _drop(path)
    raise AccessError(
        f"{found.repo}: {name} arrived twice with another content than its hash says ({told}); "
        "look for a proxy, a mirror or a disk that changes files, and run again",
        DAMAGED,
    )


def _drop(path: Path) -> None:
    path.resolve().unlink(missing_ok=True)
    path.unlink(missing_ok=True)


def _whole(path: Path, sha256: str) -> bool:
    blob = path.resolve()
    status = blob.stat()
    return _is_hashed(blob, sha256, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=1024)
def _is_hashed(blob: Path, sha256: str, size: int, changed: int) -> bool:
    """Whether a file is what its hash says; read once while size and time stay the same."""
    from huggingface_hub.utils.sha import git_hash

    wanted = sha256 or _sha256_of_name(blob.name)
    if wanted:
        return file_sha256(blob) == wanted
    if not re.fullmatch("[0-9a-f]{40}", blob.name):
        return True
    return git_hash(blob.read_bytes()) == blob.name


def _sha256_of_name(name: str) -> str:
    return name if re.fullmatch("[0-9a-f]{64}", name) else ""


def _keep_ref(found: Snapshot) -> None:
    """Say in the cache, in its own form, which commit the revision is: offline reads it there."""
    kept = cache_folder(found.repo, found.kind) / "refs" / found.revision
    if not kept.is_file() or kept.read_text() != found.commit:
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(kept, found.commit.encode())


def cache_folder(repo: str, kind: str = MODEL) -> Path:
    """Where the Hub's cache has what it holds of a repository."""
    from huggingface_hub import constants

    name = f"{_type(kind)}s--{repo.replace('/', '--')}"
    return Path(constants.HF_HUB_CACHE).expanduser() / name


def _type(kind: str) -> str:
    """What the hub client calls a kind of repository."""
    return "model" if kind == MODEL else "dataset"


def data_set_files(source: str, patterns: Sequence[str], local: str) -> Path:
    """The folder of a data set `owner/name` or `owner/name@REVISION` with those of its files that
    fit one of the patterns, each equal to its hash.

    `local` says, in errors, what to give in its place. Raises `AccessError`, and `MissingFile`
    where no file fits.
    """
    repo, _, revision = source.partition("@")
    found = look(repo, revision or None, local, DATA_SET)
    names = [name for name in found.files if any(fnmatch(name, p) for p in patterns)]
    if not names:
        raise MissingFile(f"{source}: holds no {' or '.join(patterns)}; give {local}")
    return bring(found, names)


def _below_cache(blob: Path) -> str:
    root = cache_folder("").parent.resolve()
    return str(blob.relative_to(root)) if blob.is_relative_to(root) else "/".join(blob.parts[-3:])


# --- data sets -----------------------------------------------------------------------------------


def hub_dataset(repo: str, split: str, local: str = "a local folder") -> datasets.Dataset:
    """Load one split of a Hub data set, images left encoded; asks for access first.

    `repo` may be `owner/name@REVISION`.
    Where that is refused the local cache is used, with a warning unless there is no network.
    `local` says, in errors, what to give in its place. Raises `AccessError` with its reason,
    `DataError` where the split is not there. Never runs code from the Hub; the token is `HF_TOKEN`
    or that of `hf auth login`.
    """
    import datasets

    repo, _, revision = repo.partition("@")
    refused = hub_access(repo, local)
    try:
        # refused, `datasets` would retry for 23 seconds before it looks into its cache
        with unasked(datasets.config, refused is not None), _word(f"data set {repo}"):
            found = datasets.load_dataset(repo, split=split, revision=revision or None)
            found = undecoded(found)
    except Exception as reason:  # `datasets` reports an absent cache by half a dozen exceptions
        if refused is None and (_status(reason) or isinstance(reason, httpx2.HTTPError)):
            refused = refusal(reason, repo, "data set", local)
        raise refused or DataError(f"{repo}, split {split!r}: {reason}") from reason
    if refused is not None and refused.reason != OFFLINE:
        told = f"{repo}: read from the local cache, for the Hub refuses it now ({refused.reason})"
        warnings.warn(told, stacklevel=2)
    return found


def cached_dataset(repo: str) -> bool:
    """Whether `datasets` has a Hub data set in its local cache, whole or in part; no network."""
    import datasets

    return Path(datasets.config.HF_DATASETS_CACHE, repo.replace("/", "___").lower()).is_dir()


def hub_access(repo: str, local: str = "a local folder") -> AccessError | None:
    """Ask the Hub whether a data set may be read; None if it may."""
    try:
        _asked(f"data set {repo}", lambda: _auth_check(repo))
    except Exception as error:  # the hub client raises a dozen unrelated types
        return refusal(error, repo, "data set", local)
    return None


def _auth_check(repo: str) -> None:
    from huggingface_hub import constants, get_token
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

    url = f"{constants.ENDPOINT}/api/datasets/{repo}/auth-check"
    headers = build_hf_headers(token=get_token() or False)
    timeout = httpx2.Timeout(patience(), connect=min(10.0, patience()))
    hf_raise_for_status(get_session().get(url, headers=headers, timeout=timeout))


# --- refusals ------------------------------------------------------------------------------------


def refusal(
    error: BaseException, repo: str, kind: str, local: str, revision: str | None = None
) -> AccessError:
    """What an error of the hub client means and what to do; `kind` is model or data set."""
    if isinstance(error, AccessError):
        return error
    from huggingface_hub import constants, get_token

    fault, detail = _cause(error, get_token())
    page = f"{constants.ENDPOINT}/{'datasets/' if kind == 'data set' else ''}{repo}"
    said = {
        OFFLINE: f"the Hub cannot be reached ({detail}) and the local cache does not hold it. "
        "Connect, or unset HF_HUB_OFFLINE, and run again",
        NO_TOKEN: f"reading it needs a token ({detail}). Accept its terms at {page}, make a read "
        "token at https://huggingface.co/settings/tokens, then set HF_TOKEN or run "
        "`hf auth login`",
        TERMS: "your account has not accepted its terms (or awaits approval). Open "
        f"{page} with the account of your token and accept them",
        NOT_FOUND: f"there is no such {kind} at {page}, or it is private. Check the spelling; "
        "for a private one set HF_TOKEN",
        NO_REVISION: f"it has no revision {revision!r}. {page}/commits/main lists its commits; "
        "correct it, or leave it out",
        BUSY: f"the Hub is busy ({detail}). Wait some minutes and run again; with a token "
        "(HF_TOKEN) it answers more often",
        FAILING: f"the Hub fails ({detail}). Look at https://status.huggingface.co and run again "
        "later",
    }
    at = f" at revision {revision!r}" if revision and fault != NO_REVISION else ""
    return AccessError(f"{repo}{at}: {said[fault]}. Without the Hub: give {local}.", fault)


def _cause(error: BaseException, token: str | None) -> tuple[str, str]:
    """The reason, and its detail, by the innermost error that tells one."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )
    from huggingface_hub.errors import OfflineModeIsEnabled as OfflineModeError

    found = _innermost(error)
    status, owned = _status(found), "it was refused" if token else "none was found"
    if isinstance(found, GatedRepoError):
        return (TERMS, "") if token else (NO_TOKEN, owned)
    if isinstance(found, RevisionNotFoundError):
        return NO_REVISION, ""
    if isinstance(found, RepositoryNotFoundError):
        return NOT_FOUND, ""
    if status == 401:
        return NO_TOKEN, owned
    if status in _AGAIN:
        times = f"it answered {status}, asked several times"
        return (BUSY if status in (429, 503) else FAILING), times
    if isinstance(found, HfHubHTTPError):
        return FAILING, f"it answered {status}"
    if isinstance(found, OfflineModeError) or _is_offline():
        return OFFLINE, "offline mode is on: HF_HUB_OFFLINE=1"
    if isinstance(found, httpx2.TimeoutException):
        return OFFLINE, f"no answer within {patience():.0f} s; SDS_HUB_PATIENCE sets how long"
    return OFFLINE, f"{type(found).__name__}: {' '.join(str(found).split())[:200]}"


def _innermost(error: BaseException) -> BaseException:
    """The hub client wraps what happened into "not in the cache"; unwrap it."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    while isinstance(error, LocalEntryNotFoundError) and error.__cause__ is not None:
        error = error.__cause__
    return error


def _status(error: BaseException) -> int | None:
    response = getattr(_innermost(error), "response", None)
    return getattr(response, "status_code", None)


# --- patience ------------------------------------------------------------------------------------


def _asked(what: str, call: Callable[[], _Answer]) -> _Answer:
    """The answer; a Hub that is busy or fails is asked again, twice."""
    for wait in WAITS:
        try:
            with _word(what):
                return call()
        except Exception as error:
            if _status(error) not in _AGAIN:
                raise
            time.sleep(min(_retry_after(error) or wait, LONGEST_WAIT_S))
    with _word(what):
        return call()


def _retry_after(error: BaseException) -> float:
    headers = getattr(getattr(_innermost(error), "response", None), "headers", {})
    text = headers.get("retry-after", "")
    return float(text) if text.isdigit() else 0.0


@contextmanager
def _word(what: str) -> Iterator[None]:
    """Say on stderr what is waited for, once it has lasted `WORD_S` seconds."""
    told = f"still waiting for the Hub: {what}"
    timer = threading.Timer(WORD_S, lambda: print(told, file=sys.stderr, flush=True))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextmanager
def unasked(client: Any = None, active: bool = True) -> Iterator[None]:
    """Ask the Hub nothing meanwhile, as under HF_HUB_OFFLINE; `client` has that switch: the hub
    client's `constants` (by default), or `datasets.config`."""
    from huggingface_hub import constants

    client = client or constants
    before = client.HF_HUB_OFFLINE
    client.HF_HUB_OFFLINE = before or active
    try:
        yield
    finally:
        client.HF_HUB_OFFLINE = before


def _is_offline() -> bool:
    from huggingface_hub import constants

    return constants.is_offline_mode()
