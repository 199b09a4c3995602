"""validate, the one door: every refusal, and every leniency that existing caches need."""

import copy
import json
import random

import pytest

from kumquant.errors import TensorCacheError
from kumquant.tensor_cache import validate


def manifest() -> dict:
    """Two shards: an unaligned uint32, a bfloat16 stored as float32, a scalar, and a record without bytes."""
    return {
        "metadata": {"ParamSize": 5, "ParamBytes": 72.0, "BitsPerParam": 4.5},
        "records": [
            {
                "dataPath": "params_shard_0.bin",
                "format": "raw-shard",
                "nbytes": 30,
                "records": [
                    record("a.q_scale", [3], "float32", 6, 0),
                    record("a.q_weight", [2, 3], "uint32", 24, 6),
                    record("empty", [0, 7], "float16", 0, 30),
                ],
                "md5sum": "0123456789abcdef0123456789abcdef",
            },
            {
                "dataPath": "params_shard_1.bin",
                "format": "raw-shard",
                "nbytes": 12,
                "records": [
                    record("scalar", [], "float32", 4, 8) | {"format": "raw"},
                    record("b", [4], "bfloat16", 8, 0),  # not in order of offsets
                ],
                "md5sum": "fedcba9876543210fedcba9876543210",
            },
        ],
    }


def record(name, shape, dtype, nbytes, byte_offset):
    return {
        "name": name, "shape": shape, "dtype": dtype, "format": "f32-to-bf16", "nbytes": nbytes,
        "byteOffset": byte_offset,
    }


def changed(path, value):
    """The manifest with the value at ``path`` replaced, or removed when value is ``...``."""
    document = manifest()
    holder = document
    for step in path[:-1]:
        holder = holder[step]
    if value is ...:
        del holder[path[-1]]
    else:
        holder[path[-1]] = value
    return document


SHARD, RECORD = ("records", 0), ("records", 0, "records", 1)


def test_a_valid_manifest_as_data_and_back_to_the_same_text():
    text = json.dumps(manifest(), indent=4)
    result = validate(text)
    assert [shard.data_path for shard in result.shards] == ["params_shard_0.bin", "params_shard_1.bin"]
    assert [r.name for r in result.records()] == ["a.q_scale", "a.q_weight", "empty", "scalar", "b"]
    stored = ["bfloat16", "uint32", "float16", "float32", "bfloat16"]
    assert [r.stored_dtype for r in result.records()] == stored
    assert (result.num_records, result.nbytes, result.num_values) == (5, 42, 128)
    assert result.shards[0].records[1].byte_offset == 6
    assert result.to_text() == text
    assert validate(text.encode()) == validate(manifest()) == result


def test_the_twin_says_bfloat16_for_what_is_stored_so_and_nothing_else():
    twin = validate(manifest()).twin()
    assert [(r.dtype, r.format) for r in twin.records()] == [
        ("bfloat16", "raw"), ("uint32", "f32-to-bf16"), ("float16", "f32-to-bf16"), ("float32", "raw"),
        ("bfloat16", "f32-to-bf16"),
    ]
    assert validate(twin.to_text()) == twin
    assert validate(manifest()).has_twin and not twin.has_twin


@pytest.mark.parametrize(
    "document",
    [
        changed((*SHARD, "md5sum"), ...),
        changed(("metadata",), ...),
        changed(("metadata",), {}),
        changed(("metadata",), {"ParamSize": 5, "quantization": {"bits": [4]}}),
        changed(("records",), []),
        changed((*SHARD, "records"), []),
        changed((*RECORD, "format"), "some-later-encoder"),
        changed((*RECORD, "name"), "model.layers.0.mlp.q_weight_shard-3"),
        changed((*RECORD, "name"), "param_7"),
        changed((*SHARD, "nbytes"), 1000),  # gaps are no harm
        changed((*SHARD, "dataPath"), "weights/part.bin"),
        {**manifest(), "version": 2},
    ],
    ids=lambda document: json.dumps(document)[-40:],
)
def test_leniencies_of_existing_caches(document):
    assert validate(json.dumps(document)).shards is not None


