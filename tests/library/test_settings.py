import os
import stat

import pytest

from danqing.errors import DanqingError
from danqing.library.settings import (
    KEYS,
    add_folder,
    load_settings,
    read_token,
    set_value,
    settings_file,
    show,
    write_atomically,
)


def test_no_file_is_all_defaults_and_writes_nothing(tmp_path):
    settings = load_settings(data_dir=tmp_path / "home")
    assert settings.device == settings.dtype == "auto"
    assert settings.folders == ()
    assert settings.write_metadata is True
    assert str(settings.output_folder) == "outputs"
    assert settings.data_dir == tmp_path / "home"
    assert settings.models_dir == tmp_path / "home" / "models"
    assert not (tmp_path / "home").exists()


def test_where_the_file_is(tmp_path, monkeypatch):
    monkeypatch.delenv("DANQING_HOME", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    platform = settings_file()
    assert platform.name == "config.toml"
    assert platform.parent.name == "danqing"
    assert load_settings().data_dir != platform.parent  # the platform keeps data elsewhere
    monkeypatch.setenv("DANQING_HOME", str(tmp_path / "home"))
    assert settings_file() == tmp_path / "home" / "config.toml"
    assert load_settings().data_dir == tmp_path / "home"
    assert settings_file(tmp_path / "arg") == tmp_path / "arg" / "config.toml"


def test_the_data_dir_argument_goes_before_the_file(tmp_path):
    (tmp_path / "config.toml").write_text(f'data_dir = "{tmp_path}/big"\n')
    assert load_settings(tmp_path / "config.toml").data_dir == tmp_path / "big"
    assert load_settings(data_dir=tmp_path).data_dir == tmp_path


def test_relative_folders_are_relative_to_the_file(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    (tmp_path / "config.toml").write_text('folders = ["a", "/b", "~/c"]\nhub_cache = "hub"\noutput_folder = "out"\n')
    settings = load_settings(tmp_path / "config.toml")
    assert [str(folder) for folder in settings.folders] == [f"{tmp_path}/a", "/b", f"{tmp_path}/me/c"]
    assert settings.hub_cache == tmp_path / "hub"
    assert settings.output_folder == tmp_path / "out"


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ('folder = "x"', "no such setting 'folder'; did you mean folders"),
        ("default_modle = 'x'", "did you mean default_model"),
        ("zzzzzzz = 1", "the keys are data_dir, folders"),
        ('path = "x"', "no such setting 'path'"),
        ("device = 'gpu'", "device: "),
        ("dtype = 'float8'", "dtype: "),
        ("write_metadata = 'perhaps'", "write_metadata: "),
        ("folders = 3", "folders: "),
        ("folders = [", "not valid TOML"),
        ("[table]\na = 1", "no such setting 'table'"),
    ],
)
def test_what_is_wrong_is_one_line_with_the_file(tmp_path, text, part):
    file = tmp_path / "config.toml"
    file.write_text(text)
    with pytest.raises(DanqingError) as error:
        load_settings(file)
    assert str(error.value).startswith(f"{file}: ")
    assert part in str(error.value)
    assert "\n" not in str(error.value)


def test_bytes_that_are_no_text(tmp_path):
    (tmp_path / "config.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DanqingError, match="cannot be read"):
        load_settings(tmp_path / "config.toml")


def test_setting_a_value_keeps_the_rest_of_the_file(tmp_path):
    file = tmp_path / "config.toml"
    file.write_text(
        '# mine\nfolders = [\n  "/a",  # disk\n  "default_model = 3",\n]\ndefault_model = "x" # best\n# end\n'
    )
    assert set_value(file, "default_model", 'say "你好"\\').default_model == 'say "你好"\\'
    text = file.read_text(encoding="utf-8")
    assert '# mine\nfolders = [\n  "/a",  # disk\n  "default_model = 3",\n]\ndefault_model = ' in text
    assert text.endswith("# end\n")
    assert set_value(file, "folders", "/one, two").folders == (type(file)("/one, two"),)
    assert set_value(file, "folders", '["/one", "/two"]').folders == (type(file)("/one"), type(file)("/two"))
    assert set_value(file, "write_metadata", "off").write_metadata is False
    assert set_value(file, "write_metadata", "true").write_metadata is True
    assert set_value(file, "default_model", "").default_model is None
    assert "default_model" not in file.read_text(encoding="utf-8")
    assert file.read_text(encoding="utf-8").startswith("# mine\n")


@pytest.mark.parametrize(
    ("key", "value"),
    [("default_modell", "x"), ("device", "tpu"), ("write_metadata", "maybe"), ("folders", "[1"), ("path", "x")],
)
def test_a_wrong_value_leaves_the_file_alone(tmp_path, key, value):
    file = tmp_path / "config.toml"
    file.write_text('default_model = "x"\n')
    with pytest.raises(DanqingError, match=key):
        set_value(file, key, value)
    assert file.read_text() == 'default_model = "x"\n'
    assert os.listdir(tmp_path) == ["config.toml"]


def test_adding_a_folder_twice_is_once(tmp_path):
    settings = load_settings(data_dir=tmp_path)
    settings = add_folder(settings, tmp_path / "a")
    settings = add_folder(settings, tmp_path / "b")
    assert add_folder(settings, tmp_path / "a") is settings
    assert load_settings(data_dir=tmp_path).folders == (tmp_path / "a", tmp_path / "b") == settings.folders


@pytest.mark.skipif(os.name == "nt", reason="POSIX modes")
def test_nobody_else_reads_the_file(tmp_path):
    set_value(tmp_path / "config.toml", "hub_token", "hf_secret")
    assert stat.S_IMODE((tmp_path / "config.toml").stat().st_mode) == 0o600


def test_show_masks_tokens(tmp_path):
    file = tmp_path / "config.toml"
    set_value(file, "hub_token", "hf_secret")
    rows = show(set_value(file, "civitai_token", "$MY_KEY"))
    values = {key: value for key, value, _ in rows}
    assert list(values) == list(KEYS)
    assert values["hub_token"] == "(set)"
    assert values["civitai_token"] == "$MY_KEY"
    assert values["write_metadata"] == "true"
    assert all(help for _, _, help in rows)


def test_tokens_by_environment(monkeypatch):
    monkeypatch.setenv("MINE", "one")
    monkeypatch.setenv("HF_TOKEN", "two")
    assert read_token("$MINE", ("HF_TOKEN",)) == "one"
    assert read_token(None, ("ABSENT", "HF_TOKEN")) == "two"
    assert read_token("three", ("HF_TOKEN",)) == "three"
    monkeypatch.delenv("MINE")
    with pytest.raises(DanqingError, match=r"\$MINE"):
        read_token("$MINE", ("HF_TOKEN",))


def test_a_link_stays_a_link_and_a_mark_of_windows_is_no_trouble(tmp_path):
    (tmp_path / "dotfiles").mkdir()
    (tmp_path / "dotfiles" / "danqing.toml").write_text('\ufeffdefault_model = "x"\n', encoding="utf-8")
    (tmp_path / "config.toml").symlink_to("dotfiles/danqing.toml")
    assert load_settings(tmp_path / "config.toml").default_model == "x"
    set_value(tmp_path / "config.toml", "device", "cpu")
    assert (tmp_path / "config.toml").is_symlink()
    assert load_settings(tmp_path / "dotfiles" / "danqing.toml").device == "cpu"


def test_a_file_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DanqingError, match="cannot be written"):
        write_atomically(tmp_path / "file" / "config.toml", "x")
