"""What is missing on the machine is said in one line with its remedy; jars appear whole or not at all."""

import stat
import subprocess
import sys
from pathlib import Path

import pytest
from marketflow_stack import kafka
from marketflow_stack.errors import StackError
from marketflow_stack.kafka import KafkaBroker, find_java, java_reason, java_version, kafka_jars, server_properties


def program(folder: Path, name: str, script: str) -> None:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.fixture
def bin_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An otherwise empty PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    return folder


@pytest.mark.parametrize(
    ("said", "version"),
    [
        ('openjdk version "17.0.15" 2025-04-15', 17),
        ('java version "1.8.0_402"', 8),
        ('openjdk version "21" 2023-09-19', 21),
        ('openjdk version "25-ea" 2025-09-16', 25),
        ("command not found", None),
    ],
)
def test_the_major_version_of_java_is_read_from_what_it_says(said: str, version: int | None) -> None:
    assert java_version(said) == version


def test_a_machine_without_java_is_told_what_to_install(bin_folder: Path) -> None:
    with pytest.raises(StackError, match=r"no `java` on the PATH; install Java 17 or newer"):
        find_java()


def test_an_old_java_is_named_with_its_version(bin_folder: Path) -> None:
    program(bin_folder, "java", "echo 'openjdk version \"11.0.2\" 2019-01-15' >&2")
    with pytest.raises(StackError, match=r"bin/java is Java 11, Kafka 4\.1\.1 needs 17"):
        find_java()


def test_a_java_that_names_no_version_is_quoted(bin_folder: Path) -> None:
    program(bin_folder, "java", "echo 'no runtime present' >&2")
    with pytest.raises(StackError, match="says 'no runtime present', which names no version"):
        find_java()


