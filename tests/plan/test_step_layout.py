"""One layout from the planner to the step, the journal and the files; older files are read too."""

from __future__ import annotations

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors.planning import StreamPlanError
from engine.plan.step_layout import StepLayout, difference
from engine.plan.stream_plan import StreamPlan

PLANS = st.builds(
    dict,
    tile=st.sampled_from([128, 4096]),
    key_block=st.sampled_from([4096, 65536]),
    stash=st.booleans(),
    checkpoint_every=st.integers(1, 8),
    weights=st.sampled_from(["resident", "nf4", "streamed", "nf4-streamed"]),
    kv_home=st.sampled_from(["gpu", "host"]),
    hidden_home=st.sampled_from(["host", "disk"]),
    stash_home=st.sampled_from(["host", "disk"]),
    gradient_home=st.sampled_from(["host", "disk"]),
    activation_bits=st.sampled_from([16, 8, 4]),
    loss_piece=st.sampled_from([64, 1024]),
    attention=st.sampled_from(["auto", "flash"]),
)
LAYOUTS = st.one_of(
    st.builds(StepLayout, recompute=st.booleans(), precision=st.sampled_from(["bf16", "fp32", "nf4"])),
    st.builds(
        StepLayout,
        stream=PLANS.map(lambda fields: StreamPlan(**fields)),
        precision=st.sampled_from(["bf16", "nf4"]),
        master_home=st.sampled_from([None, "gpu", "host"]),
        table_home=st.sampled_from(["gpu", "host"]),
        window_ranks=st.integers(1, 4),
    ),
)


@given(LAYOUTS)
def test_json_keeps_every_choice(layout):
    assert StepLayout.from_json(json.loads(json.dumps(layout.as_json()))) == layout


@given(LAYOUTS)
def test_the_form_of_earlier_checkpoints_is_read(layout):
    old = {"stream": layout.stream and dataclasses.asdict(layout.stream), "recompute": layout.recompute}
    assert StepLayout.from_json(json.loads(json.dumps(old)), like=dataclasses.replace(layout, stream=None)) == layout


def test_a_choice_that_an_earlier_version_did_not_know_is_its_default():
    message = StepLayout(stream=StreamPlan(tile=256, key_block=256)).as_json()
    del message["keep_layers"]
    assert StepLayout.from_json(message).stream == StreamPlan(tile=256, key_block=256)


@pytest.mark.parametrize("home", ["host", "disk"])
def test_earlier_versions_kept_attention_outputs_and_the_gradient_beside_the_hidden_states(home):
    layout = StepLayout(stream=StreamPlan(hidden_home=home, stash_home=home, gradient_home=home))
    message, old = layout.as_json(), {"stream": dataclasses.asdict(layout.stream), "recompute": False}
    for name in ("stash_home", "gradient_home"):
        del message[name], old["stream"][name]
    assert StepLayout.from_json(message) == StepLayout.from_json(old) == layout


@pytest.mark.parametrize(
    "data", [{}, {"stream": None}, {"order": "layer-major"}, {"stream": {"tile": -1}, "recompute": False}]
)
def test_what_is_no_layout_is_refused(data):
    with pytest.raises((KeyError, TypeError, StreamPlanError)):
        StepLayout.from_json(data)


def test_a_difference_names_what_changed():
    before = StepLayout(stream=StreamPlan(tile=4096))
    after = StepLayout(stream=StreamPlan(tile=2048))
    assert difference(before, after) == "tile 4096 → 2048"
    assert difference(StepLayout(), before).startswith("whole windows → tiles of 4,096")
