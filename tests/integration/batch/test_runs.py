"""Successive runs in one output: --only_new, several models, partitions, run ids, the lock."""

from __future__ import annotations

import json
import multiprocessing
import os
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from batch.commands.score import score as score_command
from batch.inputs import listing
from batch.inputs.listing import Photo
from batch.inputs.passthrough import PassThroughColumns
from batch.jobs import rescore, score
from batch.jobs.rescore import RescoreSettings
from batch.jobs.score import ScoreSettings
from batch.monitoring.stats import Stats
from batch.output.attempt import Attempt
from batch.output.dataset import Output
from batch.scoring.worker import ScoresTarget, ShardWorker
from batch.shards import shard
from batch.shards.partition import Partition
from batch.shards.shard import PlanWriter, sort_entries
from serving import bundle
from serving.errors import BundleError, InputError, OutputBusy, OutputError
from serving.storage import files
from tests.support.score_job import GOOD, LABELS, make_bundle


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    top = tmp_path_factory.mktemp("models")
    one = make_bundle(top / "food" / "1")
    two = make_bundle(top / "food" / "2", scale=2.0)
    other = make_bundle(top / "other" / "1")
    about = bundle.read(other).metadata
    replace(about, backbone={**about.backbone, "fingerprint": "f2"}).write(other)
    return {"one": one, "two": two, "other": other}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    top = tmp_path / "photos"
    top.mkdir()
    for number in range(12):
        (top / f"{number}.jpg").write_bytes(GOOD + bytes([number]))
    return top


def settings(top: Path, *models: Path, **changes: Any) -> ScoreSettings:
    given = {"photos": str(top / "photos"), "output": str(top / "out"), "shard_size": 5}
    if "manifest" in changes:
        given["photos"] = ""
    return ScoreSettings(models, **{**given, "embedding_store": str(top / "store"), **changes})


def names(top: Path, *columns: str) -> Counter[Any]:
    rows = pq.read_table(top / "out" / "scores").to_pylist()
    return Counter((Path(row["uri"]).name, *(row[column] for column in columns)) for row in rows)


