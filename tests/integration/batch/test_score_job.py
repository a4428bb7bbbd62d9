"""The score and embed jobs end to end, on a tiny SavedModel with the signatures of a real bundle."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from PIL import Image

from batch.commands.options import RejectionLimit
from batch.commands.score import score as score_command
from batch.embeddings import EmbeddingStore
from batch.inputs import listing
from batch.jobs import score
from batch.jobs.score import ScoreSettings
from batch.monitoring.stats import Progress
from serving.commands.common.command import COMMON
from serving.commands.server_options import FLAGS
from serving.errors import BundleError, InputError, OutputError
from serving.process import get_cpu_model
from tests.support.repository import REPO
from tests.support.score_job import DIMENSION, FINGERPRINT, GOOD, LABELS, make_bundle, read_rows

Scored = tuple[Path, score.Summary, list[Progress]]


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    top = tmp_path_factory.mktemp("models")
    return {
        "food": make_bundle(top / "food" / "3"),
        "new_head": make_bundle(top / "food" / "4", embed_fails=True, scale=2.0),
        "roomy": make_bundle(top / "roomy" / "1", max_bytes=1 << 20),
        "headless": make_bundle(top / "headless" / "1", headless=True),
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """23 good photos, two of them identical, and one photo for each kind of rejection."""
    top = tmp_path_factory.mktemp("photos")
    for number in range(22):
        (top / f"good {number:02d} [x].jpg").write_bytes(GOOD + bytes([number]) * (number + 1))
    (top / "twin.jpg").write_bytes((top / "good 03 [x].jpg").read_bytes())
    (top / "empty.jpg").write_bytes(b"")
    (top / "text.jpg").write_bytes(b"hello, I am text")
    (top / "cut.jpg").write_bytes(b"CUT off in the middle")
    (top / "dangling.jpg").symlink_to(top / "nowhere")
    (top / "film.mp4").write_bytes(bytes(10_001))
    (top / ".hidden").write_bytes(b"")
    return top


def settings(folder: Path, model: Path, top: Path, **changes: Any) -> ScoreSettings:
    given = {"photos": str(folder), "model": (model,), "output": str(top / "out")}
    return ScoreSettings(**{**given, "embedding_store": str(top / "store"), "shard_size": 8, **changes})


@pytest.fixture(scope="module")
def scored(bundles: dict[str, Path], folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Scored:
    """One complete run that most tests share."""
    top = tmp_path_factory.mktemp("scored")
    seen: list[Progress] = []
    summary = score.score(settings(folder, bundles["food"], top, price_per_hour=2.0), seen.append)
    return top, summary, seen


@pytest.mark.tf
@pytest.mark.beam
class TestScoring:
    def test_each_photo_has_one_row_and_rejected_photos_have_status_and_detail(
        self, scored: Scored, folder: Path
    ) -> None:
        rows = {Path(row["uri"]).name: row for row in read_rows(scored[0] / "out")}
        assert len(rows) == 28
        statuses = {name: row["status"] for name, row in rows.items() if row["status"] != "ok"}
        assert statuses == {
            "cut.jpg": "truncated",
            "dangling.jpg": "unreadable",
            "empty.jpg": "empty",
            "film.mp4": "too_large",
            "text.jpg": "not_an_image",
        }
        assert rows["text.jpg"]["detail"] == "16 bytes, beginning 68 65 6c 6c 6f 2c 20 49"
        assert "No such file" in rows["dangling.jpg"]["detail"]
        assert "10001 bytes" in rows["film.mp4"]["detail"]
        assert rows["empty.jpg"]["detail"] == "0 bytes"
        assert rows["text.jpg"]["label"] is None
        assert rows["text.jpg"]["score"] is None
        assert rows["text.jpg"]["top_labels"] == []
        assert rows["text.jpg"]["width"] is None
        assert rows["dangling.jpg"]["sha256"] is None

    def test_report_and_run_json_contain_the_changes_since_the_previous_run(
        self, scored: Scored, bundles: dict[str, Path], folder: Path, tmp_path: Path
    ) -> None:
        run = json.loads((scored[0] / "out" / "run.json").read_text())
        assert run["changes"] is None
        (model,) = run["models"]
        assert sum(model["scores"]) == sum(model["labels"].values()) + model["abstained"] == 24
        assert run["embeddings"]["count"] in (23, 24)  # the identical photos may be in one shard or in two
        page = (scored[0] / "out" / "report.html").read_text(encoding="utf-8")
        assert "food/3" in page
        assert "dangling.jpg" in page
        store = str(scored[0] / "store")
        given = settings(folder, bundles["food"], tmp_path, embedding_store=store, run_id="first")
        score.score(replace(given, no_report=True))
        assert not (tmp_path / "out" / "report.html").exists()
        score.score(replace(given, run_id="second", metrics_textfile=str(tmp_path / "score.prom")))
        changed = json.loads((tmp_path / "out" / "run.json").read_text())["changes"]
        assert changed["since"] == "first"
        assert {found["value"] for found in changed["models"]["food/3"].values()} == {0}
        assert "Compared with run first." in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
        prom = (tmp_path / "score.prom").read_text()
        assert 'hubhead_score_rejected_photos{model="food",reason="too_large",version="3"} 1.0' in prom

    def test_rows_equal_the_outputs_of_the_saved_model(
        self, scored: Scored, bundles: dict[str, Path], folder: Path
    ) -> None:
        import tensorflow as tf

        model = tf.saved_model.load(str(bundles["food"]))
        threshold = 0.36
        abstained = unknown = 0
        for row in read_rows(scored[0] / "out"):
            if row["status"] not in ("ok", "truncated"):
                continue
            content = Path(row["uri"]).read_bytes()
            embedding = model.signatures["embed"](image_bytes=tf.constant([content]))["embedding"]
            outputs = model.signatures["classify_embedding"](embedding=embedding)
            [expected], [known] = outputs["probabilities"].numpy(), outputs["known"].numpy()
            order = np.argsort(-expected, kind="stable")[:2]
            assert row["top_labels"] == [LABELS[i] for i in order]
            assert row["top_scores"] == pytest.approx(expected[order], abs=1e-6)
            assert row["score"] == row["top_scores"][0]
            decided = known and expected[order[0]] >= threshold
            assert row["label"] == (LABELS[order[0]] if decided else None)
            unknown += not known and expected[order[0]] >= threshold
            assert (row["width"], row["height"]) == (len(content) * 2, len(content))
            assert (row["model"], row["version"]) == ("food", 3)
            abstained += row["label"] is None
        assert 0 < abstained < 24, "the fixture should have photos on both sides of the threshold"
        assert unknown, "the fixture should have a photo of high score that is unlike the training photos"
        assert scored[1].total.abstained == abstained

    def test_counts_in_run_json_add_up(self, scored: Scored) -> None:
        run = json.loads((scored[0] / "out" / "run.json").read_text())
        [model] = run["models"]
        assert run["photos"] == run["lines"] == run["rows"] == 28 == sum(run["statuses"].values())
        assert run["rejected"] == 4
        assert run["photos"] - run["rejected"] == sum(model["labels"].values()) + model["abstained"]
        this_run = run["this_run"]
        assert this_run["rows_written"] == 28
        assert this_run["photos_embedded"] + this_run["reused_embeddings"] == 26
        # The bundle has no backbone in ONNX, so that `auto` is TensorFlow.
        assert [(part["engine"], part["cpu"]) for part in this_run["engines"]] == [
            ("tensorflow", get_cpu_model())
        ]
        assert this_run["engines"][0]["photos"] == this_run["photos_embedded"]
        assert (run["cpu"], run["settings"]["engine"]) == (get_cpu_model(), "auto")
        assert this_run["cost_per_million"] == pytest.approx(
            1e6 / this_run["photos_per_second"] / 3600 * 2.0, rel=1e-6
        )
        assert (model["name"], model["version"], model["fingerprint"]) == ("food", 3, FINGERPRINT)
        assert run["run_id"] == run["started"][:10], "the default run id is the date"
        kept = scored[0] / "out" / "_hubhead" / "runs" / f"{run['run_id']}.json"
        assert json.loads(kept.read_text()) == run

    def test_progress_is_monotonic_and_ends_at_all_photos(self, scored: Scored) -> None:
        seen = scored[2]
        assert (seen[-1].done, seen[-1].total) == (28, 28)
        assert seen[-1].rejected == 4
        assert [p.done for p in seen] == sorted(p.done for p in seen)
        assert len(seen) > 8, "progress is reported within a shard"

    def test_second_run_changes_no_file(self, scored: Scored, bundles: dict[str, Path], folder: Path) -> None:
        top, _, _ = scored
        before = {path: path.stat().st_mtime_ns for path in (top / "out" / "scores").iterdir()}
        summary = score.score(settings(folder, bundles["food"], top, run_id="again"))
        assert {path: path.stat().st_mtime_ns for path in (top / "out" / "scores").iterdir()} == before
        assert summary.worked_shards == 0
        assert summary.total.photos == 28
        run = json.loads((top / "out" / "run.json").read_text())
        assert run["this_run"]["rows_written"] == 0
        assert run["all_runs"]["rows_written"] == 28

    def test_new_head_scores_from_the_store_without_the_backbone(
        self, scored: Scored, bundles: dict[str, Path], folder: Path, tmp_path: Path
    ) -> None:
        store = str(scored[0] / "store")
        new = settings(folder, bundles["new_head"], tmp_path, embedding_store=store)
        # The signature embed of this model fails when it is called.
        summary = score.score(new)
        assert summary.this_run.embedded == 0
        assert summary.this_run.read_bytes == 0
        assert summary.this_run.list_engines() == []
        assert {row["version"] for row in read_rows(tmp_path / "out")} == {4}

    def test_rows_of_deleted_photos_are_removed_and_new_photos_added(
        self, bundles: dict[str, Path], tmp_path: Path
    ) -> None:
        folder = tmp_path / "photos"
        folder.mkdir()
        for number in range(60):
            (folder / f"{number}.jpg").write_bytes(GOOD + bytes([number]))
        first = settings(folder, bundles["food"], tmp_path, shard_size=4)
        assert score.score(first).worked_shards >= 15
        (folder / "7.jpg").unlink()
        (folder / "new.jpg").write_bytes(GOOD + b"new")
        again = score.score(first)
        assert {Path(row["uri"]).name for row in read_rows(tmp_path / "out")} == {
            path.name for path in folder.iterdir()
        }
        assert again.worked_shards <= 3, "one shard lost a photo, one got one and may have split"
        assert again.this_run.embedded == 1

    def test_own_output_and_store_among_the_photos_are_left_out(
        self, bundles: dict[str, Path], tmp_path: Path
    ) -> None:
        photo = tmp_path / "a.jpg"
        photo.write_bytes(GOOD)
        os.utime(photo, (10_413_792_000, 10_413_792_000))  # the year 2300
        for run_id in ("first", "second"):
            summary = score.score(settings(tmp_path, bundles["food"], tmp_path, run_id=run_id))
            assert (summary.total.photos, summary.rejected) == (1, 0)

    def test_manifest_of_pipes_devices_and_impossible_names_gives_rows_that_are_unreadable(
        self, bundles: dict[str, Path], tmp_path: Path
    ) -> None:
        os.mkfifo(tmp_path / "pipe.jpg")
        names = ["pipe.jpg", "/dev/zero", "/proc/kmsg", "a\0b.jpg", "x" * 300, f"{tmp_path}/m.jsonl/x", ".."]
        lines = [json.dumps({"photo": name, "note": ""}) for name in names]
        (tmp_path / "m.jsonl").write_text("\n".join(lines))
        given = settings(tmp_path, bundles["food"], tmp_path, photos="", manifest=str(tmp_path / "m.jsonl"))
        start = time.monotonic()
        assert score.score(given).total.statuses == {"unreadable": len(names)}
        assert time.monotonic() - start < 30

    def test_torn_shard_file_is_written_again(
        self, bundles: dict[str, Path], folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        given = settings(folder, bundles["food"], tmp_path)
        score.score(given)
        expected = read_rows(tmp_path / "out")
        victim = next((tmp_path / "out" / "scores").iterdir())
        victim.write_bytes(victim.read_bytes()[:100])
        summary = score.score(given)
        assert "torn" in caplog.text
        assert summary.worked_shards == 1
        assert read_rows(tmp_path / "out") == expected

    def test_killed_run_resumes_with_the_same_command(
        self, bundles: dict[str, Path], folder: Path, tmp_path: Path
    ) -> None:
        command = [sys.executable, "-m", "batch", "--photos", str(folder), "--model", str(bundles["food"])]
        command += ["--output", str(tmp_path / "out"), "--embedding_store", str(tmp_path / "store")]
        command += ["--shard_size", "1"]
        root = REPO
        process = subprocess.Popen(command, cwd=root, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        finished: dict[str, int] = {}  # inodes of the files of finished shards
        deadline = time.monotonic() + 120
        work = tmp_path / "out" / "_hubhead" / "attempts"
        while len(finished) < 3 and time.monotonic() < deadline and process.poll() is None:
            shards = [path.stem for path in work.glob("*/shards/*.json")]
            rows = [path for path in work.rglob("*.parquet") if path.name[7:39] in shards]
            finished = {path.name: path.stat().st_ino for path in rows}
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == -signal.SIGKILL, errors.decode()
        assert 3 <= len(finished) < 28
        assert not (tmp_path / "out" / "run.json").exists()
        summary = score.score(settings(folder, bundles["food"], tmp_path, shard_size=1))
        undisturbed = tmp_path / "undisturbed"
        score.score(settings(folder, bundles["food"], undisturbed, shard_size=1))
        assert read_rows(tmp_path / "out") == read_rows(undisturbed / "out")
        assert summary.skipped_shards >= len(finished)
        inodes = {path.name: path.stat().st_ino for path in (tmp_path / "out" / "scores").iterdir()}
        assert {name: inodes[name] for name in finished} == finished
        assert list(work.iterdir()) == []


@pytest.mark.tf
@pytest.mark.beam
class TestConversion:
    """Conversion of HEIC. The bundle accepts PNGs too, since a HEIC reaches it as a PNG."""

    @pytest.fixture
    def formats_folder(self, tmp_path: Path) -> Path:
        import pillow_heif

        top = tmp_path / "photos"
        top.mkdir()
        large = Image.new("RGB", (3000, 2500), (200, 100, 50))
        pillow_heif.from_pillow(large).save(top / "large.heic")
        (top / "twin.heic").write_bytes((top / "large.heic").read_bytes())
        (top / "cut.heic").write_bytes((top / "large.heic").read_bytes()[:500])
        (top / "layers.psd").write_bytes(b"8BPS" + bytes(100))
        (top / "good.jpg").write_bytes(GOOD)
        return top

    def test_rows_of_converted_heic_photos_describe_the_original(
        self, bundles: dict[str, Path], formats_folder: Path, tmp_path: Path
    ) -> None:
        summary = score.score(settings(formats_folder, bundles["roomy"], tmp_path))
        rows = {Path(row["uri"]).name: row for row in read_rows(tmp_path / "out")}
        assert {name: row["status"] for name, row in rows.items()} == {
            "large.heic": "ok",
            "twin.heic": "ok",
            "cut.heic": "corrupt",
            "layers.psd": "unsupported_format",
            "good.jpg": "ok",
        }
        large = rows["large.heic"]
        content = (formats_folder / "large.heic").read_bytes()
        assert (large["width"], large["height"], large["detail"]) == (3000, 2500, None)
        assert large["sha256"] == hashlib.sha256(content).hexdigest()
        assert rows["layers.psd"]["detail"] == "Photoshop, which is not converted"
        assert "HEIC that cannot be decoded" in rows["cut.heic"]["detail"]
        assert summary.this_run.seconds["convert"] > 0
        again = score.score(
            settings(
                formats_folder, bundles["roomy"], tmp_path / "again", embedding_store=str(tmp_path / "store")
            )
        )
        assert again.this_run.read_bytes == 0, "permanent rejections are stored too"
        assert read_rows(tmp_path / "again" / "out") == read_rows(tmp_path / "out")

    def test_photo_rejected_because_of_a_missing_extra_is_retried(
        self, bundles: dict[str, Path], formats_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with monkeypatch.context() as without:
            without.setitem(sys.modules, "pi_heif", None)
            score.score(settings(formats_folder / "large.heic", bundles["roomy"], tmp_path))
        [row] = read_rows(tmp_path / "out")
        content = (formats_folder / "large.heic").read_bytes()
        assert row["status"] == "unsupported_format"
        assert row["detail"] == "HEIC; install hubhead[formats] to convert it"
        assert row["sha256"] == hashlib.sha256(content).hexdigest()
        store = str(tmp_path / "store")
        score.score(
            settings(
                formats_folder / "large.heic", bundles["roomy"], tmp_path / "again", embedding_store=store
            )
        )
        assert [row["status"] for row in read_rows(tmp_path / "again" / "out")] == ["ok"]


@pytest.mark.tf
@pytest.mark.beam
class TestEmbedding:
    def test_photos_are_embedded_once_and_then_reused(
        self, bundles: dict[str, Path], folder: Path, tmp_path: Path
    ) -> None:
        found = listing.find_photos(str(folder))
        store = EmbeddingStore(str(tmp_path), FINGERPRINT, DIMENSION)
        first = score.embed(found, bundles["headless"], store)
        assert first.this_run.embedded == 25  # 23 good with a pair of twins, cut, empty, text
        assert first.total.statuses["unreadable"] == 1
        known = store.lookup_digests(found)
        rows = store.get(known.values())
        assert len(known) == 26
        assert len(rows.shas) == 25
        assert list(tmp_path.glob("*/_plan*")) == []
        good = [photo for photo in found if photo in known]
        again = score.embed(good, bundles["headless"], store)
        assert again.worked_shards == 0
        assert again.total.photos == 26

    def test_without_open_photos_neither_beam_nor_tensorflow_is_imported(
        self, bundles: dict[str, Path], tmp_path: Path
    ) -> None:
        (tmp_path / "a.jpg").write_bytes(GOOD)
        store = EmbeddingStore(str(tmp_path / "store"), FINGERPRINT, DIMENSION)
        score.embed(listing.find_photos(str(tmp_path / "a.jpg")), bundles["headless"], store)
        code = f"""
