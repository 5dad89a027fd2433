"""The pages as files: what they link is there, no text becomes markup, and they say what the records say."""

from __future__ import annotations

import json
import re
import threading
import urllib.error
import urllib.request
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
from click.testing import CliRunner
from leaderboard_samples import SAM, Bench, digest, fill, make_card, make_record
from test_verification_state import write_report

from sam_bench.api.boards import _labels_of as labels_from
from sam_bench.cli.main import cli
from sam_bench.data import Split
from sam_bench.errors import InputError
from sam_bench.leaderboard import BuiltLeaderboard, TestLabels, build_leaderboard, server, site
from sam_bench.leaderboard.published import read_published
from sam_bench.leaderboard.site.assets import assets
from sam_bench.leaderboard.site.classes import class_shares
from sam_bench.leaderboard.site.packing import Pieces
from sam_bench.leaderboard.verification import manifest_path
from sam_bench.records import Imported, Manifest, write_record

HOSTILE = "<script>alert(1)</script> & 100% _x_ \"' ]]> {{ 7 * 7 }} </textarea>"


def text_of(path: Path) -> str:
    """A page as `board.js` puts it together."""
    text = path.read_text(encoding="utf-8")
    before, found, rest = text.partition('<script type="application/json" id="packed">')
    if not found:
        return text
    packed, _, after = rest.partition("</script>")
    assets = next(folder / "assets" for folder in path.parents if (folder / "assets").is_dir())
    script = (assets / "pieces.js").read_text(encoding="utf-8")
    pieces = json.loads(script.removeprefix("window.pieces = ").removesuffix(";\n"))
    parts = [pieces[part] if isinstance(part, int) else part for part in json.loads(packed)]
    return before + "".join(parts) + after.replace("<noscript>This page needs JavaScript.</noscript>", "")


