"""The arm's kinematics against MuJoCo's, on the model that trossen-arm-sim ships."""

from __future__ import annotations

import mujoco
import numpy as np
import pytest
import trossen_arm
from hypothesis import given, settings
from hypothesis import strategies as st
from trossen_arm_sim.sim import DEFAULT_SCENE, load_scene

from valueguide.errors import DataError
from valueguide.robots.kinematics import Chain, Pose, quaternion_of, rotation_of
from valueguide.robots.motion import HAND_DOWN

_HOME = [0.0, 1.49, 1.19, -1.28, 0.0, 0.0]


def vendor_chain() -> Chain:
    """As the driver reads it from a controller that leaves the factory."""
    joints = trossen_arm.StandardJoints.wxai_v0_20260626[:6]
    tool = trossen_arm.StandardEndEffector().wxai_v0_follower.t_flange_tool
    return Chain.of(
        [list(joint.axis)[:3] for joint in joints],
        [list(joint.origin_xyz) for joint in joints],
        [list(joint.origin_rpy) for joint in joints],
        list(tool),
        [-3.054, 0.0, 0.0, -1.571, -1.571, -3.142],
        [3.054, 3.142, 2.357, 1.571, 1.571, 3.142],
    )


@pytest.fixture(scope="module")
def chain() -> Chain:
    return vendor_chain()


def test_forward_agrees_with_mujoco_within_a_millimetre(chain: Chain) -> None:
    model = load_scene(DEFAULT_SCENE)
    data = mujoco.MjData(model)
    places = [model.joint(f"joint_{i}").qposadr[0] for i in range(6)]
    site, generator, distances = model.site("ee_site").id, np.random.default_rng(0), []
    for _ in range(500):
        joints = generator.uniform(chain.low, chain.high)
        data.qpos[places] = joints
        mujoco.mj_kinematics(model, data)
        pose = chain.forward(joints)
        distances.append(np.linalg.norm(pose.position - data.site_xpos[site]))
        np.testing.assert_allclose(pose.rotation, data.site_xmat[site].reshape(3, 3), atol=1e-6)
    assert max(distances) < 1e-3


def test_the_jacobian_is_the_derivative_of_forward(chain: Chain) -> None:
    joints = np.array(_HOME) + 0.1
    _, jacobian = chain._walk(joints)
    for i in range(6):
        step = np.zeros(6)
        step[i] = 1e-6
        before, after = chain.forward(joints - step), chain.forward(joints + step)
        np.testing.assert_allclose((after.position - before.position) / 2e-6, jacobian[:3, i], atol=1e-6)
        turn = (after.rotation - before.rotation) / 2e-6 @ before.rotation.T
        np.testing.assert_allclose([turn[2, 1], turn[0, 2], turn[1, 0]], jacobian[3:, i], atol=1e-5)


def test_the_turns_between_joints_count() -> None:
    # One joint about z, its frame rolled by 90 degrees: the tool, 1 m along x, turns in the x-z plane.
    chain = Chain.of([[0, 0, 1]], [[0, 0, 0.5]], [[np.pi / 2, 0, 0]], [1, 0, 0, 0, 0, 0], [-2], [2])
    np.testing.assert_allclose(chain.forward([np.pi / 2]).position, [0, 0, 1.5], atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(
    place=st.tuples(st.floats(0.20, 0.32), st.floats(-0.2, 0.2), st.floats(0.02, 0.12)),
    yaw=st.floats(-1.2, 1.2),
)
def test_inverse_leads_back_to_the_pose(place, yaw) -> None:
    chain = vendor_chain()
    wanted = Pose(np.array(place), rotation_of([0, 0, yaw]) @ HAND_DOWN)
    joints = chain.solve(wanted, _HOME)
    assert (joints >= chain.low).all()
    assert (joints <= chain.high).all()
    found = chain.forward(joints)
    assert np.linalg.norm(found.position - wanted.position) < 5e-4
    assert np.abs(found.rotation - wanted.rotation).max() < 5e-4


def test_a_pose_out_of_reach_is_refused_with_the_miss(chain: Chain) -> None:
    with pytest.raises(DataError, match=r"\(0\.900, 0\.000, 0\.100\) m is out of reach.*missed by"):
        chain.solve(Pose(np.array([0.9, 0.0, 0.1]), HAND_DOWN), _HOME)


@given(st.tuples(*[st.floats(-1.5, 1.5)] * 3))
def test_quaternions_turn_vectors_as_their_matrices_do(vector) -> None:
    rotation = rotation_of(vector)
    x, y, z, w = quaternion_of(rotation)
    assert abs(x * x + y * y + z * z + w * w - 1) < 1e-9
    direction, axis = np.array([0.3, -0.5, 0.8]), np.array([x, y, z])
    turned = direction + 2 * np.cross(axis, np.cross(axis, direction) + w * direction)
    # Older OpenCV takes an angle below 1e-5 rad for none.
    np.testing.assert_allclose(turned, rotation @ direction, atol=2e-5)