@pytest.mark.parametrize(
    "name", ["../x", "a/../../x", "/etc/passwd", "..", ".", "", "a//b", "./a", "..\\x", "a\\..\\x", "C:x",
             "\\\\host\\share", "a/", "x\0y", "\ud800", 7, None, ["a"], True],
)
def test_data_paths_that_leave_the_folder_or_are_no_names(name):
    asked = []
    with pytest.raises(TensorCacheError, match="dataPath"):
        validate(changed((*SHARD, "dataPath"), name), lambda path: asked.append(path))
    assert asked == []  # the disk was not touched


@pytest.mark.parametrize("key", ["nbytes", "byteOffset", "shape"])
@pytest.mark.parametrize("value", [-1, True, 24.0, "24", None, 2**53 + 1, 10**4000, [24]])
def test_integers_only_and_bounded(key, value):
    with pytest.raises(TensorCacheError, match=r"not an integer|out of range|shape"):
        validate(changed((*RECORD, key), [value] if key == "shape" else value))


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ((), [], "not a JSON object"),
        ((), 3, "not a JSON object"),
        (("records",), ..., '"records" is missing'),
        (("records",), {}, "records: not an array; found an object"),
        (("records", 0), 5, "a shard must be an object"),
        (("metadata",), [], "metadata: not an object"),
        (("metadata",), None, "metadata: not an object; found null"),
        (("metadata", "ParamSize"), "5", r"metadata\.ParamSize: not a number"),
        (("metadata", "ParamBytes"), True, "found true"),
        (("metadata", "BitsPerParam"), float("nan"), "BitsPerParam: not a number"),
        ((*SHARD, "dataPath"), ..., '"dataPath" is missing'),
        ((*SHARD, "dataPath"), "params_shard_1.bin", "two shards have this dataPath"),
        ((*SHARD, "format"), "zip", "unknown shard format; found zip; expected raw-shard"),
        ((*SHARD, "format"), ..., '"format" is missing'),
        ((*SHARD, "nbytes"), ..., '"nbytes" is missing'),
        ((*SHARD, "nbytes"), 30.0, "nbytes: not an integer; found 30.0"),
        ((*SHARD, "nbytes"), 29, "past the end of its shard; found end at byte 30; expected at most 29"),
        ((*SHARD, "records"), None, "not an array"),
        ((*SHARD, "md5sum"), "0123", "not an md5; found 0123; expected 32 lower-case hex digits"),
        ((*SHARD, "md5sum"), "0123456789ABCDEF0123456789ABCDEF", "not an md5"),
        ((*SHARD, "md5sum"), None, "not an md5; found null"),
        (RECORD, "a", "a record must be an object; found a"),
        ((*RECORD, "name"), ..., '"name" is missing'),
        ((*RECORD, "name"), 3, "name: not a string; found 3"),
        ((*RECORD, "name"), "x\ud800", "half a surrogate pair"),
        ((*RECORD, "name"), "b", "two records have this name"),
        ((*RECORD, "dtype"), "float31", "unknown dtype; found float31; expected one of float32, float16"),
        ((*RECORD, "dtype"), "float16", "contradicts shape and dtype; found 24 bytes; expected 12 bytes"),
        ((*RECORD, "dtype"), ["uint32"], "dtype: not a string"),
        ((*RECORD, "format"), ..., '"format" is missing'),
        ((*RECORD, "format"), None, "format: not a string; found null"),
        ((*RECORD, "shape"), 6, "shape: not an array; found 6"),
        ((*RECORD, "shape"), [1] * 33, "too many dimensions; found 33"),
        ((*RECORD, "shape"), [2**50, 2**50], "too large"),
        ((*RECORD, "shape"), [0, 2**50, 2**50], "too large"),  # too much for NumPy all the same
        ((*RECORD, "shape"), [0], "found 24 bytes; expected 0 bytes"),
        ((*RECORD, "nbytes"), 28, r"found 28 bytes; expected 24 bytes for shape \[2, 3\] stored as uint32"),
        ((*RECORD, "byteOffset"), 4, r"overlap; found a\.q_scale ends at byte 6, a\.q_weight begins at 4"),
        ((*RECORD, "byteOffset"), ..., '"byteOffset" is missing'),
        (("records", 0, "records", 0, "nbytes"), 12, "expected 6 bytes .* stored as bfloat16"),
    ],
)
def test_refusals(path, value, message):
    document = value if path == () else changed(path, value)
    with pytest.raises(TensorCacheError, match=message):
        validate(document)


