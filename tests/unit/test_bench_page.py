"""What `make bench` writes into docs/benchmarks.md."""

from tests.bench import page

TITLES = ("Front end", "Disk", "Fleet")


def written(text: str, title: str, result: str) -> str:
    return page.with_section(text, about="2 CPUs.", title=title, text=result, titles=TITLES)


def test_a_benchmark_replaces_only_its_own_section() -> None:
    text = written(written("# Benchmarks\n", "Fleet", "old"), "Front end", "of the front end")

    again = written(text, "Fleet", "new")

    assert again == text.replace("old", "new")


def test_sections_come_in_the_order_of_the_benchmarks() -> None:
    text = "# Benchmarks\n"
    for title in ("Fleet", "Disk", "Front end"):
        text = written(text, title, "measured")

    places = [text.index(f"### {title}, measured") for title in TITLES]

    assert places == sorted(places)


def test_the_text_by_hand_and_what_follows_stay() -> None:
    by_hand = f"# Benchmarks\n\nBy hand.\n\n{page.BEGIN}\n\n{page.END}\n\nThe end.\n"

    text = written(by_hand, "Disk", "measured")

    assert text.startswith(f"# Benchmarks\n\nBy hand.\n\n{page.BEGIN}\n")
    assert text.endswith(f"measured\n\n{page.END}\n\nThe end.\n")


def test_the_section_of_a_benchmark_that_no_longer_exists_goes() -> None:
    text = written("# Benchmarks\n", "Disk", "gone")

    assert "gone" not in page.with_section(text, about="", title="Fleet", text="x", titles=("Fleet",))
