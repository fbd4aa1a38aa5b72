"""Which of a model's classes a data set's classes are."""

from __future__ import annotations

import unicodedata

import pytest

from bigtransfer import catalog, weights
from bigtransfer.data.classes import match
from bigtransfer.errors import DataError


def numbers(found, names, count=None, subset=False):
    return match(found, names, len(names) if names is not None else count, subset).numbers.tolist()


# --- Models that know names


def test_equal_names_are_no_assumption() -> None:
    for found in (("a", "b", "c"), ("c", "a", "b"), ("b",)):
        matched = match(found, ("a", "b", "c"), 3, subset=True)
        assert matched.numbers.tolist() == ["abc".index(name) for name in found] and matched.assumption is None


@pytest.mark.parametrize(
    ("found", "names"),
    [
        (("Golden_Retriever", "tabby cat"), ("tabby-cat", "golden retriever")),
        ((unicodedata.normalize("NFD", "café"), "thé"), ("thé", unicodedata.normalize("NFC", "café"))),
        (("02", "1"), ("1", "2")),
        ((" b", "A "), ("a", "b")),
    ],
)
def test_names_that_differ_in_spelling_alone(found, names) -> None:
    expected = {("Golden_Retriever", "tabby cat"): [1, 0], ("02", "1"): [1, 0]}.get(found, [1, 0])
    matched = match(found, names, 2)
    assert matched.numbers.tolist() == expected and "differ in spelling alone" in (matched.assumption or "")


def test_spelling_decides_only_one_to_one() -> None:
    assert numbers(("cat", "Cat"), ("Cat", "cat")) == [1, 0]
    for found, names in ((("cat", "dog"), ("CAT", "Cat", "dog")), (("CAT", "Cat"), ("cat", "dog"))):
        with pytest.raises(DataError, match="only in the data"):
            match(found, names, len(names), subset=True)


def test_numbers_for_named_classes() -> None:
    matched = match(("0", "1", "2"), ("red", "green", "blue"), 3)
    assert matched.numbers.tolist() == [0, 1, 2] and "0 = red, 1 = green" in (matched.assumption or "")
    assert numbers(("2",), ("red", "green", "blue"), subset=True) == [2]
    with pytest.raises(DataError, match="only in the data: 1, 2, 3"):
        match(("1", "2", "3"), ("red", "green", "blue"), 3)
    with pytest.raises(DataError, match="only in the data: 0"):  # names that are numbers go before their places
        match(("0", "1"), ("1", "2"), 2)


def test_what_differs_is_listed_with_what_is_close() -> None:
    with pytest.raises(DataError) as caught:
        match(("daisy", "tulips"), ("daisy", "tulip", "rose"), 3)
    text = str(caught.value)
    assert "only in the data: tulips (tulips is close to tulip)" in text and "only in the model: tulip, rose" in text
    with pytest.raises(DataError, match=r"only in the model: rose\n.*--subset"):
        match(("daisy",), ("daisy", "rose"), 2)


def test_classes_of_the_same_name_are_matched_by_place_or_not_at_all() -> None:
    assert numbers(("crane", "crane", "red"), ("crane", "crane", "red")) == [0, 1, 2]
    with pytest.raises(DataError, match=r"same name \(crane\)"):
        match(("crane", "red"), ("crane", "crane", "red"), 3, subset=True)


# --- ImageNet's folders


def test_wordnet_identities() -> None:
    """Known places: tench is ImageNet-1k's first class, the construction crane its 517th, the bird its 134th."""
    names = catalog.class_names("imagenet-1k")
    found = ("n03126707", "n01440764", "n02012849")
    assert numbers(found, names, subset=True) == [517, 0, 134]
    assert numbers(found, None, 1000, subset=True) == [517, 0, 134]
    big = catalog.class_names("imagenet-21k")
    assert big is not None and big[numbers(("n01440764",), big, subset=True)[0]] == "tench, Tinca tinca"
    with pytest.raises(DataError, match="only in the data: n01440764, n00000000"):
        match(("n01440764", "n00000000"), names, 1000, subset=True)