def test_the_message_says_where():
    with pytest.raises(TensorCacheError) as caught:
        validate(changed((*RECORD, "dtype"), "q4_0"))
    where = "manifest: records[0] (params_shard_0.bin).records[1] (a.q_weight)"
    assert str(caught.value).startswith(f"{where}: unknown dtype; found q4_0; expected one of float32,")
    assert "Convert or fetch the model again" in caught.value.hint


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b'{"records": []} {}', "not valid JSON"),
        (b"\xef\xbb\xbf{}", "byte order mark"),
        (b'{"records": "\xff"}', "not UTF-8: byte 13 is 0xff"),
        ('{"records": []}'.encode("utf-16"), "not UTF-8"),
        (b'{"metadata": {"x": NaN}, "records": []}', "numbers must be finite; found NaN"),
        (b'{"metadata": {"x": -Infinity}, "records": []}', "numbers must be finite"),
        (b'{"metadata": {"x": 1e999}, "records": []}', "numbers must be finite; found 1e999"),
        (b'{"records": [], "records": []}', "a key is given twice in one object; found records"),
        (b'{"metadata": {"a": {"b": 1, "b": 2}}, "records": []}', "given twice in one object; found b"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"metadata": ' + b'{"a": ' * 30 + b"1" + b"}" * 30 + b', "records": []}', "metadata: nested"),
        (b'{"metadata": {"x": ' + b"9" * 5000 + b'}, "records": []}', "not valid JSON"),
        (b" " * (33 << 20), "too long for a manifest"),
    ],
)
def test_text_that_is_no_manifest(text, message):
    with pytest.raises(TensorCacheError, match=message):
        validate(text)


def test_lengths_on_disk():
    sizes = {"params_shard_0.bin": 30, "params_shard_1.bin": 12}
    assert validate(manifest(), sizes.get).nbytes == 42
    with pytest.raises(TensorCacheError, match=r"_1\.bin: wrong length; found 11 bytes; expected 12 bytes"):
        validate(manifest(), (sizes | {"params_shard_1.bin": 11}).get)
    del sizes["params_shard_0.bin"]
    with pytest.raises(TensorCacheError, match=r"shard_0\.bin: this shard is missing; expected 30 bytes"):
        validate(manifest(), sizes.get)
    assert validate(manifest(), sizes.get, allow_missing_shards=True).num_records == 5


def mutated(document, rng):
    """The document with one random value replaced, removed or repeated somewhere."""
    document = copy.deepcopy(document)
    values = [None, True, -1, 0, 1, 3.5, 2**31, 2**63, 2**64, 10**30, float("inf"), "", "..", "float32",
              "\ud800", [], [[]], {}, [0], ["x"], {"name": "a"}]
    holder = document
    while True:
        key = rng.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
        if isinstance(holder[key], dict | list) and holder[key] and rng.random() < 0.8:
            holder = holder[key]
            continue
        action = rng.random()
        if action < 0.7:
            holder[key] = rng.choice(values)
        elif action < 0.85:
            del holder[key]
        elif isinstance(holder, list):
            holder.append(copy.deepcopy(holder[key]))
        return document


def test_random_damage_raises_tensor_cache_error_and_nothing_else():
    rng = random.Random(1)
    refused = 0
    for _ in range(200):
        document = mutated(manifest(), rng)
        text = json.dumps(document)
        if rng.random() < 0.3:  # and damage to the text itself
            place = rng.randrange(len(text))
            text = text[:place] + chr(rng.randrange(256)) + text[place + rng.randrange(3) :]
        for given in (document, text, text.encode("utf-8", "surrogatepass")):
            try:
                result = validate(given)
            except TensorCacheError as error:
                assert str(error).isprintable() or "\n" in str(error)
                refused += 1
            else:
                assert validate(result.to_text()) == result
                assert result.twin().to_text()
    assert 300 < refused < 600