class Page(HTMLParser):
    """What a page asks for and says."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path, self.links, self.scripts, self.tags, self.inside = path, [], [], [], ""
        self.data: list[str] = []
        self.text = text_of(path)
        self.feed(self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append((tag, found))
        self.links += [str(found[name]) for name in ("href", "src") if name in found]
        self.inside = tag if tag == "script" and found.get("type") == "application/json" else ""
        if tag == "script":
            self.scripts.append(found)

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.data.append(data)

    def files(self) -> list[Path]:
        """Each file that it links, as a path."""
        local = [link for link in self.links if not urlsplit(link).scheme and not link.startswith("#")]
        return [(self.path.parent / unquote(urlsplit(link).path)).resolve() for link in local]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    bench = Bench(tmp_path_factory.mktemp("bench"))
    fill(bench)
    recipe = SAM.model_copy(update={"weights": SAM.weights.model_copy(update={"method": HOSTILE}), "summary": HOSTILE})
    card = make_card("hostile", recipe, authors=HOSTILE, paper_title=HOSTILE, paper_link="javascript:x")
    record = make_record(card, clean=70, robust=1, warnings=(HOSTILE,), command=HOSTILE, device=HOSTILE)
    bench.submit(card, record)
    return bench


@pytest.fixture(scope="module")
def built(bench: Bench) -> BuiltLeaderboard:
    return build_leaderboard(bench.folder, labels_of=fake_labels)


def fake_labels(record: Any) -> TestLabels | None:
    """Two classes: the first half of the images and the others."""
    half = record.n_examples // 2
    return TestLabels(np.arange(record.n_examples) // half, ("cats", "1")) if record.dataset == "cifar10" else None


@pytest.fixture(scope="module")
def pages(bench: Bench, built: BuiltLeaderboard) -> list[Page]:
    return [Page(path) for path in sorted((bench.folder / "site").rglob("*.html"))]


def test_there_is_a_page_for_the_start_each_board_and_each_model(pages: list[Page], bench: Bench) -> None:
    names = {page.path.relative_to(bench.folder / "site").as_posix() for page in pages}
    assert len(names) == 1 + 4 + 9
    assert {
        "index.html",
        "boards/cifar10-Linf-8over255-autoattack.html",
        "models/own-digits/Linf/tiny-sam.html",
    } <= names


def test_every_link_leads_to_a_file_and_no_address_is_loaded(pages: list[Page]) -> None:
    for page in pages:
        missing = [path for path in page.files() if not path.is_file()]
        assert not missing and len(page.files()) >= 3
        loaded = [script["src"] for script in page.scripts if "src" in script]
        assert all(str(source).startswith(("./", "../")) for source in loaded)
        assert all("src" in script or script.get("type") == "application/json" for script in page.scripts)


def test_no_text_of_a_card_or_record_becomes_markup_or_script(pages: list[Page]) -> None:
    for page in pages:
        text = page.text
        assert "<script>alert" not in text and "javascript:" not in text
        policies = [found for tag, found in page.tags if tag == "meta" and "http-equiv" in found]
        assert "script-src 'self' file:" in str(policies[0]["content"]) and "unsafe-eval" not in text
        for data in page.data:
            json.loads(data)
    showing = {page.path.name for page in pages if "&lt;script&gt;" in page.text}
    assert showing == {"cifar10-Linf-8over255-autoattack.html", "hostile.html"}, (
        "where the card is shown, it is escaped"
    )


def test_headers_have_a_scope_and_pictures_a_name(pages: list[Page]) -> None:
    for page in pages:
        assert all("scope" in found for tag, found in page.tags if tag == "th")
        assert all(found.get("aria-label") for tag, found in page.tags if found.get("class") == "plot")
        assert [tag for tag, _ in page.tags].count("h1") == 1


def test_the_scripts_are_once_for_all_pages_and_a_board_is_under_six_megabytes(bench: Bench, pages: list[Page]) -> None:
    files = [path for path in (bench.folder / "site").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 6e6
    assert (
        len({path.name for path in files if path.suffix == ".js"}) == 4 == len([p for p in files if p.suffix == ".js"])
    )
    assert max(len(page.path.read_bytes()) for page in pages) < 40_000


def test_what_models_pages_have_in_common_is_kept_once(bench: Bench, pages: list[Page]) -> None:
    models = [page for page in pages if "models" in page.path.parts]
    own = sum(page.path.stat().st_size for page in models)
    assert own < 0.6 * sum(len(page.text.encode()) for page in models)
    for page in models:  # nothing that ends or comments out a script stands in it
        packed = page.path.read_text().partition('id="packed">')[2].partition("</script>")[0]
        assert json.loads(packed) and "<!--" not in packed


def test_packed_pieces_are_the_page_again() -> None:
    pieces = Pieces(["<p>a common text", " and a longer common text</p>", "short"])
    html = '<p>a common text<script>alert("</script>")</script><!-- and a longer common text</p>short'
    packed = pieces.packed(html)
    assert "</" not in packed and "<!--" not in packed
    known = json.loads(pieces.script().removeprefix("window.pieces = ").removesuffix(";\n"))
    assert sorted(known) == [" and a longer common text</p>", "<p>a common text"]
    parts = json.loads(packed)
    assert [part for part in parts if isinstance(part, int)] == [1, 0]
    assert "".join(known[part] if isinstance(part, int) else part for part in parts) == html
    assert json.loads(Pieces([]).packed("x")) == ["x"] and json.loads(Pieces([]).packed("")) == []


def test_a_models_page_has_its_curve_its_recipe_and_how_to_load_it(bench: Bench, built: BuiltLeaderboard) -> None:
    page = Page(bench.folder / "site/models/cifar10/Linf/at-eps8.html")
    text = page.text
    assert "load_model(&#34;at-eps8&#34;" in text or 'load_model("at-eps8"' in text
    assert "method: pgd" in text and "110 passes per training example" in text
    curve = json.loads(page.data[0])["data"]["values"]
    assert [(point["attack"], point["eps"], round(point["robust"])) for point in curve] == [
        ("AutoAttack", "0", 82),
        ("AutoAttack", "8/255", 46),
        ("PGD-20", "0", 82),
        ("PGD-20", "1/255", 78),
        ("PGD-20", "8/255", 51),
    ]


def test_the_worst_class_is_named_with_its_numbers(bench: Bench, built: BuiltLeaderboard) -> None:
    text = text_of(bench.folder / "site/models/cifar10/Linf/at-eps8.html")
    # The sample's first 46 verdicts are robust, and 82 are right: 46 of the first 50, none of the others.
    assert "The worst class is <strong>class 1</strong>: 0.00 % of its 50 test examples" in text
    without = text_of(bench.folder / "site/models/own-digits/Linf/tiny-sam.html")
    assert "The worst class" not in without and "labels of these test images were not at hand" in without


def test_class_shares_are_those_of_the_verdicts() -> None:
    card = make_card("m")
    record = make_record(card, clean=80, robust=30)
    labels = np.random.default_rng(0).integers(0, 3, 100)
    shares = {each.name: each for each in class_shares(record, TestLabels(labels, ("a", "b", "c", "none")))}
    verdicts = np.array(record.verdicts)
    for label, name in enumerate("abc"):
        own = verdicts[labels == label]
        assert shares[name].robust == (own == "robust").sum() / len(own)
        assert shares[name].clean == (own != "misclassified").sum() / len(own)
    assert list(shares) == sorted(shares, key=lambda name: -shares[name].robust)


def test_labels_are_those_of_the_very_images_or_none(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (20, 8, 8, 3), dtype=np.uint8), np.arange(20) % 3
    path = tmp_path / "own.npz"
    np.savez(path, x_train=images, y_train=labels, x_test=images, y_test=labels)
    import torch

    test = Split(torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(labels))
    record = make_record(make_card("m", dataset="own"), clean=8, robust=4, n=10)
    found = labels_from(path, tmp_path)(record.model_copy(update={"dataset_fingerprint": test.head(10).fingerprint}))
    assert found is not None and found.labels.tolist() == labels[:10].tolist() and found.classes == ("0", "1", "2")
    assert labels_from(path, tmp_path)(record.model_copy(update={"dataset_fingerprint": digest("others")})) is None
    assert labels_from(None, tmp_path)(record) is None


def test_the_state_of_each_row_is_shown_with_its_bounds(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    card = make_card("m")
    records = [make_record(card, clean=90, robust=50), make_record(card, clean=90, robust=60, attack="pgd")]
    path = bench.submit(card, *records).path
    write_record(manifest_path(path), Manifest(name="m", dataset="cifar10", threat="Linf", files={}))
    write_report(path)
    built = build_leaderboard(bench.folder)
    assert [row.state for row in built.rows] == ["audited", "replayed"]
    page = text_of(bench.folder / "site/models/cifar10/Linf/m.html")
    assert "at most 50.00 % robust, at least 11.00 % at confidence" in page
    board = (bench.folder / "site/boards/cifar10-Linf-8over255-autoattack.html").read_text()
    assert '<span class="state audited">audited</span>' in board


def test_of_an_imported_model_the_cost_is_not_known_and_is_no_point_of_the_plot(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    source = Imported(file="theirs.pt", sha256="0" * 64)
    for card in (make_card("ours"), make_card("theirs", passes=0, imported=source, train_examples=None)):
        bench.submit(card, make_record(card, clean=80, robust=40))
    build_leaderboard(bench.folder)
    page = text_of(bench.folder / "site" / "models" / "cifar10" / "Linf" / "theirs.html")
    assert "trained elsewhere" in page and "theirs.pt" in page and "their training is not known" in page
    board = Page(next((bench.folder / "site" / "boards").glob("*.html")))
    assert "Robust accuracy over training cost of 1 models" in "".join(board.data)
    assert "Robust over clean accuracy of 2 models" in "".join(board.data)


def test_pages_of_models_that_are_gone_go_too(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    for name in ("stays", "goes"):
        card = make_card(name)
        done = bench.submit(card, make_record(card, clean=80, robust=30))
    build_leaderboard(bench.folder)
    done.path.unlink()
    build_leaderboard(bench.folder)
    assert [path.name for path in (bench.folder / "site/models").rglob("*.html")] == ["stays.html"]


def test_without_the_packages_the_tables_are_written_and_one_sentence_says_what_to_install(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(site, "available", lambda: False)
    own = Bench(tmp_path)
    card = make_card("m")
    own.submit(card, make_record(card, clean=80, robust=30))
    result = CliRunner().invoke(cli, ["leaderboard", "build", "--folder", str(own.folder)])
    assert result.exit_code == 0 and result.stderr.count("pip install 'sam-bench[board]'") == 1
    assert {path.name for path in own.folder.glob("*.*")} == {
        f"leaderboard.{kind}" for kind in ("md", "tex", "csv", "svg", "png")
    }


def test_the_scripts_come_from_the_packages_and_are_no_modules() -> None:
    found = assets()
    assert found["datatables.js"].count("window.datatables=") == 1 and '"jQuery":' in found["datatables.js"]
    assert not re.search(r"\bexport\s*\{|^import ", found["datatables.js"], flags=re.MULTILINE)
    assert "window.vegaEmbed" in found["vega.js"]


def publish(folder: Path, name: str = "Rice2020Overfitting", **changes: Any) -> Path:
    """A file as RobustBench's `model_info` has them; the numbers are made up."""
    fields = {
        "link": "https://example.org/paper",
        "name": HOSTILE,
        "authors": "A, B",
        "additional_data": False,
        "number_forward_passes": 1,
        "dataset": "cifar10",
        "venue": "Somewhere 2020",
        "architecture": "WideResNet-34-20",
        "eps": "8/255",
        "clean_acc": "85.34",
        "reported": "58",
        "autoattack_acc": "41.42",
        **changes,
    }
    path = folder / "cifar10" / "Linf" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(fields))
    return path


