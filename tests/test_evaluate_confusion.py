"""Which classes are taken for which."""

from distmeta.evaluate.confusion import by_class


def test_of_each_class_it_is_said_what_it_is_taken_for_and_the_worst_comes_first() -> None:
    found = {("a", "a"): 6, ("a", "b"): 1, ("a", "c"): 3, ("b", "b"): 4, ("c", "a"): 2}
    assert by_class(found) == [("c", 2, 0.0, "a", 1.0), ("a", 10, 0.6, "c", 0.3), ("b", 4, 1.0, "", 0.0)]
