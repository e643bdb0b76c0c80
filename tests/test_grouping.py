"""What makes users a group: names and rules, and what a profile inherits by them."""

from __future__ import annotations

from service.grouping import Definition, GroupAttribute, Rules, inherited


def definition(named="household", number=100, **attributes):
    """A definition that shares attributes: id -> the version with which it came."""
    return Definition(
        id=named,
        source_user_attribute="$Address",
        attributes=tuple(
            GroupAttribute(name, "latest", since) for name, since in attributes.items()
        ),
        number=number,
        created_at_us=1,
        created_by="t",
        modified_at_us=1,
        modified_by="t",
    )


def rules(*definitions, version=1000):
    return Rules(version=version, definitions=definitions)


def listed(*rows):
    """What a record lists: (number, version, rules, JSON), each of an instance of its own."""
    return {
        bytes([n]) * 16: b"%d %d %d %b" % (*numbers, values.encode())
        for n, (*numbers, values) in enumerate(rows)
    }


def test_who_contributes_to_nothing_inherits_nothing():
    assert {} == inherited(rules(), {}) == inherited(rules(definition(has_dog=100)), {})


def test_values_are_shown_under_the_names_of_the_definition_as_written():
    held = listed((100, 5, 100, '{"has_dog":"true","Tags":["a","b"],"empty":[]}'))
    assert {
        "Home.1$-_:has_dog": "true",
        "Home.1$-_:Tags": ["a", "b"],
        "Home.1$-_:empty": [],
    } == inherited(rules(definition("Home.1$-_", Tags=100, has_dog=100, empty=100)), held)


def test_values_with_any_characters_and_blanks_are_read():
    held = listed((100, 5, 100, '{"a b":"x y \\u00e9 \\" {7}:","t":" "}'))
    assert {"household:a b": 'x y é " {7}:', "household:t": " "} == inherited(
        rules(definition(**{"a b": 100, "t": 100})), held
    )


def test_of_whom_no_values_are_told_nothing_is_shown():
    assert {} == inherited(rules(definition(has_dog=100)), listed((100, 0, 0, "")))
    assert {} == inherited(rules(definition(has_dog=100)), listed((100, 9, 100, "{}")))


def test_what_a_deleted_definition_or_another_source_made_is_not_shown():
    held = listed((100, 5, 100, '{"has_dog":"true"}'))
    assert {} == inherited(rules(), held)
    assert {} == inherited(rules(definition(number=101, has_dog=101)), held)


def test_an_attribute_that_was_taken_out_is_not_shown_and_the_others_are():
    held = listed((100, 5, 100, '{"has_dog":"true","points":"7"}'))
    assert {"household:points": "7"} == inherited(rules(definition(points=100)), held)


def test_an_attribute_that_is_new_or_has_another_type_is_shown_when_it_was_told_by_these_rules():
    changed = rules(definition(has_dog=100, points=200))
    before = listed((100, 5, 199, '{"has_dog":"true","points":"7"}'))
    after = listed((100, 6, 200, '{"has_dog":"true","points":"3.5"}'))
    assert {"household:has_dog": "true"} == inherited(changed, before)
    assert {"household:has_dog": "true", "household:points": "3.5"} == inherited(changed, after)


def test_of_two_instances_of_a_definition_the_one_told_last_is_shown():
    old, new = (100, 5, 100, '{"a":"old"}'), (100, 10, 100, '{"a":"new"}')
    of = rules(definition(a=100))
    for rows in ((old, new), (new, old)):
        assert {"household:a": "new"} == inherited(of, listed(*rows))
    # It is not told of the new one yet: it has what it had.
    for rows in ((old, (100, 0, 0, "")), ((100, 99, 100, ""), old)):
        assert {"household:a": "old"} == inherited(of, listed(*rows))


def test_definitions_do_not_mix():
    both = rules(definition(a=100), definition("couple", 101, a=101))
    held = listed((101, 5, 101, '{"a":"1"}'), (100, 9, 101, '{"a":"2"}'))
    assert {"household:a": "2", "couple:a": "1"} == inherited(both, held)
    assert frozenset({"household:a", "couple:a"}) == both.inherited_names


def test_a_definition_reserves_all_names_that_begin_with_its_id_and_a_colon():
    held = rules(definition(a=100))
    assert [True, True, True] == [*map(held.reserves, ("household:a", "household:", "household::"))]
    assert not any(map(held.reserves, ("household", "Household:a", "households:a", ":household:a")))
    assert not rules().reserves("household:a")