def test_a_wrong_java_home_is_named(bin_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAVA_HOME", "/nowhere")
    with pytest.raises(StackError, match=r"JAVA_HOME is /nowhere, but there is no /nowhere/bin/java"):
        find_java()


def test_java_home_comes_before_the_path(bin_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(bin_folder, "java", "echo 'openjdk version \"11\"' >&2")
    home = tmp_path / "jdk"
    home.mkdir()
    program(home / "bin", "java", "echo 'openjdk version \"21\"' >&2")
    monkeypatch.setenv("JAVA_HOME", str(home))
    assert find_java() == home / "bin" / "java"


def test_without_maven_the_missing_jars_are_explained(bin_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(StackError, match=r"no `mvn` on the PATH.*; install Maven"):
        kafka_jars(tmp_path / "cache")


def test_without_a_network_maven_is_quoted_in_one_line_and_nothing_is_left(bin_folder: Path, tmp_path: Path) -> None:
    program(bin_folder, "mvn", "echo '[INFO] x'; echo '[ERROR] repo.maven.apache.org: Name not known'; exit 1")
    with pytest.raises(StackError, match=r"Maven could not get Kafka 4\.1\.1: repo.*Name not known; connect") as caught:
        kafka_jars(tmp_path / "cache")
    assert "\n" not in str(caught.value)
    assert [p.name for p in (tmp_path / "cache").iterdir()] == ["kafka-4.1.1.lock"]


COPY = (
    'for a in "$@"; do case "$a" in -DoutputDirectory=*) out="${a#*=}";; esac; done\n'
    '/bin/mkdir -p "$out"; echo run >> "$0.runs"\n'
    "for jar in kafka_2.13-4.1.1 kafka-tools-4.1.1 slf4j-simple-1.7.36; do /bin/sleep 0.1; : > $out/$jar.jar; done"
)


def test_two_runs_at_once_download_once(bin_folder: Path, tmp_path: Path) -> None:
    program(bin_folder, "mvn", COPY)
    script = "import sys; from marketflow_stack.kafka import kafka_jars; from pathlib import Path; "
    command = [sys.executable, "-c", f"{script}print(kafka_jars(Path(sys.argv[1])))", str(tmp_path / "cache")]
    runs = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    told = {run.communicate()[0].strip() for run in runs}
    assert [run.returncode for run in runs] == [0, 0, 0]
    assert told == {str(tmp_path / "cache" / "kafka-4.1.1")}
    assert (bin_folder / "mvn.runs").read_text() == "run\n"


def test_a_folder_that_lost_a_jar_is_fetched_again_and_a_whole_one_is_not(bin_folder: Path, tmp_path: Path) -> None:
    program(bin_folder, "mvn", COPY)
    jars = kafka_jars(tmp_path / "cache")
    (jars / "kafka-tools-4.1.1.jar").unlink()
    kafka_jars(tmp_path / "cache")
    assert (jars / "kafka-tools-4.1.1.jar").exists()
    kafka_jars(tmp_path / "cache")
    assert (bin_folder / "mvn.runs").read_text() == "run\nrun\n"


@pytest.mark.parametrize("status", [0, 134])
def test_an_archive_of_classes_is_made_once_and_used_only_if_java_can_read_it(
    status: int, bin_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(bin_folder, "java", f'case "$1" in *SharedArchiveFile*) exit {status};; *) echo 17 >&2;; esac')
    made: list[Path] = []

    def stop(broker: KafkaBroker, deadline: float) -> bool:
        assert broker._write_archive is not None
        made.append(broker._write_archive)
        broker._write_archive.write_text("classes")
        return True

    monkeypatch.setattr(kafka, "kafka_jars", lambda: tmp_path / "kafka-jars")
    monkeypatch.setattr(KafkaBroker, "start", lambda broker: None)
    monkeypatch.setattr(KafkaBroker, "stop", stop)
    found = [kafka.class_archive(bin_folder / "java") for _ in range(2)]
    assert len(made) == 1
    assert found[0] == found[1]
    assert (found[0] is None) is (status != 0)
    if found[0] is not None:
        assert found[0].read_text() == "classes"


def test_the_cache_is_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert kafka.cache_directory() == tmp_path / "marketflow"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative/is/ignored")
    assert kafka.cache_directory() == Path.home() / ".cache" / "marketflow"


def test_the_broker_listens_on_this_machine_only_and_makes_no_topic_by_itself(tmp_path: Path) -> None:
    text = server_properties(tmp_path, 9092, 9093)
    assert "listeners=PLAINTEXT://127.0.0.1:9092,CONTROLLER://127.0.0.1:9093\n" in text
    assert "auto.create.topics.enable=false\n" in text


@pytest.mark.parametrize(
    ("folder", "written"),
    [
        ("/a b", "/a b"),
        ("/ü", "/\\u00fc"),
        ("/日本", "/\\u65e5\\u672c"),
        ("/𝄞", "/\\ud834\\udd1e"),
        ("/a\\b", "/a\\u005cb"),
    ],
)
def test_a_folder_is_written_as_java_reads_it(folder: str, written: str) -> None:
    properties = server_properties(Path(folder), 1, 2)
    assert f"log.dirs={written}/data\n" in properties
    assert properties.isascii()


def test_a_folder_with_a_comma_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    with pytest.raises(StackError, match=r"a,b: it takes a path with a comma for two folders; name a state folder"):
        KafkaBroker(tmp_path / "a,b", 1, 2)
    assert not (tmp_path / "a,b").exists()


def test_of_a_java_programs_end_its_first_exception_is_shown() -> None:
    said = '[main] WARN something\nException in thread "main" java.io.IOException: No space left on device\n'
    said += "\tat java.base/sun.nio.ch.A.write(A.java:1)\nCaused by: java.lang.Error: x\n\t... 3 more\n"
    assert java_reason(said) == "java.io.IOException: No space left on device"
    assert java_reason("usage: storage\nno such option\n\tat A.b(C.java)\n") == "no such option"
    assert java_reason("") == "no reason given"