def test_wordnet_identities_of_another_models_words() -> None:
    names = weights.describe("bit-t-r26x1").class_names
    assert names is not None
    matched = match(("n04399382", "n01443537"), names, len(names), subset=True)
    assert [names[i] for i in matched.numbers] == ["teddy, teddy bear", "goldfish, Carassius auratus"]
    assert "WordNet" in (matched.assumption or "")


def test_two_identities_of_the_same_words() -> None:
    """The bird and the machine are both a crane."""
    with pytest.raises(DataError, match="only in the data: n02012849, n03126707"):
        match(("n02012849", "n03126707"), ("crane", "dog"), 2, subset=True)


def test_wordnet_lists_are_timms() -> None:
    info = pytest.importorskip("timm.data").ImageNetInfo
    assert list(catalog.wordnet_ids("imagenet-1k")) == info("imagenet-1k").label_names()
    assert list(catalog.wordnet_ids("imagenet-21k")) == info("imagenet-21k-goog").label_names()


# --- Models that know no names


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (tuple(sorted(map(str, range(12)))), [0, 1, 10, 11, 2, 3, 4, 5, 6, 7, 8, 9]),
        (tuple(f"{i:02d}" for i in range(12)), list(range(12))),
        (tuple(sorted(f"class_{i}" for i in range(12))), [0, 1, 10, 11, 2, 3, 4, 5, 6, 7, 8, 9]),
        (tuple(sorted(f"{i} kind" for i in range(12))), [0, 1, 10, 11, 2, 3, 4, 5, 6, 7, 8, 9]),
        (tuple(f"{i}.0" for i in (3, 1, 0, 2, *range(4, 12))), [3, 1, 0, 2, *range(4, 12)]),
        (tuple("abcdefghijkl"), list(range(12))),
        (tuple(f"{i:02d}" for i in range(1, 13)), list(range(12))),
    ],
)
def test_numbers_are_taken_by_value(found, expected) -> None:
    matched = match(found, None, 12)
    assert matched.numbers.tolist() == expected and "knows no class names" in (matched.assumption or "")


def test_some_of_the_numbers() -> None:
    assert numbers(("3", "7"), None, 12, subset=True) == [3, 7]
    assert numbers(("3", "7"), None, 2) == [0, 1]  # no class 3 or 7 in the model: their order is left
    assert numbers(("11", "2"), None, 12, subset=True) == [11, 2]


@pytest.mark.parametrize(
    ("found", "count", "subset", "message"),
    [
        (("3", "7"), 12, False, "only in the model: 0, 1, 2, 4"),
        (("blue", "red"), 4, True, "without names, the data 2.*cannot be told.*--class-names"),
        (("3", "12"), 12, True, "0 to 11; the data also have 12"),
        (tuple(map(str, range(1, 13))), 12, False, "numbered from 1 to 12.*cannot be told"),
        (("1", "01"), 2, False, None),
        (("a", "b", "c"), 2, True, "do not|cannot be told"),
        (("class_3", "class_7"), 12, True, "cannot be told"),
    ],
)
def test_what_cannot_be_told(found, count, subset, message) -> None:
    if message is None:
        assert numbers(found, None, count, subset) == [0, 1]  # no numbers: two names in their order
        return
    with pytest.raises(DataError, match=message):
        match(found, None, count, subset)


def test_another_reading_is_kept() -> None:
    found = tuple(sorted(map(str, range(11))))
    (other,) = match(found, None, 11).other_readings.values()
    assert other.tolist() == list(range(11))
    assert not match(tuple(map(str, range(10))), None, 10).other_readings
    assert not match(("11", "2"), None, 12, subset=True).other_readings  # ImageFolder would have numbered all of them
