from __future__ import annotations

import re
from pathlib import Path

import pytest
from airflow.providers.amazon.aws.fs.s3 import schemes
from airflow.providers.common.compat.sdk import ObjectStoragePath

from openmarkets_provider.exceptions import OpenmarketsConfigurationError
from openmarkets_provider.landing.places import (
    CHUNK,
    OBJECT_STORES,
    Place,
    check_object_options,
    read_place,
    static_url,
    upload_options,
)


class TestPlaces:
    @pytest.mark.parametrize(
        ("destination", "place", "url", "lineage"),
        [
            ("/data/x.csv", Place("file", "", "/data/x.csv"), "file:///data/x.csv", ("file", "/data/x.csv")),
            ("file:///data/a/../x", Place("file", "", "/data/x"), "file:///data/x", ("file", "/data/x")),
            ("s3://b/a/x", Place("s3", "b", "a/x"), "s3://b/a/x", ("s3://b", "a/x")),
            ("S3A://conn@b/x", Place("s3a", "b", "x", "conn"), "s3a://b/x", ("s3://b", "x")),
            ("gcs://b/x", Place("gcs", "b", "x"), "gcs://b/x", ("gs://b", "x")),
            ("abfs://b/x", Place("abfs", "b", "x"), "abfs://b/x", ("abfss://b", "x")),
        ],
    )
    def test_urls_and_absolute_paths_are_read(self, destination, place, url, lineage):
        read = read_place(destination, is_folder=False)
        assert read == place
        assert (read.url, read.lineage) == (url, lineage)

    @pytest.mark.parametrize(
        ("destination", "url"),
        [("s3://b", "s3://b/"), ("s3://c@b/bars/", "s3://b/bars"), ("/data/bars/", "file:///data/bars")],
    )
    def test_a_folder_may_be_a_whole_bucket_and_end_in_a_slash(self, destination, url):
        assert read_place(destination, is_folder=True).url == url

    @pytest.mark.parametrize(
        ("destination", "problem"),
        [
            ("bars/x.csv", "is not absolute"),
            ("~/x.csv", "is not absolute"),
            ("file://host/x.csv", "is not absolute"),
            ("/data/", "is a folder"),
            ("", "is empty; check the rendered template."),
            ("None", "is empty; check the rendered template."),
            (None, "is not a string"),
            (Path("/data/x.csv"), "pass str(path)"),
            ("/data//x.csv", "empty part in its path; check the rendered template."),
            ("file:////x.csv", "empty part"),
            ("/data/x.csv\n", "control character"),
            ("s3://b", "has no file name; add one"),
            ("s3://b/", "has no file name"),
            ("s3://b/a/", "empty part"),
            ("s3://b//x.csv", "empty part"),
            ("s3://b/../x.csv", "'..'"),
            ("s3:///x.csv", "no bucket"),
            ("s3://conn@/x.csv", "no bucket"),
            ("s3://b/x.csv?versionId=1", "'?' or '#'"),
            ("abfs://box@account.dfs.core.windows.net/x", "write abfs://container/path"),
            ("abfss://box@account.blob.core.windows.net/x", "set conn_id to the connection"),
            ("https://host/x.csv", "is not in a supported store"),
            ("sftp://host/x.csv", "use file, s3, s3a, gs, gcs, abfs, abfss"),
        ],
    )
    def test_others_are_refused_by_what_is_wrong(self, destination, problem):
        with pytest.raises(OpenmarketsConfigurationError) as error:
            read_place(destination, is_folder=False)
        assert str(error.value).startswith("destination: ")
        assert problem in str(error.value)

    @pytest.mark.parametrize(
        "destination",
        [
            "s3://key:the-secret@b/x",
            "https://key:the-secret@host/x",
            "s3://KEY:ab/the-secret@b/x",
            "s3://KEY/the-secret@b/x",
            "https://key:" + "the-secret" * 20 + "@host/x",
            "https://key:the-secret@host/x?of=b@the-secret",
            "https://key:the-secret?the-secret@host/x",
            "s3:/KEY:the-secret@b/x",
            "s3:KEY:the-secret@b/x",
            "s3//KEY:the-secret@b/x",
            "KEY:the-secret@b/x",
            "/data/s3://KEY:the-secret@b/x",
            "https://account.blob.core.windows.net/box/x.csv?sv=2024&sig=the-secret",
            "abfs://box/x.csv?sv=2024&sig=the-secret",
            "https:/host/x.csv?sig=the-secret",
            ObjectStoragePath("s3://KEY:the-secret@b/x"),
        ],
    )
    def test_credentials_in_a_url_are_refused_and_not_shown(self, destination):
        with pytest.raises(OpenmarketsConfigurationError) as error:
            read_place(destination, is_folder=False)
        assert "the-secret" not in str(error.value)

    @pytest.mark.parametrize("destination", ["/data/me@example.com//x?.csv", "/data//me@example.com/x", "me@home/x"])
    def test_of_a_path_without_a_scheme_all_is_shown(self, destination):
        with pytest.raises(OpenmarketsConfigurationError, match=re.escape(f"destination: {destination!r} ")):
            read_place(destination, is_folder=False)

    @pytest.mark.parametrize(
        ("destination", "url"),
        [
            ("s3://conn@b/bars/x.csv", "s3://b/bars/x.csv"),
            ("s3://b/bars/", "s3://b/bars"),
            ("/data/x.csv", "file:///data/x.csv"),
            ("s3://conn@b/bars/{{ ds }}.csv", "s3://b/bars"),
            ("s3://b/{% if x %}a{% endif %}/x.csv", "s3://b/"),
            ("/data/bars-{{ ds }}/x.csv", "file:///data"),
            ("{{ params.where }}/x.csv", None),
            ("/{{ params.where }}/x.csv", None),
            ("s3://{{ params.bucket }}/x.csv", None),
            ("s3://b-{{ params.bucket }}/x.csv", None),
            ("s3://conn@{{ params.bucket }}/x.csv", None),
        ],
    )
    def test_what_is_known_of_a_template_is_the_folder_before_it(self, destination, url):
        assert static_url(destination) == url


