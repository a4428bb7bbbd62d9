"""Rescoring from stored embeddings: the rows equal those of score, and no photo is read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from batch.commands.rescore import rescore as command
from batch.jobs import rescore
from batch.jobs.rescore import RescoreSettings
from batch.jobs.score import ScoreSettings, score
from batch.output.attempt import Attempt
from serving.errors import InputError, OutputError
from serving.process import get_cpu_model
from tests.support.rescore import read_rows
from tests.support.score_job import GOOD, make_bundle

PHOTOS = 40


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    top = tmp_path_factory.mktemp("models")
    return {
        "old": make_bundle(top / "food" / "3"),
        "new": make_bundle(top / "food" / "4", embed_fails=True, scale=2.0),
        "newer": make_bundle(top / "food" / "5", embed_fails=True, scale=0.7),
    }


@pytest.fixture(scope="module")
def scored(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos with a column `batch`, scored with the old model and with the new one, then deleted."""
    top = tmp_path_factory.mktemp("scored")
    photos = top / "photos"
    photos.mkdir()
    for number in range(PHOTOS):
        (photos / f"{number}.jpg").write_bytes(GOOD + bytes([number]) * (number + 1))
    (photos / "twin.jpg").write_bytes((photos / "3.jpg").read_bytes())
    (photos / "text.jpg").write_bytes(b"hello, I am text")
    (photos / "cut.jpg").write_bytes(b"CUT off in the middle")
    (photos / "film.mp4").write_bytes(bytes(10_001))
    names = [*sorted(path.name for path in photos.iterdir()), "nowhere.jpg"]
    manifest = top / "photos.csv"
    manifest.write_text(
        "uri,batch\n" + "".join(f"photos/{name},{number % 3}\n" for number, name in enumerate(names))
    )
    for name in ("old", "new"):
        score(
            ScoreSettings(
                (models[name],),
                str(top / name),
                manifest=str(manifest),
                embedding_store=str(top / "store"),
                shard_size=8,
            )
        )
    shutil.rmtree(photos)
    return top


@pytest.fixture
def make_settings(scored: Path, models: dict[str, Path], tmp_path: Path) -> Callable[..., RescoreSettings]:
    def settings(*names: str, **changes: Any) -> RescoreSettings:
        given = {"scores": str(scored / "old"), "output": str(tmp_path / "out")}
        return RescoreSettings(
            model=tuple(models[name] for name in names),
            **{**given, "embedding_store": str(scored / "store"), **changes},
        )

    return settings