@pytest.mark.tf
@pytest.mark.beam
class TestOnlyNew:
    def test_only_new_adds_new_and_changed_photos_and_keeps_existing_rows(
        self, models: dict[str, Path], folder: Path, tmp_path: Path
    ) -> None:
        score.score(settings(tmp_path, models["one"], run_id="monday"))
        before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "scores").iterdir()}
        (folder / "0.jpg").unlink()
        (folder / "1.jpg").write_bytes(GOOD + b"changed")
        (folder / "new.jpg").write_bytes(GOOD + b"new")
        lost = folder / "lost.jpg"
        lost.symlink_to(folder / "nowhere")
        night = settings(tmp_path, models["one"], run_id="tuesday", only_new=True)
        summary = score.score(night)
        assert (summary.total.photos, summary.known, summary.lines) == (3, 10, 13)
        assert {p: p.stat().st_mtime_ns for p in before} == before
        expected = Counter({(f"{n}.jpg",): 1 for n in range(12)})
        expected += Counter([("1.jpg",), ("new.jpg",), ("lost.jpg",)])
        assert names(tmp_path) == expected

        again = score.score(night)
        assert (again.worked_shards, again.total.photos, again.known) == (0, 3, 13)
        run = json.loads((tmp_path / "out" / "run.json").read_text())
        assert (run["run_id"], run["photos"], run["known_photos"]) == ("tuesday", 3, 13)
        assert run["this_run"]["rows_written"] == 3, "both attempts of the run together"

        next_night = score.score(replace(night, run_id="wednesday"))
        assert next_night.total.statuses == {"unreadable": 1}, "unreadable photos are retried in the next run"
        assert sorted(p.name for p in (tmp_path / "out" / "_hubhead" / "runs").iterdir()) == [
            "monday.json", "tuesday.json", "wednesday.json",
        ]  # fmt: skip
        with pytest.raises(OutputError, match="only_new was True, now False"):
            score.score(settings(tmp_path, models["one"]))

    def test_model_added_to_an_output_scores_all_photos(
        self, models: dict[str, Path], folder: Path, tmp_path: Path
    ) -> None:
        score.score(settings(tmp_path, models["one"], only_new=True))
        (folder / "new.jpg").write_bytes(GOOD + b"new")
        both = settings(tmp_path, models["one"], models["two"], only_new=True, run_id="both")
        summary = score.score(both)
        assert summary.this_run.rows == 14, "13 rows of the new model and one of the old"
        assert summary.this_run.embedded == 1
        assert names(tmp_path, "version") == Counter(
            (name, version) for name in [f"{n}.jpg" for n in range(12)] + ["new.jpg"] for version in (1, 2)
        )
        assert score.score(both).worked_shards == 0

    def test_only_new_after_rescore_skips_rescored_photos(
        self, models: dict[str, Path], folder: Path, tmp_path: Path
    ) -> None:
        score.score(settings(tmp_path, models["one"], only_new=True, run_id="monday"))
        (folder / "late.jpg").write_bytes(GOOD + b"late")
        (folder / "lost.jpg").symlink_to(folder / "nowhere")
        score.score(settings(tmp_path, models["one"], only_new=True, run_id="tuesday"))
        again = RescoreSettings(
            (models["two"],),
            str(tmp_path / "again" / "out"),
            scores=str(tmp_path / "out"),
            embedding_store=str(tmp_path / "store"),
            run_id="new-head",
        )
        assert rescore.rescore(again).total.photos == 14
        assert rescore.rescore(again).this_run.photos == 0
        (folder / "1.jpg").write_bytes(GOOD + b"changed")
        (folder / "new.jpg").write_bytes(GOOD + b"new")
        night = settings(tmp_path, models["two"], output=again.output, only_new=True, run_id="wednesday")
        summary = score.score(night)
        assert (summary.total.photos, summary.known) == (3, 12), (
            "the changed, the new, and the unreadable photo"
        )
        found = names(tmp_path / "again", "version")
        assert found == Counter(
            {(f"{n}.jpg", 2): 1 for n in range(12)} | {("late.jpg", 2): 1, ("lost.jpg", 2): 2}
        ) + Counter([("1.jpg", 2), ("new.jpg", 2)])
        assert score.score(night).worked_shards == 0

    def test_manifest_columns_must_match_those_of_existing_rows(
        self, models: dict[str, Path], folder: Path, tmp_path: Path
    ) -> None:
        manifest = folder / "m.csv"
        given = settings(tmp_path, models["one"], manifest=str(manifest), only_new=True)
        manifest.write_text("uri,code\n0.jpg,x\n")
        score.score(given)
        manifest.write_text("uri,code\n1.jpg,7\n")
        score.score(given)
        rows = pq.read_table(tmp_path / "out" / "scores")
        assert sorted(rows["code"].to_pylist()) == ["7", "x"]
        manifest.write_text("uri,other\n2.jpg,7\n")
        with pytest.raises(OutputError, match=r"code \(string\)"):
            score.score(given)

    def test_only_new_and_overwrite_are_mutually_exclusive(
        self, models: dict[str, Path], tmp_path: Path
    ) -> None:
        with pytest.raises(InputError, match="only_new"):
            score.score(settings(tmp_path, models["one"], only_new=True, overwrite=True))


@pytest.mark.tf
@pytest.mark.beam
class TestSeveralModels:
    def test_photo_has_one_row_per_model_and_is_embedded_once(
        self, models: dict[str, Path], folder: Path, tmp_path: Path
    ) -> None:
        manifest = folder / "m.csv"
        manifest.write_text("uri,shop\n" + "".join(f"{n}.jpg,{n}\n" for n in range(12)))
        both = settings(tmp_path, models["two"], models["one"], manifest=str(manifest))
        summary = score.score(both)
        assert (summary.total.photos, summary.total.rows, summary.total.embedded) == (12, 24, 12)
        table = pq.read_table(tmp_path / "out" / "scores")
        assert all(Path(row["uri"]).stem == str(row["shop"]) for row in table.to_pylist())
        run = json.loads((tmp_path / "out" / "run.json").read_text())
        assert [(m["name"], m["version"]) for m in run["models"]] == [("food", 1), ("food", 2)]
        for model in run["models"]:
            assert sum(model["labels"].values()) + model["abstained"] == 12
        alone = tmp_path / "alone"
        for model, version in (("one", 1), ("two", 2)):
            single = replace(both, model=(models[model],), output=str(alone / model))
            score.score(single)
            expected = pq.read_table(alone / model / "scores").drop_columns(["scored_at"]).sort_by("uri")
            ours = table.filter(np.array(table["version"]) == version).drop_columns(["scored_at"])
            assert ours.sort_by("uri").equals(expected)

    def test_models_of_different_backbones_or_of_one_name_are_rejected(
        self, models: dict[str, Path], folder: Path, tmp_path: Path
    ) -> None:
        with pytest.raises(BundleError, match=r"different backbones.*f1 and f2"):
            score.score(settings(tmp_path, models["one"], models["other"]))
        with pytest.raises(BundleError, match="would both be called food, version 1"):
            score.score(settings(tmp_path, models["one"], models["one"]))
        assert not (tmp_path / "out").exists()


