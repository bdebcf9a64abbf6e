"""The gallery of the environments: every one is in it, and drawn."""

from docs import gallery
from training.envs import registry


def test_the_page_shows_every_environment_that_is_not_left_out() -> None:
    page = gallery.PAGE.read_text()
    written = page[page.index(gallery.BEGIN) + len(gallery.BEGIN) : page.index(gallery.END)].strip()
    assert written == gallery.table(), "run .venv/bin/python docs/gallery.py"
    for name in gallery.names():
        assert f"images/environments/{name}.png" in written
        assert (gallery.PICTURES / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_only_near_copies_are_left_out() -> None:
    shown = set(gallery.names())
    assert {"point_u_maze", "ant", "ant_u_maze", "ant_u4_maze", "ant_u5_maze", "ant_hardest_maze"} <= shown
    for name in registry.built_in().entries.keys() - shown:
        assert name.endswith("_eval") or name[-8:] in {"_u2_maze", "_u3_maze", "_u6_maze", "_u7_maze"}


def test_the_pictures_are_small() -> None:
    sizes = [path.stat().st_size for path in gallery.PICTURES.iterdir()]
    assert sum(sizes) < 1e6
    assert len(sizes) == len(gallery.names()), "there is a picture of an environment that was removed"
