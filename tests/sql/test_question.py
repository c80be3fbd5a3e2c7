"""A question in SQL only reads, whatever is written in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from monosem.errors import ConfigError, FileError
from monosem.sql import Tables, condition

REFUSED_CONDITIONS = [
    "1=1); copy (select 1) to 'FILE' (format parquet); --",
    "true); drop view features; --",
    "true; select 1",
    "true, false",
    "true as x",
    "x: true",
    "true order by latent",
    "true limit 1",
    "true from examples",
    "true where false",
    "distinct true",
    "true union select false",
    "true) or (true",
    "true /* not closed",
    "*",
    "select 1",
    "true qualify false",
    "true group by all",
    "true window w as ()",
    "true using sample 1",
]
ONE_EXPRESSION = {
    "latent % 7 = 0 -- every seventh": 15,
    "/* some */ latent < 3": 3,
    "latent < 3 or latent > 97 and rate > 0": 5,
    "latent in (select latent from examples)": 2,
    "exists (with e as (select latent as l from examples) from e where l = latent)": 2,
    "latent = any (select unnest([1, 2]))": 2,
    "'a; b' = 'a; b'": 100,
    "rate > (select avg(rate) from main.Features)": 50,
    "list_contains([x for x in range(4)], latent)": 4,
    "(true)": 100,
}
REFUSED_QUERIES = [
    "copy features to 'FILE'",
    "copy (select 1) to 'FILE'",
    "with gone as (delete from features returning *) select * from gone",
    "with new as (insert into features values (1, 1) returning *) from new",
    "attach 'FILE.db'",
    "install httpfs",
    "load httpfs",
    "set threads = 1",
    "reset threads",
    "pragma database_list",
    "call range(3)",
    "export database 'FILE'",
    "import database 'FILE'",
    "create table t as select 1",
    "create macro m() as 1",
    "drop view features",
    "insert into features values (1, 1)",
    "update features set rate = 1",
    "checkpoint",
    "vacuum",
    "use temp",
    "explain analyze copy features to 'FILE'",
    "prepare p as select 1",
    "begin",
    "select 1; select 2",
    "select * from read_text('FILE')",
    "select * from read_csv('FILE')",
    "select * from read_blob('FILE')",
    "select * from read_parquet('FILE')",
    "select * from parquet_metadata('FILE')",
    "select * from glob('/*')",
    "select * from 'FILE'",
    "describe 'FILE'",
    "summarize 'FILE'",
    "from (select 1), 'FILE'",
    "select (select count(*) from 'FILE')",
    "with a as (from 'FILE') select 1",
    "select * from query('select 1')",
    "select * from query_table('FILE')",
    "select * from duckdb_settings()",
    "select * from duckdb_secrets()",
    "select * from information_schema.tables",
    "select * from other.features",
    "select * from temp.main.features",
    "select * from outside",
    "select nonsense from features",
    "selec",
    "",
    "-- nothing",
    "select " + "not " * 5_000 + "true",
    "select " + "(" * 50_000 + "1",
    "select " + "(select " * 99 + "1" + ")" * 99 + ", nonsense",
    "select " + "(select " * 900 + "1" + ")" * 900,
    "select " + "1 + " * 500 + "1 from outside",
    "select '" + "x" * 100_000 + "'",
]
READING_QUERIES = {
    "select count(*) as n from features": 100,
    "from examples select count(*) as n": 3,
    "with e as (from examples) select count(*) as n from features join E using (latent)": 3,
    "with recursive r as (select 1 as i union all select i + 1 from r where i < 5) select count(*) as n from r": 5,
    "select count(*) as n from (select 1 union all select 2)": 2,
    "select count(*) as n from range(7)": 7,
    "select sum(x) as n from (values (1), (2)) v(x)": 3,
    "select count(*) as n from features, lateral (select latent + 1)": 100,
    "select count(*) as n from features -- the end": 100,
    "select ? as n": 11,
}
outside = "a variable that is no table"


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    file = tmp_path / "secret.csv"
    file.write_text("a,b\n1,2\n")
    return file


def count(tables: Tables, where: str) -> int:
    found = tables.ask(f"select count(*) as n from features where {condition(where)}", where=where)
    return found.column("n")[0].as_py()


@pytest.mark.parametrize("where", REFUSED_CONDITIONS)
def test_what_is_not_one_expression_is_no_condition(tables: Tables, where: str) -> None:
    own = tables.folder / "features.parquet"
    before = own.read_bytes()
    with pytest.raises(ConfigError, match=r"one expression|cannot be run|one query"):
        count(tables, where.replace("FILE", str(own)))
    assert own.read_bytes() == before
    assert len(tables.run("from features")) == 100


@pytest.mark.parametrize(("where", "left"), ONE_EXPRESSION.items())
def test_one_expression_is_a_condition(tables: Tables, where: str, left: int) -> None:
    assert count(tables, where) == left


@pytest.mark.parametrize("query", REFUSED_QUERIES)
def test_a_query_that_does_more_than_read_the_tables_is_refused(tables: Tables, secret: Path, query: str) -> None:
    there = sorted(tables.folder.parent.rglob("*"))
    with pytest.raises(ConfigError) as refusal:
        tables.ask(query.replace("FILE", str(secret)))
    assert len(str(refusal.value)) < 500
    with pytest.raises(ConfigError):
        tables.ask(query.replace("FILE", str(tables.folder / "features.parquet")))
    assert sorted(tables.folder.parent.rglob("*")) == there
    assert len(tables.run("from features")) == 100


@pytest.mark.parametrize(("query", "n"), READING_QUERIES.items())
def test_queries_that_read_are_answered(tables: Tables, query: str, n: int) -> None:
    assert tables.ask(query, [11] if "?" in query else []).column("n")[0].as_py() == n


def test_a_file_that_is_cut_short_is_said_to_be_damaged(tables: Tables) -> None:
    (tables.folder / "features.parquet").write_bytes(b"PAR1")
    with pytest.raises(FileError, match="cannot be read"):
        Tables(tables.folder, tables.files)
