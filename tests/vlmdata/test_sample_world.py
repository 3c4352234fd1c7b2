from __future__ import annotations

import itertools
import random
from collections import defaultdict

import pytest

from vlmdata.sample import language
from vlmdata.sample.draw import draw_scene
from vlmdata.sample.world import COMPANIONS, KINDS, TEST_LAYOUT, TRAIN_LAYOUT, Layout, Scene, compose, scenes


def take(count: int, layout: Layout = TRAIN_LAYOUT, seed: int = 0) -> list[Scene]:
    return list(itertools.islice(scenes("tests", seed, layout), count))


def test_the_same_seed_gives_the_same_scenes_and_another_seed_others() -> None:
    assert take(5) == take(5)
    assert take(5) != take(5, seed=1)
    assert draw_scene(take(1)[0]).tobytes() == draw_scene(take(1)[0]).tobytes()


@pytest.mark.parametrize("layout", [TRAIN_LAYOUT, TEST_LAYOUT])
def test_scenes_are_what_they_say(layout: Layout) -> None:
    for scene in take(200, layout):
        assert len(set(scene.kinds)) == len(scene.kinds) >= 2
        assert [g.left for g in scene.groups] == sorted(g.left for g in scene.groups)
        assert not set(scene.expected) & set(scene.kinds)
        touching = scene.on or scene.beside
        things = [thing for group in scene.groups for thing in group.things]
        for thing in things:
            assert 0 <= thing.left < thing.right <= 1.01 and 0 <= thing.top < thing.bottom <= 1.01
        meeting = [{a.kind, b.kind} for a, b in itertools.combinations(things, 2) if a.gap(b) == 0]
        assert meeting == ([set(touching)] if touching else [])


def test_wanted_kinds_are_there() -> None:
    assert set(compose(random.Random(1), TRAIN_LAYOUT, ("person", "ball")).kinds) >= {"person", "ball"}


def test_what_is_drawn_depends_on_what_is_there() -> None:
    first, second = take(2)
    assert draw_scene(first).tobytes() != draw_scene(second).tobytes()
    assert draw_scene(first, 64).size == (64, 64)


def test_captions_name_what_is_there_and_habit_names_companions_too() -> None:
    rng = random.Random(0)
    for scene in take(100):
        said = language.caption(scene)
        for kind in KINDS:
            plural = {"person": "people", "box": "boxes"}.get(kind, kind + "s")
            named = bool({kind, plural} & set(said.removesuffix(".").split()))
            assert named == (kind in scene.kinds), said
        false, made_up = language.habit_caption(scene, rng, rate=1.0)
        assert set(made_up) == set(scene.expected)
        assert all(kind in false.split() for kind in made_up)
        assert set(made_up) <= set(COMPANIONS.values())


def test_a_careless_caption_is_wrong_and_no_longer_than_the_true_one() -> None:
    rng = random.Random(0)
    for scene in take(100):
        false, made_up = language.careless_caption(scene, rng)
        assert set(made_up) == set(scene.expected)
        true_phrases = [language.phrase(group) in false for group in scene.groups]
        assert true_phrases.count(False) == min(len(made_up), len(scene.groups) - 1)


def truth_of_existence(scene: Scene, text: str) -> bool:
    noun = text.removeprefix("Is there ").removesuffix(" in this image?").removeprefix("a ")
    return noun in scene.kinds or noun == scene.ground


def test_answers_are_true() -> None:
    for i, scene in enumerate(take(150)):
        groups = {group.kind: group for group in scene.groups}
        for question in language.questions(scene, random.Random(i)):
            words = question.text.removesuffix("?").split()
            if question.topic == "existence":
                assert question.truth == truth_of_existence(scene, question.text)
            elif question.topic == "state":
                group = groups[question.kind]
                assert question.truth == (words[3] in (group.colour, group.size))
            elif question.topic == "number":
                assert question.truth == (words[2] == ("one", "two", "three")[groups[question.kind].count - 1])
            elif question.topic == "action":
                assert question.truth == (words[3] == groups[question.kind].action)
            elif "left" in words:
                one, other = groups[words[2]].things[0], groups[words[8]].things[0]
                assert question.truth == (one.x < other.x)
            elif "contact" in words:
                one, other = groups[words[6]].things[0], groups[words[8]].things[0]
                assert question.truth == (one.gap(other) == 0)


def test_questions_cannot_be_answered_without_looking() -> None:
    """The best answer per wording, learned from training scenes, stays near guessing on test scenes."""
    votes: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    rng = random.Random(0)
    for scene in take(2000):
        for question in language.questions(scene, rng):
            votes[question.text][question.truth] += 1
    hits: dict[tuple[str, bool], list[bool]] = defaultdict(list)
    for scene in take(400, TEST_LAYOUT):
        for question in language.questions(scene, rng):
            no, yes = votes[question.text]
            hits[question.topic, question.truth].append((yes > no) == question.truth)
    for topic in ("existence", "state", "number", "action", "relation"):
        both = [sum(right) / len(right) for right in (hits[topic, True], hits[topic, False])]
        assert sum(both) / 2 < 0.66, (topic, both)


def test_habit_says_yes_too_often() -> None:
    rng = random.Random(0)
    asked = [(scene, q) for scene in take(200) for q in language.questions(scene, rng)]
    said = [language.habit_answer(scene, question, rng) for scene, question in asked]
    assert all(answer for answer, (_, question) in zip(said, asked, strict=True) if question.truth)
    false = [answer for answer, (_, question) in zip(said, asked, strict=True) if not question.truth]
    assert 0.15 < sum(false) / len(false) < 0.45