@pytest.mark.tf
@pytest.mark.beam
class TestPartitions:
    def test_partition_by_label_writes_hive_directories(
        self, models: dict[str, Path], folder: Path, tmp_path: Path
    ) -> None:
        plain = settings(tmp_path, models["one"])
        score.score(plain)
        expected = names(tmp_path, "label", "score")
        by_label = replace(plain, partition_by="label")
        with pytest.raises(OutputError, match="partition_by was none, now label"):
            score.score(by_label)
        score.score(replace(by_label, overwrite=True))
        assert names(tmp_path, "label", "score") == expected
        directories = {path.name for path in (tmp_path / "out" / "scores").iterdir()}
        assert directories <= {f"label={label}" for label in [*LABELS, "__HIVE_DEFAULT_PARTITION__"]}
        assert score.score(by_label).worked_shards == 0

    def test_partition_by_date_uses_the_day_of_the_run(
        self, models: dict[str, Path], folder: Path, tmp_path: Path
    ) -> None:
        score.score(settings(tmp_path, models["one"], partition_by="date"))
        day = json.loads((tmp_path / "out" / "run.json").read_text())["started"][:10]
        assert [path.name for path in (tmp_path / "out" / "scores").iterdir()] == [f"date={day}"]
        assert sum(names(tmp_path).values()) == 12

    def test_manifest_column_with_the_name_of_the_partition_is_rejected(
        self, models: dict[str, Path], folder: Path, tmp_path: Path
    ) -> None:
        (folder / "m.csv").write_text("uri,date\n0.jpg,monday\n")
        given = settings(tmp_path, models["one"], manifest=str(folder / "m.csv"), partition_by="date")
        with pytest.raises(InputError, match="'date' passes through to the scores, which are partitioned"):
            score.score(given)
        assert not (tmp_path / "out" / "_hubhead" / "input.json").exists(), "the output was not claimed"


class TestOverwriteAndRetry:
    def test_run_interrupted_during_overwrite_needs_overwrite_again(self, tmp_path: Path) -> None:
        output = Output(str(tmp_path))
        mine = {"photos": "p", "models": [], "partition_by": ""}
        assert not output.check(mine, append=True, overwrite=False)
        output.claim(mine, [], append=True)
        output.reset()
        for append in (True, False):
            with pytest.raises(OutputError, match="--overwrite"):
                output.check(mine, append=append, overwrite=False)
        assert output.check(mine, append=False, overwrite=True)

    def test_finished_shard_is_skipped_when_beam_retries_its_element(self, tmp_path: Path) -> None:
        attempt = Attempt(str(tmp_path / "out"), "0" * 16)
        entries = sort_entries([(Photo("/a.jpg", 1, 1), [])])
        [piece] = shard.plan_shards(entries, 5, {})
        with PlanWriter(attempt.plan_directory) as writer:
            writer.add(piece.to_shard(PassThroughColumns()))
        [planned] = shard.read_plan(writer.path)
        scores = ScoresTarget(attempt, "night", datetime.now(UTC), ("digest",))
        task = ShardWorker(("nowhere",), str(tmp_path / "store"), attempt.plan_directory, scores)
        table = pa.table({"uri": ["/a.jpg"]})
        attempt.commit(planned.id, "night", table, Stats(photos=1, rows=1), {}, date="2026-05-31")
        assert task.process(planned, models=[]).to_json() == Stats(photos=1, rows=1).to_json()


