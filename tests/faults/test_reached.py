"""The Hub and its repositories: each way to be refused has its own line, before much is fetched."""

import pytest
import test_hub as reached
from test_hub import SD, UNET, made, offline, served  # noqa: F401

from faults.catalog import fault
from sdslib import student, teacher
from sdslib.checks import student_files
from sdslib.io import hub


def no_teacher(*args):
    return reached.refused(teacher.load_teacher, SD, *args)


@fault(25, "gated model without a token", "…: reading it needs a token (none was found). Accept")
def test_a_gated_model_without_a_token(served):  # noqa: F811
    served.gated.add(SD)
    return no_teacher()


@fault(25, "gated model whose terms were not accepted", "your account has not accepted its terms")
def test_a_gated_model_whose_terms_were_not_accepted(served, monkeypatch):  # noqa: F811
    monkeypatch.setenv("HF_TOKEN", reached.STRANGER)
    served.gated.add(SD)
    return no_teacher()


@fault(25, "model that is not there, or private", "there is no such model at …, or it is private")
def test_a_model_that_is_not_there(served):  # noqa: F811
    served.private.add(SD)
    return no_teacher()


@fault(25, "revision that is not there", "it has no revision 'v9'. …/commits/main lists its")
def test_a_revision_that_is_not_there(served):  # noqa: F811
    return no_teacher("v9")


@fault(25, "busy Hub", "the Hub is busy (it answered 429, asked several times). Wait some minutes")
def test_a_busy_hub(served):  # noqa: F811
    served.fault("/api/", "429", 9)
    return no_teacher()


@fault(25, "failing Hub", "the Hub fails (it answered 500, asked several times). Look at")
def test_a_failing_hub(served):  # noqa: F811
    served.fault("/api/", "500", 9)
    return no_teacher()


@fault(25, "Hub that never answers", "no answer within … s; SDS_HUB_PATIENCE sets how long")
def test_a_hub_that_never_answers(served, monkeypatch):  # noqa: F811
    monkeypatch.setenv("SDS_HUB_PATIENCE", "0.6")
    served.fault("/api/models", "hang", 1)
    return no_teacher()


@fault(31, "file damaged in the cache", "the cached … is damaged…Delete models--…/blobs/")
def test_a_file_damaged_in_the_cache(served, offline):  # noqa: F811
    teacher.load_teacher(SD)
    reached.flip(reached.blob(served, UNET))
    offline()
    return no_teacher()


@fault(
    31, "file damaged on its way, twice", "… arrived twice with another content than its hash says"
)
def test_a_file_damaged_on_its_way(served):  # noqa: F811
    served.fault("GET /lfs/", "flip", 2)
    return no_teacher()


@fault(37, "repository without a scheduler", "has no scheduler; diffusers' save_pretrained writes")
def test_a_repository_without_a_scheduler(served):  # noqa: F811
    reached.without("scheduler/*")(served.folder(SD))
    return no_teacher()


@fault(37, "repository with half precision alone", "has no …; there are …; give variant 'fp16'")
def test_a_repository_with_half_precision_alone(served):  # noqa: F811
    reached.without("*/*model.safetensors", "*/*.bin")(served.folder(SD))
    return no_teacher()


@fault(35, "repository with a pickled teacher alone", "is a pickle, which can run code when loaded")
def test_a_repository_with_a_pickled_teacher_alone(served):  # noqa: F811
    reached.without("*/*.safetensors")(served.folder(SD))
    return no_teacher()


@fault(35, "repository with a pickled student alone", "there are open_clip_pytorch_model.bin")
def test_a_repository_with_a_pickled_student_alone(served):  # noqa: F811
    (served.folder(reached.CLIP) / student_files.WEIGHTS).unlink()
    return reached.refused(student.load_student, f"hf-hub:{reached.CLIP}", None)


@fault(38, "variant that is not cached, without a network", "the local cache")
def test_a_variant_that_is_not_cached(served, offline):  # noqa: F811
    offline()
    hub.look.cache_clear()
    with pytest.raises(ValueError, match="Hub cannot be reached") as caught:
        teacher.load_teacher(SD, variant="fp16")
    return caught.value