import sys
from dataclasses import replace
from pathlib import Path
from batch.embeddings import EmbeddingStore
from batch.inputs import listing
from batch.jobs import score
store = EmbeddingStore({str(tmp_path / "store")!r}, {FINGERPRINT!r}, {DIMENSION})
photos = listing.find_photos({str(tmp_path / "a.jpg")!r})
summary = score.embed(photos, Path({str(bundles["headless"])!r}), store)
assert summary.total.reused == 1, summary
assert not {{"apache_beam", "tensorflow"}} & sys.modules.keys()
"""
        subprocess.run([sys.executable, "-c", code], check=True, cwd=REPO, timeout=60)

    def test_bundle_of_another_backbone_is_rejected(
        self, bundles: dict[str, Path], folder: Path, tmp_path: Path
    ) -> None:
        store = EmbeddingStore(str(tmp_path), "other", DIMENSION)
        with pytest.raises(BundleError, match="another backbone"):
            score.embed(listing.find_photos(str(folder)), bundles["headless"], store)

    def test_error_of_the_model_is_raised_unchanged(
        self, bundles: dict[str, Path], folder: Path, tmp_path: Path
    ) -> None:
        store = EmbeddingStore(str(tmp_path), FINGERPRINT, DIMENSION)
        with pytest.raises(Exception, match="embed was called") as caught:
            score.embed(listing.find_photos(str(folder / "twin.jpg")), bundles["new_head"], store)
        assert type(caught.value).__name__ == "RunError", "not wrapped in Beam's RuntimeError"

    def test_unknown_beam_option_is_rejected(
        self, bundles: dict[str, Path], folder: Path, tmp_path: Path
    ) -> None:
        store = EmbeddingStore(str(tmp_path), FINGERPRINT, DIMENSION)
        with pytest.raises(InputError, match="--no_such_option"):
            score.embed(
                listing.find_photos(str(folder)),
                bundles["headless"],
                store,
                beam_args=("--no_such_option=1",),
            )


@pytest.mark.tf
class TestRejectedOutputsAndModels:
    def test_output_of_another_model_needs_overwrite(
        self, scored: Scored, bundles: dict[str, Path], folder: Path
    ) -> None:
        other = settings(folder, bundles["new_head"], scored[0])
        with pytest.raises(OutputError, match="--overwrite"):
            score.score(other)
        assert (scored[0] / "out" / "run.json").exists(), "the output was not changed"

    def test_output_of_other_photos_needs_overwrite(
        self, scored: Scored, bundles: dict[str, Path], folder: Path
    ) -> None:
        with pytest.raises(OutputError, match="photos was"):
            score.score(settings(folder / "twin.jpg", bundles["food"], scored[0]))

    @pytest.mark.parametrize("overwrite", [False, True])
    def test_directory_with_foreign_files_is_never_overwritten(
        self, bundles: dict[str, Path], folder: Path, tmp_path: Path, overwrite: bool
    ) -> None:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "thesis.doc").write_text("precious")
        with pytest.raises(OutputError, match="not empty"):
            score.score(settings(folder, bundles["food"], tmp_path, overwrite=overwrite))

    @pytest.mark.parametrize("name", ["out", "store"])
    def test_unwritable_output_or_store_is_reported_before_any_work(
        self, bundles: dict[str, Path], folder: Path, tmp_path: Path, name: str
    ) -> None:
        (tmp_path / name).write_text("a file instead of the directory")
        with pytest.raises(OutputError, match=name):
            score.score(settings(folder, bundles["food"], tmp_path))

    def test_headless_bundle_is_rejected(
        self, bundles: dict[str, Path], folder: Path, tmp_path: Path
    ) -> None:
        with pytest.raises(BundleError, match="headless"):
            score.score(settings(folder, bundles["headless"], tmp_path))


@pytest.mark.parametrize(
    "runner",
    [
        "DaskRunner",
        "dask",
        "DirectRunner",
        "PrismRunner",
        "InteractiveRunner",
        "apache_beam.runners.dask.dask_runner.DaskRunner",
    ],
)
@pytest.mark.parametrize("spelling", ["--runner={}", "--runner {}"])
def test_beam_runners_that_lose_data_or_hang_are_rejected(runner: str, spelling: str) -> None:
    with pytest.raises(InputError, match="is not supported"):
        score.check_beam_args(spelling.format(runner).split())


def test_default_beam_runner_is_named_explicitly() -> None:
    assert score.check_beam_args(["--x=1"]) == ["--x=1", "--runner=FnApiRunner"]
    assert score.check_beam_args(["--runner=FlinkRunner"]) == ["--runner=FlinkRunner"]


class TestCommand:
    NEEDED = ("--photos", "p", "--model", "m", "--output", "o")

    @pytest.mark.parametrize(
        "wrong",
        [
            ["--max_rejected", "many"],
            ["--max_rejected", "101%"],
            ["--max_rejected", "-1"],
            ["--shard_size", "0"],
            ["--price_per_hour", "-1"],
            ["--no_such_flag", "1"],
        ],
    )
    def test_invalid_option_exits_with_2(self, wrong: list[str]) -> None:
        assert CliRunner().invoke(score_command, [*self.NEEDED, *wrong]).exit_code == 2

    @pytest.mark.parametrize("left_out", ["--photos", "--model", "--output"])
    def test_missing_option_exits_with_2(self, left_out: str) -> None:
        at = self.NEEDED.index(left_out)
        result = CliRunner().invoke(score_command, [*self.NEEDED[:at], *self.NEEDED[at + 2 :]])
        assert result.exit_code == 2

    def test_max_rejected_is_a_count_or_a_percentage(self) -> None:
        assert RejectionLimit(2, percent=False).exceeded(3, 1000)
        assert not RejectionLimit(2, percent=False).exceeded(2, 1000)
        assert RejectionLimit(5, percent=True).exceeded(51, 1000)
        assert not RejectionLimit(5, percent=True).exceeded(50, 1000)

    def test_every_option_has_a_field_in_the_settings(self) -> None:
        of_the_command = {"max_rejected", "as_json", "model_config_file", *COMMON}
        flags = {parameter.name for parameter in score_command.params} - of_the_command
        of_the_server = set(FLAGS)
        assert of_the_server < flags
        fields = ScoreSettings.__dataclass_fields__.keys() - {"configuration"}
        assert flags - of_the_server | {"server"} == fields

    @pytest.mark.tf
    @pytest.mark.beam
    def test_too_many_rejected_photos_exit_with_3_after_all_rows_are_written(
        self, bundles: dict[str, Path], folder: Path, tmp_path: Path
    ) -> None:
        arguments = ["--photos", str(folder), "--model", str(bundles["food"].parent.parent / "food" / "3")]
        arguments += ["--output", str(tmp_path / "out"), "--embedding_store", str(tmp_path / "store")]
        result = CliRunner().invoke(score_command, [*arguments, "--max_rejected", "5%", "--json"])
        assert result.exit_code == 3, result.output
        assert json.loads(result.stdout)["photos"] == 28
        assert "more than 5%" in result.stderr
        assert pq.read_table(tmp_path / "out" / "scores").num_rows == 28
        again = CliRunner().invoke(score_command, [*arguments, "--max_rejected", "4"])
        assert again.exit_code == 0, again.output
        assert "1 unreadable" in again.stdout

    def test_help_imports_neither_beam_nor_tensorflow_nor_pyarrow(self) -> None:
        code = (
            "import sys; from batch.commands.score import score; from click.testing import CliRunner;"
            "assert CliRunner().invoke(score, ['--help']).exit_code == 0;"
            "assert not {'apache_beam', 'tensorflow', 'pyarrow'} & sys.modules.keys()"
        )
        subprocess.run([sys.executable, "-c", code], check=True, cwd=REPO, timeout=60)