def test_s3_has_no_scheme_that_airflow_does_not_know():
    assert {scheme for scheme in OBJECT_STORES if scheme.startswith("s3")} <= set(schemes)


def test_azure_is_told_to_overwrite_as_its_older_file_systems_do_not():
    assert OBJECT_STORES["abfs"].options["overwrite"] is True


@pytest.mark.parametrize(
    ("scheme", "added", "options"),
    [
        ("s3", {}, {"ContentType": "text/csv", "chunksize": CHUNK, "max_concurrency": 1}),
        ("s3a", {"ContentType": "x/y"}, {"ContentType": "x/y", "chunksize": CHUNK, "max_concurrency": 1}),
        ("gs", {"metadata": {"a": "b"}}, {"content_type": "text/csv", "metadata": {"a": "b"}, "chunksize": CHUNK}),
        ("abfs", {}, {"content_settings": {"content_type": "text/csv"}, "overwrite": True}),
        (
            "abfss",
            {"content_settings": {"cache_control": "no-cache"}, "tags": {"a": "b"}},
            {
                "content_settings": {"content_type": "text/csv", "cache_control": "no-cache"},
                "tags": {"a": "b"},
                "overwrite": True,
            },
        ),
    ],
)
def test_an_upload_has_a_content_type_and_what_a_dag_author_adds(scheme, added, options):
    check_object_options(added, scheme)
    assert upload_options(scheme, "text/csv", added) == options


@pytest.mark.parametrize(
    ("options", "scheme", "problem"),
    [
        ({"ServerSideEncyption": "aws:kms"}, "s3", r"ServerSideEncyption can't be set for s3://; use only ACL, "),
        ({"chunksize": 1, "tags": {}}, "gs", r"object_options: chunksize, tags can't be set for gs://"),
        ({"overwrite": False}, "abfs", "overwrite can't be set"),
        ({"Tagging": "a=b"}, "file", "for object stores only"),
        ("Tagging=a", None, "object_options must be a dict, not str"),
    ],
)
def test_an_option_that_a_store_does_not_take_is_refused(options, scheme, problem):
    with pytest.raises(OpenmarketsConfigurationError, match=problem):
        check_object_options(options, scheme)


def test_options_that_s3_takes_are_those_of_both_kinds_of_uploads():
    import botocore.session

    model = botocore.session.get_session().get_service_model("s3")
    members = [set(model.operation_model(name).input_shape.members) for name in ("PutObject", "CreateMultipartUpload")]
    assert set(OBJECT_STORES["s3"].allowed) <= members[0] & members[1]