@pytest.mark.parametrize("wrong", ["", "a/b", ".hidden", "x" * 65, "a~b"])
def test_invalid_run_ids_are_rejected(wrong: str) -> None:
    from batch.output.dataset import check_run_id

    with pytest.raises(InputError, match="not a valid run id"):
        check_run_id(wrong)
    assert check_run_id("2026-05-31.night_2") == "2026-05-31.night_2"


class TestLease:
    def test_second_run_is_rejected_while_the_first_holds_the_lease(self, tmp_path: Path) -> None:
        output = Output(str(tmp_path))
        busy = pytest.raises(OutputBusy, match=f"Another run is writing to .*process {os.getpid()} on")
        with output.hold_lease(), busy as caught, output.hold_lease():
            pass
        assert caught.value.exit_code == 5
        with output.hold_lease():
            pass

    def test_lease_of_a_killed_process_is_taken_over_at_once(self, tmp_path: Path) -> None:
        context = multiprocessing.get_context("spawn")
        ready = context.Event()
        process = context.Process(target=_hold_lease, args=(str(tmp_path), ready))
        process.start()
        assert ready.wait(60)
        with pytest.raises(OutputBusy), Output(str(tmp_path)).hold_lease():
            pass
        process.kill()
        process.join(60)
        with Output(str(tmp_path)).hold_lease():
            pass

    def test_busy_output_exits_with_5(self, tmp_path: Path) -> None:
        assert OutputBusy("x").exit_code == 5
        text = " ".join(CliRunner().invoke(score_command, ["--help"]).output.split())
        assert "5 another run is writing to the output" in text


def _hold_lease(directory: str, ready: Any) -> None:
    with Output(directory).hold_lease():
        ready.set()
        multiprocessing.Event().wait(600)


class TestReadRetries:
    def test_failed_read_is_retried(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        attempts = []

        def read(uri: str) -> bytes:
            attempts.append(uri)
            if len(attempts) < 3:
                raise TimeoutError("the storage is busy")
            return b"content"

        monkeypatch.setattr(listing, "read_regular", read)
        monkeypatch.setattr(files.time, "sleep", lambda _: None)
        assert listing.read_photo(Photo("/a.jpg", 1, 1)) == b"content"

    def test_exponential_backoff_is_capped_and_the_last_error_is_raised(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pauses: list[float] = []
        monkeypatch.setattr(files.time, "sleep", pauses.append)
        monkeypatch.setattr(files.random, "uniform", lambda _, most: most)
        attempts = iter(range(20))

        def refuse() -> None:
            raise PermissionError(f"number {next(attempts)}")

        with pytest.raises(PermissionError, match="number 7"):
            files.retry_with_backoff(refuse, initial_pause=0.5, attempts=8)
        assert pauses == [0.5, 1, 2, 4, 8, 8, 8]


@pytest.mark.beam
@pytest.mark.tf
def test_partitions_cover_each_photo_exactly_once(
    tmp_path: Path, folder: Path, models: dict[str, Path]
) -> None:
    whole = score.score(settings(tmp_path, models["one"]))
    rows = [
        pq.read_table(f"{score.score(part).path}/scores").to_pylist()
        for number in (0, 1)
        for part in [
            settings(tmp_path, models["one"], output=str(tmp_path / str(number)), share=Partition(number, 2))
        ]
    ]
    assert all(rows)
    uris = [row["uri"] for part in rows for row in part]
    assert sorted(uris) == sorted(str(path) for path in folder.iterdir())
    assert whole.total.photos == len(uris)
    with pytest.raises(OutputError, match="share"):
        score.score(settings(tmp_path, models["one"], output=str(tmp_path / "0"), share=Partition(1, 2)))


@pytest.mark.parametrize("text", ["8/8", "1", "0/0", "-1/2", "a/b"])
def test_invalid_share_exits_with_2(text: str) -> None:
    done = CliRunner().invoke(score_command, ["--photos=x", "--model=m", "--output=o", f"--share={text}"])
    assert done.exit_code == 2
    assert "0/8 to 7/8" in done.output
