"""Small files of sampled images: cut out of the pictures of a run, published, read back."""

import numpy as np
import pytest
from PIL import Image
from tests.synthetic import synthetic_record

from tunalab.errors import UserError
from tunalab.evaluation.samples import draw_grid
from tunalab.records.record import RECORD_FILE, write_record
from tunalab.records.samples import LARGEST_FILE, LARGEST_SIDE, Samples, cut, of_run, png, publish, publish_beside, published
from tunalab.sweeps.cells import publish as publish_cells
from tunalab.sweeps.grid import Cell


def images(count: int, side: int) -> np.ndarray:
    return np.random.default_rng(side).integers(0, 255, (count, side, side, 3), dtype=np.uint8)


@pytest.mark.parametrize(("count", "side"), [(16, 32), (4, 64), (5, 32), (1, 128), (3, 200), (7, 24)])
def test_images_are_cut_out_as_they_were_drawn(count, side):
    drawn = images(count, side)
    captions = [f"a prompt of several words, the {n}th of them, which is wrapped" for n in range(count)]
    found = cut(np.asarray(draw_grid(drawn, captions)), count, side)
    assert found is not None and len(found) == count
    np.testing.assert_array_equal(np.stack(found), drawn)


def test_another_layout_is_none():
    picture = np.asarray(draw_grid(images(16, 32), ["x"] * 16))
    assert cut(picture[:, :-1], 16, 32) is None and cut(picture[:-1], 16, 32) is None and cut(picture, 30, 32) is None


def test_what_is_published_is_read_back(tmp_path):
    held = Samples(9_001_598, ("a red ring", "größer: «blau»"), tuple(images(2, 32)))
    publish(held, tmp_path / "run.png")
    back = published(tmp_path / "run.png")
    assert back is not None and (back.tokens, back.prompts) == (held.tokens, held.prompts)
    np.testing.assert_array_equal(np.stack(back.images), np.stack(held.images))
    assert published(tmp_path / "nothing.png") is None


def test_published_files_stay_small(tmp_path):
    publish(Samples(1, tuple(map(str, range(64))), tuple(images(64, 256))), tmp_path / "run.png")
    back = published(tmp_path / "run.png")
    assert (tmp_path / "run.png").stat().st_size <= LARGEST_FILE
    assert back is not None and 4 < len(back.prompts) < 64 and back.images[0].shape == (LARGEST_SIDE, LARGEST_SIDE, 3)


@pytest.mark.parametrize("content", [b"no picture", png(images(1, 8)[0])])
def test_another_file_is_refused(content, tmp_path):
    (tmp_path / "run.png").write_bytes(content)
    with pytest.raises(UserError, match="is no row of published samples"):
        published(tmp_path / "run.png")


def test_the_last_picture_of_a_run_with_its_prompts(tmp_path):
    record = synthetic_record()
    assert of_run(tmp_path, record) is None
    (tmp_path / "samples").mkdir()
    count = record.config["evaluation"]["sample_prompts"]
    for tokens in (5, 1000):
        draw_grid(images(count, 32) // (1 + (tokens == 5)), ["x"] * count).save(tmp_path / "samples" / f"tokens-{tokens:010d}.png")
    found = of_run(tmp_path, record)
    assert found is not None and found.tokens == 1000 and len(set(found.prompts)) == count
    np.testing.assert_array_equal(np.stack(found.images), images(count, 32))
    write_record(tmp_path / "records" / "a.json", record)
    assert publish_beside({"a": tmp_path}, tmp_path / "records") == [tmp_path / "records" / "samples" / "a.png"]
    assert publish_beside({"a": tmp_path / "none"}, tmp_path / "records") == []
    record.config["revision"] = 1
    assert of_run(tmp_path, record) is None
    Image.new("RGB", (3, 3)).save(tmp_path / "samples" / "tokens-0000002000.png")
    assert of_run(tmp_path, synthetic_record()) is None


def test_publishing_a_sweep_takes_its_samples_along(tmp_path):
    record = synthetic_record()
    run_dir, out = tmp_path / "run", tmp_path / "out"
    write_record(run_dir / RECORD_FILE, record)
    cell = Cell(record.run.name, "mask_ratio", "scenes", "tuna2", 0, {}, [], run_dir)
    published_record = out / f"{cell.name}.json"
    assert publish_cells([cell], lambda _: record.run.config_hash, out) == [published_record]
    (run_dir / "samples").mkdir()
    draw_grid(images(16, 32), ["x"] * 16).save(run_dir / "samples" / "tokens-0000000005.png")
    written = publish_cells([cell], lambda _: record.run.config_hash, out)
    assert written == [published_record, out / "samples" / f"{cell.name}.png"] and all(path.exists() for path in written)
