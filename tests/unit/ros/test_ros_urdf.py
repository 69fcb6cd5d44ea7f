"""Forward kinematics against hand-made arms and against MuJoCo's reading of the same URDF."""

from __future__ import annotations

import numpy as np
import pytest

from valueguide.errors import ConfigError
from valueguide.ros.urdf import UrdfChain

_INERTIA = '<inertial><mass value="1"/><inertia ixx="1" iyy="1" izz="1" ixy="0" ixz="0" iyz="0"/></inertial>'


def _link(name: str) -> str:
    return f'<link name="{name}">{_INERTIA}</link>'


def _joint(name: str, kind: str, parent: str, child: str, xyz: str, rpy: str, axis: str = "0 0 1") -> str:
    return (
        f'<joint name="{name}" type="{kind}"><parent link="{parent}"/><child link="{child}"/>'
        f'<origin xyz="{xyz}" rpy="{rpy}"/><axis xyz="{axis}"/>'
        '<limit lower="-3" upper="3" effort="1" velocity="1"/></joint>'
    )


#: An arm with every kind of joint, a base frame beside it (as `base` of a UR), and a gripper's finger.
ARM = (
    '<robot name="arm">'
    + "".join(_link(n) for n in ("world", "base_link", "base", "l1", "l2", "l3", "hand", "finger"))
    + _joint("mount", "fixed", "world", "base_link", "0.5 0 0.2", "0 0 0.3")
    + _joint("base_fixed", "fixed", "base_link", "base", "0 0 0", "0 0 3.14159265")
    + _joint("a", "revolute", "base_link", "l1", "0 0 0.3", "0.1 0.2 0.3", "0 0 1")
    + _joint("b", "continuous", "l1", "l2", "0.2 0 0", "1.2 0 0", "0 0.6 0.8")
    + _joint("c", "prismatic", "l2", "l3", "0.1 0.1 0", "0 -0.4 0", "1 0 0")
    + _joint("tool", "fixed", "l3", "hand", "0 0.05 0.1", "0 0 0")
    + _joint("finger_joint", "prismatic", "hand", "finger", "0 0 0.1", "0 0 0", "0 1 0")
    + "</robot>"
)
NAMES = ["a", "b", "c"]


def test_a_planar_arm() -> None:
    urdf = (
        '<robot name="r">' + "".join(map(_link, ("base", "l1", "l2", "hand")))
        + _joint("a", "revolute", "base", "l1", "0 0 0", "0 0 0")
        + _joint("b", "revolute", "l1", "l2", "1 0 0", "0 0 0")
        + _joint("t", "fixed", "l2", "hand", "1 0 0", "0 0 0")
        + "</robot>"
    )  # fmt: skip
    chain = UrdfChain.from_urdf(urdf, ["a", "b"], "base", "hand")
    found = chain.position(np.array([[0, 0], [np.pi / 2, 0], [0, np.pi / 2], [np.pi / 2, -np.pi / 2]]))
    np.testing.assert_allclose(found, [[2, 0, 0], [0, 2, 0], [1, 1, 0], [1, 1, 0]], atol=1e-6)
    assert found.dtype == np.float32


@pytest.mark.parametrize("base", ["world", "base_link", "base"])
def test_it_agrees_with_mujoco(base: str) -> None:
    mujoco = pytest.importorskip("mujoco")
    spec = mujoco.MjSpec.from_string(ARM.replace("<robot", "<robot", 1))
    spec.compiler.fusestatic = False
    model = spec.compile()
    data = mujoco.MjData(model)
    chain = UrdfChain.from_urdf(ARM, NAMES, base, "hand")
    for joints in np.random.default_rng(0).uniform(-2, 2, (20, 3)):
        for name, value in zip(NAMES, joints, strict=True):
            data.joint(name).qpos[0] = value
        mujoco.mj_kinematics(model, data)
        frame = data.body(base)
        wanted = frame.xmat.reshape(3, 3).T @ (data.body("hand").xpos - frame.xpos)
        np.testing.assert_allclose(chain.position(joints[None])[0], wanted, atol=1e-6)


def test_without_a_tip_the_last_joints_link_is_meant() -> None:
    joints = np.array([[0.3, -0.5, 0.2]])
    bare = UrdfChain.from_urdf(ARM, NAMES, "base_link").position(joints)
    named = UrdfChain.from_urdf(ARM, NAMES, "base_link", "l3").position(joints)
    np.testing.assert_array_equal(bare, named)


@pytest.mark.parametrize(
    ("text", "names", "base", "tip", "message"),
    [
        ("<robot", NAMES, "base", "", "expected a URDF"),
        ("<robot><joint name='j'><parent link='a'/></joint></robot>", ["j"], "a", "", "expected a URDF"),
        (ARM, ["a", "b", "d"], "base", "", "joints: expected a, b, d"),
        (ARM, NAMES, "chassis", "", "links: expected chassis"),
        (ARM, NAMES, "base", "tongs", "links: expected tongs"),
        (ARM, NAMES, "base", "l2", "joints between base and l2"),
        (ARM, ["a", "b"], "base", "hand", "moving joints of the arm"),
        (ARM, NAMES, "base", "finger", "moving joints of the arm"),
        (ARM, ["b", "c"], "l1", "base", "joints between"),
        (ARM.replace('"continuous"', '"floating"'), NAMES, "base", "", "type of b"),
    ],
)
def test_what_is_no_chain_is_named(text: str, names: list[str], base: str, tip: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        UrdfChain.from_urdf(text, names, base, tip)