@pytest.mark.tf
@pytest.mark.beam
class TestRescoring:
    @pytest.mark.parametrize("group", [1, 1 << 19])
    def test_rows_are_bit_identical_to_those_of_score(
        self,
        scored: Path,
        make_settings: Callable[..., RescoreSettings],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        group: int,
    ) -> None:
        monkeypatch.setattr(rescore, "GROUP_PHOTOS", group)
        seen: list[int] = []
        summary = rescore.rescore(make_settings("new"), lambda progress: seen.append(progress.done))
        expected = read_rows(scored / "new")
        assert len(expected) == PHOTOS + 5
        assert read_rows(tmp_path / "out") == expected
        assert pq.read_schema(next((tmp_path / "out" / "scores").iterdir())).equals(
            pq.read_schema(next((scored / "new" / "scores").iterdir()))
        )
        assert seen[-1] == PHOTOS + 5
        run = json.loads((tmp_path / "out" / "run.json").read_text())
        other = json.loads((scored / "new" / "run.json").read_text())
        for name in ("photos", "rows", "rejected", "statuses", "models"):
            assert run[name] == other[name], name
        assert run["this_run"]["bytes_read"] == 0
        assert run["this_run"]["engines"] == []
        assert run["cpu"] == other["cpu"] == get_cpu_model()
        assert summary.this_run.reused == summary.total.photos - 2, "all but the two that were never read"

    def test_report_compares_with_the_previous_scores_and_later_with_the_previous_run(
        self, scored: Path, make_settings: Callable[..., RescoreSettings], tmp_path: Path
    ) -> None:
        given = make_settings("new", run_id="first", metrics_textfile=str(tmp_path / "rescore.prom"))
        rescore.rescore(given)
        run = json.loads((tmp_path / "out" / "run.json").read_text())
        page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
        before = json.loads((scored / "old" / "run.json").read_text())["run_id"]
        assert run["changes"]["since"] == f"{before} of {scored / 'old'}"
        assert run["changes"]["models"]["food/4"]["labels"]["value"] >= 0
        assert f"Compared with run {run['changes']['since']}." in page
        assert "nowhere.jpg" in page  # among the rejected photos
        assert "photos/0.jpg" in page  # without a thumbnail, since the file is gone
        figures = (tmp_path / "rescore.prom").read_text()
        assert f'hubhead_score_photos{{model="food",version="4"}} {PHOTOS + 5}.0' in figures
        rescore.rescore(replace(given, run_id="second", no_report=True))
        again_run = json.loads((tmp_path / "out" / "run.json").read_text())
        assert again_run["changes"]["since"] == "first"
        assert not (tmp_path / "out" / "report.html").exists(), "the report of the previous run is removed"

    def test_second_run_changes_no_file(
        self, make_settings: Callable[..., RescoreSettings], tmp_path: Path
    ) -> None:
        rescore.rescore(make_settings("new"))
        before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "scores").iterdir()}
        summary = rescore.rescore(make_settings("new"))
        assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "scores").iterdir()} == before
        assert (summary.worked_shards, summary.total.photos) == (0, PHOTOS + 5)

    def test_interrupted_rescore_resumes_after_its_finished_shards(
        self,
        scored: Path,
        make_settings: Callable[..., RescoreSettings],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        commit, done = Attempt.commit, 0

        def failing(self: Attempt, *args: Any, **named: Any) -> Any:
            nonlocal done
            done += 1
            if done > 3:
                raise OutputError("No space left.")
            return commit(self, *args, **named)

        monkeypatch.setattr(Attempt, "commit", failing)
        with pytest.raises(OutputError):
            rescore.rescore(make_settings("new"))
        assert not (tmp_path / "out" / "run.json").exists()
        monkeypatch.setattr(Attempt, "commit", commit)
        summary = rescore.rescore(make_settings("new"))
        assert summary.skipped_shards == 3
        assert read_rows(tmp_path / "out") == read_rows(scored / "new")

    def test_several_heads_in_one_pass_and_rescore_of_a_rescore(
        self, scored: Path, make_settings: Callable[..., RescoreSettings], tmp_path: Path
    ) -> None:
        rescore.rescore(make_settings("new", "newer"))
        rows = read_rows(tmp_path / "out")
        assert [row for row in rows if row["version"] == 4] == read_rows(scored / "new")
        assert len(rows) == 2 * (PHOTOS + 5)
        third = make_settings("new", scores=str(tmp_path / "out"), output=str(tmp_path / "third"))
        rescore.rescore(third)
        assert read_rows(tmp_path / "third") == read_rows(scored / "new")

    def test_photos_without_embedding_are_listed_and_other_scores_kept(
        self, scored: Path, make_settings: Callable[..., RescoreSettings], tmp_path: Path
    ) -> None:
        shutil.copytree(scored / "store", tmp_path / "store")
        lost = sorted((tmp_path / "store").glob("*/embeddings-*"))[0]
        lost.rename(tmp_path / "lost")
        settings = make_settings("new", embedding_store=str(tmp_path / "store"))
        with pytest.raises(InputError, match="no embedding") as error:
            rescore.rescore(settings)
        listed = (tmp_path / "out" / "_hubhead" / "missing.txt").read_text().splitlines()
        digests = {digest.hex() for digest in pq.read_table(tmp_path / "lost")["sha256"].to_pylist()}
        usable = {"ok", "truncated"}
        wanted = {
            row["uri"]
            for row in read_rows(scored / "new")
            if row["sha256"] in digests and row["status"] in usable
        }
        assert set(listed) == wanted
        assert "hubhead score --manifest" in error.value.remedy
        assert not (tmp_path / "out" / "run.json").exists()
        (tmp_path / "lost").rename(lost)
        summary = rescore.rescore(settings)
        assert summary.skipped_shards > 0
        assert read_rows(tmp_path / "out") == read_rows(scored / "new")
        assert not (tmp_path / "out" / "_hubhead" / "missing.txt").exists()

    def test_newest_row_of_a_photo_counts_among_several_runs(
        self, models: dict[str, Path], tmp_path: Path
    ) -> None:
        photos = tmp_path / "photos"
        photos.mkdir()
        for number in range(4):
            (photos / f"{number}.jpg").write_bytes(GOOD + bytes([number]))
        first = ScoreSettings(
            (models["old"],),
            str(tmp_path / "scores"),
            photos=str(photos),
            embedding_store=str(tmp_path / "store"),
            only_new=True,
            run_id="a",
        )
        score(first)
        (photos / "2.jpg").write_bytes(GOOD + b"changed")
        score(replace(first, run_id="b"))
        assert len(read_rows(tmp_path / "scores")) == 5
        rescore.rescore(
            RescoreSettings(
                (models["new"],),
                str(tmp_path / "out"),
                scores=str(tmp_path / "scores"),
                embedding_store=str(tmp_path / "store"),
            )
        )
        rows = {Path(row["uri"]).name: row for row in read_rows(tmp_path / "out")}
        assert len(rows) == 4
        newest = max(
            (row for row in pq.read_table(tmp_path / "scores" / "scores").to_pylist() if "/2." in row["uri"]),
            key=lambda row: row["scored_at"],
        )
        assert rows["2.jpg"]["sha256"] == newest["sha256"]
        assert rows["2.jpg"]["width"] == 2 * len(GOOD + b"changed")

    def test_command_prints_a_summary_or_run_json(
        self, make_settings: Callable[..., RescoreSettings], tmp_path: Path
    ) -> None:
        given = make_settings("new")
        arguments = ["--scores", given.scores, "--model", str(given.model[0]), "--output", given.output]
        arguments += ["--embedding_store", given.embedding_store]
        result = CliRunner().invoke(command, arguments)
        assert result.exit_code == 0, result.output
        assert f"{PHOTOS + 5} rows in" in result.stdout
        assert CliRunner().invoke(command, [*arguments, "--max_rejected", "1"]).exit_code == 3
        run = json.loads(CliRunner().invoke(command, [*arguments, "--engine", "onnx", "--json"]).stdout)
        assert run["photos"] == PHOTOS + 5
        assert run["settings"]["engine"] == "onnx"
