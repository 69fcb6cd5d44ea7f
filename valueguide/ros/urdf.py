"""Where joint angles put the hand: forward kinematics from a URDF. For drawing only; nothing moves by it."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from valueguide.errors import ConfigError, mismatch
from valueguide.robots.kinematics import about, rotation_of_rpy
from valueguide.types import Float32

_TURNING, _SLIDING, _FIXED = ("revolute", "continuous"), "prismatic", "fixed"
Matrix = NDArray[np.floating]


@dataclass(frozen=True)
class _Joint:
    """column: place of its value among the joints that are given; -1: it does not move."""

    origin: Matrix
    axis: Matrix
    column: int
    slides: bool


class UrdfChain:
    """The joints from a base link to a tip link."""

    def __init__(self, start: Matrix, joints: Sequence[_Joint]) -> None:
        self._start, self._joints = start, tuple(joints)

    @classmethod
    def from_urdf(cls, text: str, names: Sequence[str], base: str, tip: str = "") -> UrdfChain:
        """names: joints whose values will be given, in that order. base, tip: links.

        An empty tip is the link that the last of the joints moves. Raises ConfigError when the text is no
        URDF, or names, base and tip are not one chain in which nothing else moves.
        """
        try:
            root = ElementTree.fromstring(text)
            found = {
                _child(joint, "child").attrib["link"]: joint for joint in root.iter("joint") if len(joint)
            }
            by_name = {joint.attrib["name"]: link for link, joint in found.items()}
            links = {link.attrib["name"] for link in root.iter("link") if "name" in link.attrib}
        except (ElementTree.ParseError, KeyError) as error:
            raise ConfigError(f"robot_description: expected a URDF, found {error!r}") from error
        missing = [name for name in names if name not in by_name]
        if missing or not names:
            raise ConfigError(mismatch("robot_description", "joints", ", ".join(names), sorted(by_name)))
        tip = tip or by_name[names[-1]]
        for link in (base, tip):
            if link not in links:
                raise ConfigError(mismatch("robot_description", "links", link, sorted(links)))
        down, up = _path(found, tip), _path(found, base)
        while down and up and down[0] is up[0]:
            del down[0], up[0]
        chain = [_joint(element, names) for element in down]
        unmoved = set(range(len(names))) - {joint.column for joint in chain}
        if unmoved or any(element.attrib.get("type") != _FIXED for element in up):
            where = f"joints between {base} and {tip}"
            found_names = [element.attrib["name"] for element in down]
            raise ConfigError(mismatch("robot_description", where, ", ".join(names), found_names))
        # From the base up to where the two paths part, then down to the tip.
        start = np.eye(4)
        for element in up:
            start = start @ _origin(element.find("origin"))
        return cls(np.linalg.inv(start), chain)

    def position(self, joints: NDArray[np.floating]) -> Float32:
        """joints (n, J), radians or metres -> positions of the tip float32 (n, 3), metres, base frame."""
        values = np.asarray(joints, np.float64)
        pose = np.broadcast_to(self._start, (len(values), 4, 4))
        for joint in self._joints:
            pose = pose @ joint.origin
            if joint.column >= 0:
                pose = pose @ _motion(joint, values[:, joint.column])
        return pose[:, :3, 3].astype(np.float32)


def _path(found: dict[str, ElementTree.Element], link: str) -> list[ElementTree.Element]:
    """The joints from the root to `link`; `found` maps a link to the joint above it."""
    path: list[ElementTree.Element] = []
    while link in found and len(path) <= len(found):
        path.insert(0, found[link])
        link = _child(found[link], "parent").attrib["link"]
    return path


def _joint(element: ElementTree.Element, names: Sequence[str]) -> _Joint:
    name, kind = element.attrib["name"], element.attrib["type"]
    if kind not in (*_TURNING, _SLIDING, _FIXED):
        raise ConfigError(
            mismatch("robot_description", f"type of {name}", (*_TURNING, _SLIDING, _FIXED), kind)
        )
    if kind != _FIXED and name not in names:
        raise ConfigError(mismatch("robot_description", "moving joints of the arm", list(names), name))
    axis = element.find("axis")
    direction = _numbers(axis.attrib["xyz"]) if axis is not None else np.array([1.0, 0, 0])
    column = list(names).index(name) if kind != _FIXED else -1
    return _Joint(_origin(element.find("origin")), direction, column, kind == _SLIDING)


def _origin(element: ElementTree.Element | None) -> Matrix:
    matrix = np.eye(4)
    if element is None:
        return matrix
    matrix[:3, :3] = rotation_of_rpy(*_numbers(element.attrib.get("rpy", "0 0 0")))
    matrix[:3, 3] = _numbers(element.attrib.get("xyz", "0 0 0"))
    return matrix


def _motion(joint: _Joint, values: Matrix) -> Matrix:
    axis = joint.axis / np.linalg.norm(joint.axis)
    moved = np.tile(np.eye(4), (len(values), 1, 1))
    if joint.slides:
        moved[:, :3, 3] = values[:, None] * axis
    else:
        moved[:, :3, :3] = about(axis, values)
    return moved


def _numbers(text: str) -> Matrix:
    return np.array([float(word) for word in text.split()])


def _child(element: ElementTree.Element, tag: str) -> ElementTree.Element:
    found = element.find(tag)
    if found is None:
        raise KeyError(f"{element.attrib.get('name', '?')}: no {tag}")
    return found
