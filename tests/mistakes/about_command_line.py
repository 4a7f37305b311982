"""Words that the command line does not take."""

from collections.abc import Callable
from pathlib import Path

from stratrun.cli.arguments import parse
from stratrun.cli.dispatch import command
from stratrun.errors import ConfigError, UnknownNameError
from tests.mistakes.mistake import mistake


def said(words: str) -> Callable[[Path], object]:
    """What a user has typed behind ``stratrun``."""

    def act(folder: Path) -> object:
        argv = words.split()
        code = command(argv)
        return parse(argv) if code is None else code

    return act


def typed(name: str, words: str, error: type[Exception], *told: str, **about: object) -> None:
    act = said(words)
    act.__name__ = name
    mistake(error, *told, **about)(act)


def a_file(folder: Path) -> None:
    (folder / "notes").write_text("mine")
    (folder / "taken").mkdir()
    (folder / "taken" / "thesis.md").write_text("mine")


typed("a_job_is_misspelt", "trian run.yaml", ConfigError, "'trian'", "did you mean 'train'?")
typed("a_job_of_another_framework_is_asked_for", "fit run.yaml", ConfigError, "'fit'", "known:", "train")
typed("a_command_is_misspelt", "plann run.yaml", ConfigError, "'plann'", "did you mean 'plan'?")
typed("a_command_of_a_group_is_misspelt", "ckpt lst work", ConfigError, "'lst'", "did you mean 'ls'?")
typed("no_config_is_given", "train", ConfigError, "which config?", "stratrun train CONFIG")
typed("a_setting_comes_first", "train optimizer.lr=1", ConfigError, "which config?", "key=value")
typed("an_option_is_misspelt", "train c.yaml --resum", ConfigError, "--resum", "did you mean '--resume'?")
typed(
    "a_setting_is_given_as_an_option",
    "train c.yaml --optimizer.lr=1",
    ConfigError,
    "--optimizer.lr is no option",
    "optimizer.lr=1",
)
typed("a_config_is_given_twice", "train a.yaml b.yaml", ConfigError, "'b.yaml'", "one config")
typed(
    "evaluation_weights_are_given_to_training",
    "train c.yaml --checkpoint best",
    ConfigError,
    "--checkpoint",
    "--resume",
)
typed("raw_inputs_are_given_to_training", "train c.yaml --inputs a.png", ConfigError, "--inputs", "predict")
typed("a_kind_is_misspelt", "list hoks", ConfigError, "'hoks'", "did you mean 'hooks'?")
typed("an_entry_of_a_kind_is_misspelt", "list hooks EMAHok", ConfigError, "'EMAHok'", "'EMAHook'")
typed("nothing_is_launched", "launch -n 2", ConfigError, "what shall be launched?", "train CONFIG")
typed("a_job_to_launch_is_misspelt", "launch -n 2 trian c", ConfigError, "'trian'", "did you mean 'train'?")
typed(
    "a_config_is_launched_without_a_job",
    "launch -n 2 c.yaml",
    ConfigError,
    "which job of c.yaml",
    "launch train c.yaml",
)
typed("a_program_to_launch_is_not_there", "launch -n 2 tran.py", ConfigError, "'tran.py'", "no Python file")
typed("no_process_is_asked_for", "launch -n 0 train c", ConfigError, "'0'", "from 1 on")
typed(
    "several_machines_do_not_know_where_to_meet",
    "launch -n 2 --nodes 2 train c",
    ConfigError,
    "--nodes 2",
    "--rendezvous",
)
typed(
    "a_place_to_meet_is_no_place",
    "launch -n 2 --nodes 2 --rendezvous node0:http train c",
    ConfigError,
    "'node0:http'",
    "HOST:PORT",
)
typed(
    "a_launcher_is_misspelt",
    "launch -n 2 --launcher slrum train c",
    UnknownNameError,
    "'slrum'",
    "did you mean 'slurm'?",
)
typed(
    "slurm_is_asked_for_outside_of_it",
    "launch -n 2 --launcher slurm train c",
    ConfigError,
    "SLURM_JOB_ID",
    "sbatch",
)
typed(
    "a_launched_process_launches_again",
    "launch -n 2 train c",
    ConfigError,
    "RANK is set",
    "without torchrun",
    environ={"RANK": "0"},
)
typed("a_project_is_put_into_a_full_folder", "new taken", ConfigError, "'taken'", "not empty", prepare=a_file)
typed("a_project_is_put_below_a_file", "new notes/mine", ConfigError, "'notes'", "is a file", prepare=a_file)
typed("a_shell_is_unknown", "completion powershell", ConfigError, "'powershell'", "known: bash")


def a_config(folder: Path) -> None:
    (folder / "run.yaml").write_text("optimizer: {type: SGD, lr: 1e-1}\nmodel: {type: Identity}\n")


typed(
    "no_value_is_named_to_explain",
    "config explain run.yaml",
    ConfigError,
    "which value?",
    "CONFIG KEY",
    prepare=a_config,
)
typed(
    "a_value_to_explain_is_misspelt",
    "config explain run.yaml optimizer.lrr",
    ConfigError,
    "'optimizer.lrr'",
    "did you mean 'optimizer.lr'?",
    prepare=a_config,
)
typed(
    "a_second_config_is_misspelt",
    "config diff run.yaml rum.yaml",
    ConfigError,
    "'rum.yaml'",
    "run.yaml",
    prepare=a_config,
)
typed(
    "a_schema_of_no_kind_is_asked_for", "config schema hoks", ConfigError, "'hoks'", "did you mean 'hooks'?"
)
typed(
    "a_schema_of_a_kind_alone_is_asked_for",
    "config schema hooks",
    ConfigError,
    "which of the hooks?",
    "hooks NAME",
)
typed("a_schema_of_a_misspelt_class", "config schema hooks EMAHok", UnknownNameError, "'EMAHok'", "'EMAHook'")
typed(
    "meta_is_asked_for_without_a_dry_run",
    "check run.yaml --meta",
    ConfigError,
    "--meta",
    "give --dry-run too",
    prepare=a_config,
)
typed(
    "a_check_is_for_no_ranks",
    "check run.yaml --world-size 0",
    ConfigError,
    "--world-size 0",
    "at least 1",
    prepare=a_config,
)
typed("a_check_is_of_no_job", "check run.yaml --job fit", ConfigError, "'fit'", "train", prepare=a_config)
