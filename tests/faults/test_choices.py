"""Parameters that contradict each other or the data: told before a model is loaded."""

import warnings

import pytest
from realworld import make

from faults.catalog import fault
from faults.test_parameters import refused
from sdslib.config import FinetuneConfig
from sdslib.io.sources import DataError
from sdslib.io.wording import ParameterError
from sdslib.sets import roles


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make(tmp_path_factory.mktemp("real"))


def data_refused(**given):
    with pytest.raises((ParameterError, DataError)) as caught:
        roles.load_data(FinetuneConfig(**given))
    return caught.value


def warned(**given):
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        roles.load_data(FinetuneConfig(**given))
    return "\n".join(str(warning.message) for warning in told)


@fault(76, "both steps and epochs", "steps and epochs exclude each other, got steps 5 and epochs 2")
def test_both_steps_and_epochs():
    return refused(steps=5, epochs=2)


@fault(76, "weight for an arm without a teacher", "arm 'clip-only' has no L_SDS; leave out")
def test_a_weight_for_an_arm_without_a_teacher():
    return refused(arm="clip-only", sds_weight=0.1)


@fault(76, "teacher's term alone, at no weight", "arm 'sds-only' learns nothing at sds_weight 0")
def test_the_teachers_term_alone_at_no_weight():
    return refused(arm="sds-only", sds_weight=0)


@fault(76, "pooled embedding of a text", "arm 'sds-text' maps text embeddings too; leave")
def test_a_pooled_embedding_of_a_text():
    return refused(arm="sds-text", bridge_input="pooled")


@fault(76, "more draws than pairs", "choice_draws 9 needs as many pairs a batch; the teacher")
def test_more_draws_than_pairs():
    return refused(arm="teacher-choice", sds_weight=1.0, choice_draws=9, batch_size=4)


@fault(76, "batch that processes cannot share", "batch_size 32 cannot be divided among 3 processes")
def test_a_batch_that_processes_cannot_share():
    return refused(processes=3)


@fault(76, "set of parameters that is not known", "trainable must be one of …; did you mean")
def test_a_set_of_parameters_that_is_not_known():
    return refused(trainable="layernorms")


@fault(76, "tower that L_SDS does not reach", "arm 'sds' gives trainable 'text-tower' no gradient")
def test_a_tower_that_l_sds_does_not_reach():
    return refused(trainable="text-tower")


@fault(77, "arm without false captions", "arm 'hard-negatives' needs false captions, and …% of the")
def test_an_arm_without_false_captions(world):
    return data_refused(arm="hard-negatives", train_data=world.train_data, negatives="mini")


@fault(77, "too few pairs to hold some out", "validation 'held-out' takes a tenth of the pairs")
def test_too_few_pairs_to_hold_some_out(world):
    return data_refused(train_data=world.train_data, validation="held-out", batch_size=4)


@fault(77, "more pairs than validation leaves", "less what validation holds out has")
def test_more_pairs_than_validation_leaves():
    return data_refused(validation="held-out", train_pairs=4000)


@fault(77, "set to keep that is not known", "no benchmark 'cifar11'; there are")
def test_a_set_to_keep_that_is_not_known():
    return data_refused(keep="cifar11", eval_items=4)


@fault(77, "set to keep that is not here", "captions.json does not exist")
def test_a_set_to_keep_that_is_not_here(tmp_path):
    return data_refused(keep=f"retrieval:{tmp_path}/captions.json::{tmp_path}", eval_items=4)


@fault(78, "batch of one", "batch_size 1: L_CLIP is 0 whatever the student does, for it chooses")
def test_a_batch_of_one():
    return warned(batch_size=1, eval_items=4, keep="none")


@fault(78, "learning rate far too high", "lr 1e+09 is far above what trains CLIP")
def test_a_learning_rate_far_too_high():
    return warned(lr=1e9, eval_items=4, keep="none")