def test_published_entries_stand_beside_ours_and_are_marked_as_theirs(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    for name, robust in (("ours-46", 46), ("ours-38", 38)):
        card = make_card(name)
        bench.submit(card, make_record(card, clean=80, robust=robust))
    publish(tmp_path / "model_info")
    publish(tmp_path / "model_info", "External", external="39.5", link="javascript:x")
    publish(tmp_path / "model_info", "OtherRadius", eps="4/255")
    built = build_leaderboard(bench.folder, robustbench=tmp_path)
    board = bench.folder / "site/boards/cifar10-Linf-8over255-autoattack.html"
    text = board.read_text()
    names = re.findall(r'<th scope="row" data-order="([^"]*)"', text)
    assert names == ["ours-46", "Rice2020Overfitting", "External", "ours-38"]
    assert text.count('class="state published">RobustBench') == 2 and "39.50" in text
    assert "javascript:" not in text and "<script>alert" not in text
    points = json.loads(Page(board).data[0])["data"]["values"]
    assert [point["model"] for point in points if point["family"] == "RobustBench"] == [
        "Rice2020Overfitting",
        "External",
    ]
    tables = [path.read_text() for form, path in built.paths.items() if form in ("md", "csv", "tex")]
    assert len(tables) == 3 and not any("Rice2020" in table for table in tables)


@pytest.mark.parametrize("broken", ["{", '{"name": "x", "clean_acc": "many"}'])
def test_a_folder_without_their_entries_or_with_a_broken_one_is_refused(tmp_path: Path, broken: str) -> None:
    with pytest.raises(InputError, match="holds no entries of RobustBench"):
        read_published(tmp_path)
    publish(tmp_path).write_text(broken)
    with pytest.raises(InputError, match=r"Rice2020Overfitting\.json is not an entry of RobustBench"):
        read_published(tmp_path)


def test_the_server_gives_out_the_board_and_the_zoo_and_nothing_else(bench: Bench, built: BuiltLeaderboard) -> None:
    (bench.root / "secret.txt").write_text("secret")
    http, address = server(bench.folder, zoo=bench.root / "model_zoo")
    threading.Thread(target=http.serve_forever, daemon=True).start()
    try:
        root = address.removesuffix("leaderboards/site/index.html")
        assert "<h1>" in urllib.request.urlopen(address).read().decode()
        card = urllib.request.urlopen(f"{root}model_zoo/cifar10/Linf/at-eps8.json").read()
        assert json.loads(card)["name"] == "at-eps8"
        for path in ("secret.txt", "leaderboards/../secret.txt", "leaderboards/%2e%2e/secret.txt", "leaderboards/", ""):
            with pytest.raises(urllib.error.HTTPError, match="404"):
                urllib.request.urlopen(root + path)
    finally:
        http.shutdown()
        http.server_close()


def test_there_is_nothing_to_serve_before_a_build(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="sam-bench leaderboard build"):
        server(tmp_path, zoo=tmp_path)
