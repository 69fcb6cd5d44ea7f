"""The tools that the other ROS tests stand on: children on the ROS side, and what they say when they fail."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.ros


def _echo(text: str) -> None:
    from ros_client import Client
    from std_msgs.msg import String

    with Client() as client:
        publisher = client.publisher("answer", String)
        heard = client.wait("question", String)
        publisher.publish(String(data=heard.data + text))
        client.until(lambda: publisher.get_subscription_count() == 0, "end of the asker")


def _ask(text: str) -> dict[str, str]:
    from ros_client import Client
    from std_msgs.msg import String

    with Client() as client:
        answers = client.listen("answer", String)
        client.publisher("question", String).publish(String(data=text))
        return {"answer": client.until(lambda: answers, "answer")[0].data}


def _wait_in_vain() -> None:
    from ros_client import Client

    with Client() as client:
        client.active("nobody", timeout=0.5)


def test_two_children_talk_and_return_values(in_ros) -> None:
    echo = in_ros.start(_echo, text=", yes")
    assert in_ros(_ask, text="there?") == {"answer": "there?, yes"}
    assert echo.result() is None


def test_a_child_that_fails_fails_the_test_with_its_output(in_ros) -> None:
    with pytest.raises(pytest.fail.Exception, match="not active within 0 s: nobody"):
        in_ros(_wait_in_vain)
